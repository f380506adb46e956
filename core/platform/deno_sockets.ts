/**
 * Sockets through `Deno.connect` and `Deno.listen`.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { nodeSockets } from "./node_sockets.ts";
import {
  type ByteStream,
  type Listener,
  type SocketAddress,
  socketError,
  type Sockets,
} from "./sockets.ts";

export const sockets: Sockets = {
  // Deno cannot take over a descriptor.
  inherited: (descriptor) => nodeSockets().inherited(descriptor),

  async connect(address) {
    try {
      if ("path" in address) {
        return await Deno.connect({ transport: "unix", path: address.path });
      }
      const { host, port } = address;
      // Nobody can listen there, but Deno throws a TypeError.
      if (port === 0) throw new BlockError("ECONNREFUSED");
      return withoutDelay(await Deno.connect({ hostname: host, port }));
    } catch (error) {
      throw socketError(error, address);
    }
  },

  // deno-lint-ignore require-await -- elsewhere it takes its time
  async listen(address) {
    try {
      if ("path" in address) {
        const { path } = address;
        return listener(Deno.listen({ transport: "unix", path }), address);
      }
      const { host, port } = address;
      const socket = Deno.listen({ hostname: host, port });
      const found = (socket.addr as { port: number }).port;
      return listener(socket, { host, port: found });
    } catch (error) {
      throw socketError(error, address);
    }
  },
};

/** Send small messages at once, without waiting for more. */
function withoutDelay(connection: { setNoDelay(): void } & ByteStream) {
  connection.setNoDelay();
  return connection;
}

interface Accepting {
  accept(): Promise<ByteStream>;
  close(): void;
}

function listener(socket: Accepting, address: SocketAddress): Listener {
  let closed = false;
  return {
    address,
    async accept() {
      for (;;) {
        try {
          const connection = await socket.accept();
          if ("path" in address) return connection;
          return withoutDelay(connection as Parameters<typeof withoutDelay>[0]);
        } catch (error) {
          if (closed) return null;
          // The client has gone again, or descriptors have run out for now.
          if (!isTransient(error)) throw socketError(error, address);
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      }
    },
    close() {
      if (closed) return;
      closed = true;
      socket.close();
      if ("path" in address) remove(address.path);
    },
  };
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // Already removed by somebody else.
  }
}

/** Whether a socket can accept further connections after this failure. */
function isTransient(error: unknown): boolean {
  const { name, message } = error as Error;
  return name === "ConnectionAborted" || name === "ConnectionReset" ||
    /os error (23|24|103|104)\)/.test(message);
}
