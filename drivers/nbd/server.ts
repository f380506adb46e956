/**
 * The NBD server: exports an image to clients over any byte streams.
 *
 * @module
 */
import { LONGEST_DELAY } from "../../core/abort.ts";
import "../../core/disposal.ts";
import { AMOUNT, checkOptions } from "../../core/checks.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { Image } from "../../core/image.ts";
import type {
  ByteStream,
  Listener,
  SocketAddress,
} from "../../core/platform/sockets.ts";
import { localSockets } from "../../core/platform/mod.ts";
import {
  findTlsCredentials,
  type TlsCredentials,
} from "../../core/tls_credentials.ts";
import { valueText } from "../../core/values.ts";
import { Budget } from "./budget.ts";
import { Buffers } from "./buffers.ts";
import { byteStream, ConnectionLost, type WebStreams } from "./bytes.ts";
import { contextsOf, type Export, type NbdBitmap } from "./export.ts";
import { Connection } from "./server_connection.ts";
import { ServerHandshake } from "./server_handshake.ts";
import { encodeText, MAX_PAYLOAD, MAX_STRING } from "./wire.ts";

/**
 * How to export an image.
 *
 * @category Network
 */
export interface NbdServerOptions {
  /** The export's name. Default: empty, which every client finds. */
  name?: string;
  /** A description for people. Default: none. */
  description?: string;
  /** Whether clients may write. Default: false. */
  writable?: boolean;
  /** Most clients connected at once; others wait. Default: 0, for no limit. */
  maxClients?: number;
  /**
   * Seconds that a client may take for the handshake. Default: 10; 0: no limit.
   */
  handshakeLimit?: number;
  /** Most bytes of all requests in flight. Default: 256 MiB. */
  maxMemory?: number;
  /** Whether to export `qemu:allocation-depth`. Default: false. */
  allocationDepth?: boolean;
  /** Bitmaps to export. Default: none. */
  bitmaps?: readonly NbdBitmap[];
  /** Block size constraint, for clients that request it. Default: 1. */
  blockSize?: number;
  /** TLS credentials. Default: no encryption. */
  tls?: TlsCredentials;
  /** Whether clients must encrypt, if they can. Default: true. */
  requireTls?: boolean;
  /**
   * Whether to accept a client with a certificate for this distinguished name,
   * as GnuTLS writes it, such as `O=Acme,CN=client`. Default: all with a
   * trusted certificate.
   */
  authorize?(name: string): boolean;
  /** Called for each client that has entered the export. */
  onConnect?(): void;
  /**
   * Called for each client that leaves; `why` is a sentence if it violated the
   * protocol or broke off. `entered`: it had entered the export.
   */
  onDisconnect?(entered: boolean, why?: string): void;
}

/**
 * Where a server's clients come from: a socket, or one connection.
 *
 * @category Network
 */
export type NbdTransport = SocketAddress | Listener | ByteStream | WebStreams;

/** Default memory budget of all requests. */
const MEMORY = 256 * 1024 * 1024;
/** Memory budget of one client's requests: two of the largest. */
const SHARE = 2 * MAX_PAYLOAD + 1024 * 1024;

/**
 * Export an image to NBD clients until the server is closed; a server for one
 * connection ends with it. The caller closes the image after the server has
 * ended.
 *
 * @param image The image. Many clients share it.
 * @param to A socket address, a listening socket, or a connection. Browsers
 * have no sockets, but any pair of streams will do.
 * @throws {BlockError} EACCES if the image is to be writable and is not, EINVAL
 * for invalid options, and errors of the socket.
 *
 * @example Offer an image on a free port, and read it through that
 * ```ts
 * import { createImage, MemoryStore, openImage, serveNbd } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 20 });
 * await using image = await openImage({ driver: "qcow2", file });
 * await image.write(512, new TextEncoder().encode("hello"));
 *
 * await using server = await serveNbd(image, { host: "127.0.0.1", port: 0 });
 * await using disk = await openImage(server.uri!, { format: "raw", readOnly: true });
 * assertEquals(new TextDecoder().decode(await disk.read(512, 5)), "hello");
 * ```
 *
 * @category Network
 */
export async function serveNbd(
  image: Image,
  to: NbdTransport,
  options: NbdServerOptions = {},
): Promise<NbdServer> {
  const offered = exportOf(image, options);
  if ("path" in to || "host" in to) {
    to = await (await localSockets()).listen(to);
  }
  return new NbdServer(image, offered, to, options);
}

function exportOf(image: Image, options: NbdServerOptions): Export {
  checkOptions("serve", options, {
    name: "string",
    description: "string",
    writable: "boolean",
    maxClients: { least: 0 },
    handshakeLimit: AMOUNT,
    maxMemory: { least: SHARE },
    allocationDepth: "boolean",
    requireTls: "boolean",
    authorize: "function",
    bitmaps: "object",
    blockSize: { least: 1, most: 65536 },
    onConnect: "function",
    onDisconnect: "function",
  });
  const { name = "", description = "", writable = false } = options;
  const { maxClients = 0, blockSize = 1 } = options;
  for (const text of [name, description]) {
    if (encodeText(text).length <= MAX_STRING) continue;
    throw invalid(`export name '${text.slice(0, 80)}...' too long`);
  }
  if (writable && image.readOnly) {
    throw new BlockError(
      "EACCES",
      `'${image.filename}' cannot be offered for writing: it is read-only`,
    );
  }
  if (options.tls !== undefined) {
    const { hasCertificates } = findTlsCredentials(options.tls, "server");
    if (options.authorize && !hasCertificates) {
      throw invalid(
        "Clients are authorized by certificates, which keys replace",
      );
    }
  }
  if (blockSize & (blockSize - 1)) {
    throw invalid(`The block size ${blockSize} is not a power of two`);
  }
  const { requestAlignment = 1, maxTransfer = 0 } = image.node.limits ?? {};
  const minimum = Math.max(blockSize, requestAlignment);
  return {
    name,
    description,
    size: image.size,
    writable,
    shared: maxClients !== 1,
    blockSizes: {
      minimum,
      preferred: Math.max(4096, minimum),
      maximum: Math.min(maxTransfer || MAX_PAYLOAD, MAX_PAYLOAD),
    },
    contexts: contextsOf(image, options),
  };
}

