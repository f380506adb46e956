/**
 * Sockets through `node:net`.
 *
 * @module
 */
import { nodeModule } from "./node_modules.ts";
import {
  type ByteStream,
  type Listener,
  type SocketAddress,
  socketError,
  type Sockets,
} from "./sockets.ts";

/** The properties used of a `node:net` socket, or of any duplex stream. */
export interface NodeSocket {
  on(event: string, listener: (value: Error) => void): unknown;
  once(event: string, listener: (value: Error) => void): unknown;
  read(): Uint8Array | null;
  write(bytes: Uint8Array, done: (error?: Error | null) => void): boolean;
  destroy(): void;
  setNoDelay?(): unknown;
}

interface NodeServer {
  on(event: "connection", listener: (socket: NodeSocket) => void): unknown;
  once(event: "error" | "close", listener: (error: Error) => void): unknown;
  listen(where: object, done: () => void): unknown;
  address(): { address: string; port: number } | string | null;
  close(): void;
}

interface Net {
  connect(where: object): NodeSocket;
  createServer(options: object): NodeServer;
}

/** The sockets of Node.js. */
export function nodeSockets(): Sockets {
  const net = () => nodeModule<Net>("node:net")!;
  return {
    connect: (at) => connect(net(), at),
    listen: (at) => listen(net(), at),
    inherited: (fd) => listen(net(), { fd }),
  };
}

async function connect(net: Net, address: SocketAddress): Promise<ByteStream> {
  const socket = net.connect(address);
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", () => resolve());
      socket.once("error", reject);
    });
  } catch (error) {
    throw socketError(error, address);
  }
  return nodeStream(socket);
}

async function listen(
  net: Net,
  where: SocketAddress | { readonly fd: number },
): Promise<Listener> {
  const server = net.createServer({});
  const waiting: NodeSocket[] = [];
  let wake = () => {};
  let closed = false;
  server.on("connection", (socket) => {
    // Ignore errors until somebody uses it.
    socket.on("error", () => {});
    waiting.push(socket);
    wake();
  });
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(where, resolve);
    });
  } catch (error) {
    throw socketError(error, "fd" in where ? { path: "" } : where);
  }
  return {
    address: addressOf(server, where),
    async accept() {
      while (waiting.length === 0) {
        if (closed) return null;
        await new Promise<void>((resolve) => wake = resolve);
      }
      return nodeStream(waiting.shift()!);
    },
    close() {
      closed = true;
      for (const socket of waiting.splice(0)) socket.destroy();
      server.close();
      wake();
    },
  };
}

/** The actual address of a socket. */
function addressOf(
  server: NodeServer,
  where: SocketAddress | { readonly fd: number },
): SocketAddress {
  if ("path" in where) return where;
  const found = server.address();
  if (typeof found === "string") return { path: found };
  const { address = "", port } = found ?? { port: 0 };
  return { host: "host" in where ? where.host : address, port };
}

/** A Node.js duplex stream as a byte stream. */
export function nodeStream(socket: NodeSocket): ByteStream {
  socket.setNoDelay?.();
  let rest: Uint8Array = new Uint8Array(0);
  let ended = false;
  let failure: Error | undefined;
  let wake = () => {};
  socket.on("readable", () => wake());
  for (const event of ["end", "close"]) {
    socket.on(event, () => {
      ended = true;
      wake();
    });
  }
  socket.on("error", (error) => {
    failure = error;
    wake();
  });
  return {
    async read(into) {
      while (rest.length === 0) {
        const chunk = socket.read();
        if (chunk) {
          rest = chunk;
          break;
        }
        if (failure) throw failure;
        if (ended) return null;
        await new Promise<void>((resolve) => wake = resolve);
      }
      const count = Math.min(rest.length, into.length);
      into.set(rest.subarray(0, count));
      rest = rest.subarray(count);
      return count;
    },
    write: (bytes) =>
      new Promise((resolve, reject) =>
        socket.write(
          bytes,
          (error) => error ? reject(error) : resolve(bytes.length),
        )
      ),
    close: () => socket.destroy(),
  };
}
