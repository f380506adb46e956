/**
 * The protocol driver `nbd`: a disk exported by a server on the network.
 *
 * @module
 */
import { checkSignal, unlessAborted } from "../../core/abort.ts";
import {
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import {
  asBlockError,
  BlockError,
  type ErrorCode,
  invalid,
  strerror,
} from "../../core/errors.ts";
import type {
  BlockNode,
  DiscardFlags,
  Extent,
  ReadFlags,
  RequestFlags,
  RequestLimits,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { localSockets } from "../../core/platform/mod.ts";
import {
  addressText,
  type ByteStream,
  type SocketAddress,
} from "../../core/platform/sockets.ts";
import {
  findTlsCredentials,
  TlsCredentials,
} from "../../core/tls_credentials.ts";
import { allEnded } from "../../core/requests.ts";
import { type Place, takePlace } from "./address.ts";
import { byteStream, endStream } from "./bytes.ts";
import { NbdClient } from "./client.ts";
import { ClientHandshake, type ClientTls } from "./client_handshake.ts";
import { Link } from "./link.ts";
import { nbdName, parseNbdFilename } from "./names.ts";
import { NBD_TRAITS, OPEN_OPTIONS } from "./options.ts";
import { StatusCache } from "./status_cache.ts";
import {
  BASE_ALLOCATION,
  COMMAND,
  COMMAND_FLAG,
  encodeText,
  FLAG,
  MAX_PAYLOAD,
  MAX_STRING,
  STATE,
} from "./wire.ts";

/**
 * An export of an NBD server, given by a file name, by the options of QEMU's
 * driver (`server`, `export` …), or by a function `connect` that makes the
 * connection, for runtimes without sockets and other transports.
 */
export const nbdDriver: BlockDriver = {
  ...NBD_TRAITS,
  async open(options, context) {
    const [place, connection] = parse(options);
    const link = await connect(place, connection, context.signal);
    try {
      return new NbdNode(link, place, connection, context);
    } catch (error) {
      await link.close();
      throw error;
    }
  },
  create: useExisting,
};

/** Options other than the export's location. */
interface ConnectionOptions {
  /** The dirty bitmap's context to use in place of `base:allocation`. */
  readonly dirtyBitmap?: string;
  /** Seconds. */
  readonly reconnectDelay: number;
  /** Seconds. */
  readonly openTimeout: number;
  readonly connections: number;
  /** Absent if the connection is not to be encrypted. */
  readonly tls?: ClientTls;
}

function parse(given: OptionValues): [Place, ConnectionOptions] {
  const { filename, ...options } = given;
  if (typeof filename === "string") {
    const named = parseNbdFilename(filename);
    for (const name of Object.keys(named)) {
      if (options[name] === undefined) continue;
      throw invalid(`Option '${name}' cannot be used with a file name`);
    }
    Object.assign(options, named);
  }
  const [place, others] = takePlace(options);
  const { "tls-creds": credentials, tls, ...plain } = others;
  const parsed = parseOptions(OPEN_OPTIONS, plain);
  if (encodeText(place.exportName ?? "").length > MAX_STRING) {
    throw invalid("export name too long to send to server");
  }
  return [place, {
    dirtyBitmap: parsed["x-dirty-bitmap"] as string | undefined,
    reconnectDelay: parsed["reconnect-delay"] as number ?? 0,
    openTimeout: parsed["open-timeout"] as number ?? 0,
    connections: parsed["multi-conn"] as number ?? 1,
    tls: tlsOf(
      place,
      credentials ?? (tls ? SYSTEM_CREDENTIALS : undefined),
      parsed["tls-hostname"] as string | undefined,
    ),
  }];
}

/** The credentials of `nbds://`: the authorities that the system trusts. */
const SYSTEM_CREDENTIALS = new TlsCredentials({ endpoint: "client" });

function tlsOf(
  { server }: Place,
  credentials: unknown,
  hostname?: string,
): ClientTls | undefined {
  if (credentials === undefined) return undefined;
  const found = findTlsCredentials(credentials, "client");
  const host = hostname ?? ("host" in server ? server.host : undefined);
  if (host === undefined && found.hasCertificates) {
    throw invalid("No hostname for certificate validation");
  }
  return { connect: (stream) => found.connect(stream, host ?? "") };
}

function connect(
  place: Place,
  connection: ConnectionOptions,
  signal?: AbortSignal,
): Promise<Link> {
  const { server, exportName = "" } = place;
  const context = connection.dirtyBitmap ?? BASE_ALLOCATION;
  return Link.open({
    openTimeout: connection.openTimeout * 1000,
    reconnectDelay: connection.reconnectDelay * 1000,
    connections: connection.connections,
    signal,
    async connect(signal) {
      const stream = await connected(server, signal);
      const { tls } = connection;
      const handshake = new ClientHandshake(stream, {
        exportName,
        context,
        tls,
      });
      try {
        return new NbdClient(await handshake.enter());
      } catch (error) {
        await handshake.abandon();
        throw error;
      }
    },
  });
}

/** Connect; the connection is ended when `signal` is aborted. */
async function connected(
  server: Place["server"],
  signal: AbortSignal,
): Promise<ByteStream> {
  const stream = await Promise.race([
    newStream(server, signal),
    new Promise<never>((_, reject) => {
      signal.addEventListener(
        "abort",
        () => reject(new BlockError("ETIMEDOUT")),
      );
    }),
  ]);
  signal.addEventListener("abort", () => endStream(stream));
  return stream;
}

async function newStream(
  server: Place["server"],
  signal: AbortSignal,
): Promise<ByteStream> {
  const stream = typeof server === "function"
    ? await server()
    : await connectTo(server);
  const bytes = byteStream(stream);
  // Connecting took too long.
  if (signal.aborted) endStream(bytes);
  return bytes;
}

async function connectTo(server: SocketAddress): Promise<ByteStream> {
  try {
    return await (await localSockets()).connect(server);
  } catch (thrown) {
    const error = asBlockError(thrown);
    if (error.message !== strerror(error.code)) throw error;
    throw error.prefixed(`Failed to connect to '${addressText(server)}': `);
  }
}

/** Nothing is created: the export must exist and be large enough. */
async function useExisting(
  { size = 0, preallocation: _, ...options }: OptionValues,
): Promise<void> {
  const [place, connection] = parse(options);
  let link: Link;
  try {
    link = await connect(place, connection);
    if (link.first.info.flags & FLAG.READ_ONLY) {
      await link.close();
      throw notOpened("EACCES");
    }
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw error.prefixed(
      "Protocol driver 'nbd' does not support creating new images, so an " +
        "existing image must be selected as the target; however, opening the " +
        "given target as an existing image failed: ",
    );
  }
  try {
    const { info } = link.first;
    if (Number(size) > info.size) throw cannotGrow();
  } finally {
    await link.close();
  }
}

function notOpened(code: ErrorCode): BlockError {
  return new BlockError(code, `Could not open image: ${strerror(code)}`);
}

function cannotGrow(): BlockError {
  return new BlockError("ENOTSUP", "Cannot grow NBD nodes");
}

/** Most bytes of a request without data, if lengths have 32 bits. */
const MAX_RANGE = 2 ** 31;

/**
 * Longer reads are made in parts of this many bytes: the server sends one while
 * it reads the next, and both are still in the processor's cache.
 */
const READ_SIZE = 512 * 1024;

/** An opened export. */
class NbdNode implements BlockNode {
  readonly driver = NBD_TRAITS;
  readonly filename: string;
  readonly size: number;
  readonly readOnly: boolean;
  readonly children = {};
  readonly limits: RequestLimits;
  readonly writev?: BlockNode["writev"];
  readonly writeZeroes?: BlockNode["writeZeroes"];
  readonly discard?: BlockNode["discard"];
  readonly flush?: BlockNode["flush"];
  readonly #link: Link;
  readonly #flags: number;
  readonly #dirtyBitmap: boolean;
  readonly #status: StatusCache;

  constructor(
    link: Link,
    place: Place,
    { dirtyBitmap }: ConnectionOptions,
    { readOnly }: OpenContext,
  ) {
    const { info, extended, hasContext } = link.first;
    const { size, flags, blockSizes } = info;
    this.#link = link;
    this.#flags = flags;
    this.#dirtyBitmap = dirtyBitmap !== undefined;
    this.filename = typeof place.server === "function"
      ? `nbd:${place.exportName ?? ""}`
      : nbdName(place.server, place.exportName);
    this.size = size;
    this.readOnly = readOnly;
    if (dirtyBitmap !== undefined && !hasContext) throw notOpened("EINVAL");
    const can = (flag: number) => (flags & flag) !== 0;
    if (!readOnly && can(FLAG.READ_ONLY)) {
      throw notOpened("EACCES");
    }
    // Without further knowledge, whole sectors are safe.
    const minimum = blockSizes?.minimum ??
      (hasContext || size % 512 !== 0 ? 1 : 512);
    // What is partly allocated is data; what is partly dirty, dirty.
    const mixed = dirtyBitmap === undefined ? 0 : STATE.DIRTY;
    this.#status = new StatusCache(link, minimum, mixed);
    const range = extended ? undefined : MAX_RANGE;
    this.limits = {
      requestAlignment: minimum,
      maxTransfer: Math.min(MAX_PAYLOAD, blockSizes?.maximum ?? MAX_PAYLOAD),
      ...(range && { maxWriteZeroes: range, maxDiscard: range }),
    };
    if (!readOnly) {
      this.writev = this.#write;
      if (can(FLAG.SEND_WRITE_ZEROES)) this.writeZeroes = this.#writeZeroes;
      if (can(FLAG.SEND_TRIM)) this.discard = this.#discard;
    }
    if (can(FLAG.SEND_FLUSH)) this.flush = this.#flush;
  }

  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const signal = flags?.signal;
    const length = vectorLength(iov);
    const inside = Math.max(0, Math.min(length, this.size - offset));
    if (inside > 0) {
      await (inside <= READ_SIZE
        ? this.#read(offset, sliceVector(iov, 0, inside), signal)
        : this.#readParts(offset, iov, inside, signal));
    }
    if (inside < length) fillVector(iov, inside, length - inside);
  }

  #read(
    offset: number,
    iov: IoVector,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    return this.#link.ask((client) => client.read(offset, iov, signal), signal);
  }

  async #readParts(
    offset: number,
    iov: IoVector,
    length: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const reads: Promise<void>[] = [];
    for (let at = 0; at < length; at += READ_SIZE) {
      const part = sliceVector(iov, at, Math.min(READ_SIZE, length - at));
      reads.push(this.#read(offset + at, part, signal));
    }
    await allEnded(reads);
  }

  readonly #write = async (
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> => {
    this.#checkEnd(offset, vectorLength(iov));
    const isForced = flags?.fua === true;
    const byServer = isForced && (this.#flags & FLAG.SEND_FUA) !== 0;
    await this.#status.during(
      this.#link.write(offset, iov, byServer, flags?.signal),
    );
    if (isForced && !byServer) await this.flush?.();
  };

  readonly #writeZeroes = async (
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> => {
    this.#checkEnd(offset, length);
    const isForced = flags?.fua === true;
    const byServer = isForced && (this.#flags & FLAG.SEND_FUA) !== 0;
    let wire = 0;
    if (byServer) wire |= COMMAND_FLAG.FUA;
    if (!flags?.unmap) wire |= COMMAND_FLAG.NO_HOLE;
    if (flags?.noFallback) {
      if (!(this.#flags & FLAG.SEND_FAST_ZERO)) throw new BlockError("ENOTSUP");
      wire |= COMMAND_FLAG.FAST_ZERO;
    }
    await this.#status.during(
      this.#link.change(
        COMMAND.WRITE_ZEROES,
        offset,
        length,
        wire,
        flags?.signal,
      ),
    );
    if (isForced && !byServer) await this.flush?.();
  };

  readonly #discard = async (
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void> => {
    const inside = Math.min(length, this.size - offset);
    if (inside <= 0) return;
    await this.#status.during(
      this.#link.change(COMMAND.TRIM, offset, inside, 0, flags?.signal),
    );
  };

  readonly #flush = async (flags?: RequestFlags): Promise<void> => {
    await this.#link.flush(flags?.signal);
  };

  #checkEnd(offset: number, length: number): void {
    if (offset + length > this.size) throw new BlockError("ENOSPC");
  }

  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const place = { hostOffset: offset, file: this };
    const inside = Math.min(length, this.size - offset, MAX_RANGE);
    if (inside <= 0) return { length, allocated: true, zero: true, ...place };
    const { hasContext } = this.#link.first;
    if (!hasContext) {
      return { length: inside, allocated: true, zero: false, ...place };
    }
    // A server may refuse to tell about parts of its blocks.
    const unit = this.limits.requestAlignment ?? 1;
    const skipped = offset % unit;
    const end = Math.ceil((offset + inside) / unit) * unit;
    const start = offset - skipped;
    const asked = this.#status.first(start, end - start);
    const run = await unlessAborted(asked, flags?.signal);
    const isHole = (run.flags & STATE.HOLE) !== 0;
    const zero = (run.flags & STATE.ZERO) !== 0;
    return {
      length: Math.min(run.length - skipped, inside),
      // Dirty ranges are shown as unallocated.
      allocated: zero || !isHole || !this.#dirtyBitmap,
      zero,
      ...(zero && !isHole && { recurse: true }),
      ...place,
    };
  }

  /** The space that the export takes up is unknown. */
  info(): Promise<Record<string, never>> {
    return Promise.resolve({});
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async truncate(size: number, options?: TruncateOptions): Promise<void> {
    if (options?.exact && size !== this.size) {
      throw new BlockError("ENOTSUP", "Cannot resize NBD nodes");
    }
    if (size > this.size) throw cannotGrow();
  }

  async close(): Promise<void> {
    try {
      if (!this.readOnly) await this.flush?.();
    } finally {
      await this.#link.close();
    }
  }
}