/**
 * A running server. {@linkcode serveNbd} makes it.
 *
 * @category Network
 */
export class NbdServer implements AsyncDisposable {
  /** Resolves when it has ended: it was closed, or its only client has left. */
  readonly ended: Promise<void>;
  readonly #image: Image;
  readonly #export: Export;
  readonly #options: NbdServerOptions;
  readonly #budget: Budget;
  readonly #buffers = new Buffers();
  readonly #listener?: Listener;
  /** Functions that end each connection. */
  readonly #connections = new Map<object, () => void>();
  /** Requests of clients that have gone. */
  readonly #leftovers = new Set<Promise<void>>();
  #isClosing = false;
  #left = () => {};

  /** @ignore */
  constructor(
    image: Image,
    offered: Export,
    to: Exclude<NbdTransport, SocketAddress>,
    options: NbdServerOptions,
  ) {
    this.#image = image;
    this.#export = offered;
    this.#options = options;
    const { maxMemory = MEMORY } = options;
    this.#budget = new Budget(maxMemory, SHARE);
    if ("accept" in to) {
      this.#listener = to;
      this.ended = this.#acceptAll(to);
    } else if ("read" in to || "readable" in to) {
      this.ended = this.#serve(byteStream(to));
    } else {
      throw invalid(`Cannot serve on ${valueText(to)}: it is not a connection`);
    }
    // Whoever awaits the end gets the error; nobody else has to handle it.
    this.ended.catch(() => {});
  }

  /** Number of connected clients. */
  get clients(): number {
    return this.#connections.size;
  }

  /** The socket's address; absent for a single connection. */
  get address(): SocketAddress | undefined {
    return this.#listener?.address;
  }

  /**
   * The address as `nbd://` or `nbd+unix://`; absent for a single connection.
   */
  get uri(): string | undefined {
    const { address } = this;
    if (!address) return undefined;
    const name = encodeURIComponent(this.#export.name);
    if ("path" in address) {
      const path = address.path.split("/").map(encodeURIComponent).join("/");
      return `nbd+unix:///${name}?socket=${path}`;
    }
    const { host, port } = address;
    const shown = host.includes(":") ? `[${host}]` : host;
    return `nbd://${shown}:${port}${name && `/${name}`}`;
  }

  /**
   * Stop accepting clients, complete requests in flight, and end all
   * connections.
   */
  async close(): Promise<void> {
    this.#isClosing = true;
    this.#listener?.close();
    for (const end of this.#connections.values()) end();
    this.#left();
    await this.ended;
  }

  /** Closes; for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #acceptAll(listener: Listener): Promise<void> {
    const { maxClients = 0 } = this.#options;
    const served = new Set<Promise<void>>();
    try {
      while (!this.#isClosing) {
        // Others stay in the system's queue.
        if (maxClients > 0 && this.clients >= maxClients) {
          await new Promise<void>((resolve) => this.#left = resolve);
          continue;
        }
        const stream = await listener.accept().catch((error) => {
          // Some runtimes' listeners throw when they are closed.
          if (!this.#isClosing) throw error;
          return null;
        });
        if (!stream) break;
        const serving = this.#serve(stream);
        served.add(serving);
        serving.then(() => served.delete(serving));
      }
    } finally {
      await Promise.all(served);
    }
  }

  /** Serve one client. Nothing it does may affect others. */
  async #serve(stream: ByteStream): Promise<void> {
    const { handshakeLimit = 10, tls, requireTls, authorize } = this.#options;
    const handshake = new ServerHandshake(
      stream,
      this.#export,
      tls && { accept: (stream) => tls.accept(stream, authorize) },
      requireTls,
    );
    const id = {};
    this.#connections.set(id, () => handshake.close());
    const timer = handshakeLimit > 0
      ? setTimeout(
        () => handshake.close(),
        Math.min(handshakeLimit * 1000, LONGEST_DELAY),
      )
      : undefined;
    let entered = false;
    let why: string | undefined;
    try {
      const agreement = await handshake.run();
      clearTimeout(timer);
      if (agreement && !this.#isClosing) {
        const connection = new Connection(
          agreement,
          this.#image,
          this.#export,
          this.#budget,
          this.#buffers,
        );
        this.#connections.set(id, () => connection.close());
        entered = true;
        this.#options.onConnect?.();
        // It may be a client that has lost its connection, and repeats a
        // request that is still under way: that must not be carried out later.
        if (this.#leftovers.size > 0) await Promise.all(this.#leftovers);
        await connection.run((settled) => {
          this.#leftovers.add(settled);
          settled.then(() => this.#leftovers.delete(settled));
        });
      }
    } catch (error) {
      const isEnd = error instanceof ConnectionLost && error.isEnd;
      if (!isEnd && !this.#isClosing) why = reasonOf(error, entered);
    } finally {
      clearTimeout(timer);
      handshake.close();
    }
    this.#connections.delete(id);
    this.#left();
    this.#options.onDisconnect?.(entered, why);
  }
}

function reasonOf(error: unknown, entered: boolean): string {
  const { message } = error as Error;
  return entered
    ? `Disconnect client, due to: ${message}`
    : `option negotiation failed: ${message}`;
}
