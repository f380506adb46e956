/**
 * Sockets by way of `Deno.connect` and `Deno.listen`.
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
  // Deno itself has no way to take one over.
  inherited: (descriptor) => nodeSockets().inherited(descriptor),

  async connect(address) {
    try {
      if ("path" in address) {
        return await Deno.connect({ transport: "unix", path: address.path });
      }
      const { host, port } = address;
      // Nobody listens there, but Deno takes it for a mistake of ours.
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

/** Small messages are not to wait for others that might follow. */
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
          // Whoever it was has gone again, or others have to go first.
          if (!isPassing(error)) throw socketError(error, address);
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
    // Somebody else has removed it.
  }
}

/** Whether a socket can accept others although it has failed once. */
function isPassing(error: unknown): boolean {
  const { name, message } = error as Error;
  return name === "ConnectionAborted" || name === "ConnectionReset" ||
    /os error (23|24|103|104)\)/.test(message);
}
