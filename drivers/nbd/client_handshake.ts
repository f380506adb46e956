/**
 * The handshake phase of the client: negotiating options. Messages are QEMU's.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { ByteStream } from "../../core/platform/sockets.ts";
import {
  ConnectionLost,
  endStream,
  MessageReader,
  MessageWriter,
} from "./bytes.ts";
import {
  type BlockSizes,
  decodeText,
  encodeText,
  type Fields,
  FLAG,
  HANDSHAKE,
  INFO,
  joined,
  lengthAndText,
  MAX_PAYLOAD,
  MAX_STRING,
  message,
  NBD_MAGIC,
  OLDSTYLE_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  optionName,
  REPLY,
  replyName,
  u16Bytes,
  u32Bytes,
} from "./wire.ts";

/** What the client requests. */
export interface HandshakeRequest {
  /** The name of the export. */
  readonly exportName: string;
  /** The metadata context to request; none if absent. */
  readonly context?: string;
  /** How to encrypt the connection; absent for no encryption. */
  readonly tls?: ClientTls;
  /**
   * The newest protocol features to request: 64-bit lengths (`extended`),
   * structured replies (`structured`), or neither. Default: `extended`.
   */
  readonly replies?: "extended" | "structured" | "simple";
}

/** Encrypts a client's connection. */
export interface ClientTls {
  connect(stream: ByteStream): Promise<ByteStream>;
}

/** An export, as described by the server. */
export interface ExportInfo {
  /** Bytes. */
  readonly size: number;
  /** Transmission flags. */
  readonly flags: number;
  readonly description: string;
  /** Absent if the server does not report them. */
  readonly blockSizes?: BlockSizes;
}

/** A connection that is ready for transmission. */
export interface ClientAgreement {
  readonly stream: ByteStream;
  readonly reader: MessageReader;
  readonly writer: MessageWriter;
  readonly info: ExportInfo;
  readonly structured: boolean;
  readonly extended: boolean;
  /** The id of the metadata context, if the server has it. */
  readonly contextId?: number;
}

/** An entry of the server's list of exports. */
export interface ListedExport {
  readonly name: string;
  readonly info: ExportInfo;
  readonly contexts: readonly string[];
  readonly extended: boolean;
}

interface OptionReply {
  readonly type: number;
  readonly length: number;
}

/** The server has refused an option. */
class Refused extends BlockError {}

const fault = (message: string) => new BlockError("EINVAL", message);

/** Negotiates with a server. */
export class ClientHandshake {
  #stream: ByteStream;
  #reader: MessageReader;
  #writer: MessageWriter;
  readonly #requested: HandshakeRequest;
  #withoutZeroes = false;
  #structured = false;
  /** Whether the server is waiting for options. */
  #canLeave = false;
  /**
   * Whether the server has said anything since the last TLS handshake, in which
   * a client does not learn yet that its certificate is refused.
   */
  #isAdmitted = true;
  #extended = false;

  constructor(stream: ByteStream, requested: HandshakeRequest) {
    this.#stream = stream;
    this.#reader = new MessageReader(stream);
    this.#writer = new MessageWriter(stream);
    this.#requested = requested;
  }

  /**
   * Enter the export.
   *
   * @throws {BlockError} with QEMU's messages.
   */
  async enter(): Promise<ClientAgreement> {
    const { exportName, context } = this.#requested;
    const style = await this.#greet();
    if (style === "oldstyle") {
      if (exportName !== "") {
        throw fault("Server does not support non-empty export names");
      }
      return this.#agreement(await this.#oldstyleInfo());
    }
    if (style === "newstyle") return this.#agreement(await this.#enterByName());
    await this.#negotiateFeatures();
    const contextId = context !== undefined && this.#structured
      ? await this.#setContext(context)
      : undefined;
    const info = await this.#inform(OPTION.GO, exportName);
    if (info) return this.#agreement(info, contextId);
    const exports = await this.#listNames();
    if (exports && !exports.some(({ name }) => name === exportName)) {
      throw fault(`No export with name '${exportName}' available`);
    }
    return this.#agreement(await this.#enterByName(), contextId);
  }

  /**
   * List all exports of the server; the connection cannot be used afterwards.
   */
  async list(): Promise<ListedExport[]> {
    const style = await this.#greet();
    if (style === "oldstyle") {
      const info = await this.#oldstyleInfo();
      return [{ name: "", info, contexts: [], extended: false }];
    }
    if (style === "newstyle") {
      throw fault("Server does not support export lists");
    }
    await this.#negotiateFeatures();
    const listed: ListedExport[] = [];
    for (const { name, description } of await this.#listNames() ?? []) {
      const found = await this.#inform(OPTION.INFO, name);
      const info = found ?? { size: 0, flags: 0, description };
      const contexts = found && this.#structured
        ? await this.#listContexts(name)
        : [];
      listed.push({
        name,
        info: info.description === "" ? { ...info, description } : info,
        contexts,
        extended: this.#extended,
      });
    }
    return listed;
  }

  /** Abort the handshake after a failure, if the server still listens. */
  async abandon(): Promise<void> {
    if (this.#canLeave) {
      this.#sendOption(OPTION.ABORT);
      await this.#writer.drained().catch(() => {});
    }
    endStream(this.#stream);
  }

  #agreement(info: ExportInfo, contextId?: number): ClientAgreement {
    return {
      stream: this.#stream,
      reader: this.#reader,
      writer: this.#writer,
      info,
      structured: this.#structured,
      extended: this.#extended,
      contextId,
    };
  }

  async #greet(): Promise<"fixed" | "newstyle" | "oldstyle"> {
    const magic = await this.#read(8, "initial magic");
    if (!magic.isMagic(0, NBD_MAGIC)) {
      throw fault(`Bad initial magic received: 0x${hex(magic.bytes)}`);
    }
    const server = await this.#read(8, "server magic");
    const { tls } = this.#requested;
    if (server.isMagic(0, OLDSTYLE_MAGIC)) {
      if (tls) throw fault("Server does not support STARTTLS");
      return "oldstyle";
    }
    if (!server.isMagic(0, OPTION_MAGIC)) {
      throw fault(`Bad server magic received: 0x${hex(server.bytes)}`);
    }
    const flags = (await this.#read(2, "server flags")).u16(0);
    this.#withoutZeroes = (flags & HANDSHAKE.NO_ZEROES) !== 0;
    const known = HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES;
    this.#writer.push(u32Bytes(flags & known));
    const isFixed = this.#canLeave = (flags & HANDSHAKE.FIXED_NEWSTYLE) !== 0;
    if (tls) {
      if (!isFixed) throw fault("Server does not support STARTTLS");
      await this.#startTls(tls);
    }
    return isFixed ? "fixed" : "newstyle";
  }

  async #startTls(tls: ClientTls): Promise<void> {
    this.#sendOption(OPTION.STARTTLS);
    if (!await this.#isAcknowledged(OPTION.STARTTLS)) {
      throw fault("Server don't support STARTTLS option");
    }
    // Bytes received before TLS must not be taken for encrypted ones.
    if (this.#reader.has(1)) {
      throw fault("Unexpected data before the TLS handshake");
    }
    this.#stream = await tls.connect(this.#stream);
    this.#isAdmitted = false;
    this.#reader = new MessageReader(this.#stream);
    this.#writer = new MessageWriter(this.#stream);
  }

  async #negotiateFeatures(): Promise<void> {
    const { replies = "extended" } = this.#requested;
    if (replies === "extended") {
      this.#sendOption(OPTION.EXTENDED_HEADERS);
      this.#extended = await this.#isGranted(OPTION.EXTENDED_HEADERS);
      this.#structured = this.#extended;
    }
    if (replies !== "simple" && !this.#structured) {
      this.#sendOption(OPTION.STRUCTURED_REPLY);
      this.#structured = await this.#isGranted(OPTION.STRUCTURED_REPLY);
    }
  }

  /** Whether the server grants an optional feature. */
  async #isGranted(option: number): Promise<boolean> {
    try {
      return await this.#isAcknowledged(option);
    } catch (error) {
      if (error instanceof Refused) return false;
      throw error;
    }
  }

  /**
   * Whether a simple option was acknowledged; being unknown to the server is
   * not an error.
   */
  async #isAcknowledged(option: number): Promise<boolean> {
    const reply = await this.#reply(option);
    if (!reply) return false;
    if (reply.type !== REPLY.ACK) {
      throw fault(
        `Server answered option ${option} (${optionName(option)}) with ` +
          `unexpected reply ${reply.type} (${replyName(reply.type)})`,
      );
    }
    if (reply.length > 0) {
      throw fault(
        `Option ${option} ('${optionName(option)}') response length is ` +
          `${reply.length} (it should be zero)`,
      );
    }
    return true;
  }

  #sendOption(option: number, data: Uint8Array = new Uint8Array(0)): void {
    const header = message(16);
    header.setMagic(0, OPTION_MAGIC);
    header.setU32(8, option);
    header.setU32(12, data.length);
    this.#writer.push(joined(header.bytes, data));
  }

  /**
   * The next reply to an option; `undefined` if the server does not know it.
   *
   * @throws {BlockError} if it refuses.
   */
  async #reply(option: number): Promise<OptionReply | undefined> {
    const reply = await this.#read(20, "option reply");
    if (!reply.isMagic(0, OPTION_REPLY_MAGIC)) {
      throw fault("Unexpected option reply magic");
    }
    const given = reply.u32(8);
    const type = reply.u32(12);
    const length = reply.u32(16);
    if (given !== option) {
      throw fault(
        `Unexpected option type ${given} (${optionName(given)}), expected ` +
          `${option} (${optionName(option)})`,
      );
    }
    if (type < 0x80000000) return { type, length };
    if (length > MAX_STRING) {
      throw fault(
        `server error ${type} (${replyName(type)}) message is too long`,
      );
    }
    const text = decodeText((await this.#read(length, "option error")).bytes);
    if (type === REPLY.ERROR_UNSUPPORTED) return undefined;
    const tell = `${option} (${optionName(option)})`;
    const hints = type === REPLY.ERROR_TLS_REQUIRED
      ? ["Did you forget a valid tls-creds?"]
      : [];
    if (text) hints.push(`server reported: ${text}`);
    throw new Refused("EINVAL", refusal(type, tell), {
      hint: hints.join("\n") || undefined,
    });
  }

  /** Replies up to the acknowledgement; none if the option is not known. */
  async *#replies(option: number, expected: number): AsyncGenerator<Fields> {
    for (;;) {
      const reply = await this.#reply(option);
      if (!reply) return;
      if (reply.type === REPLY.ACK) {
        if (reply.length > 0) throw fault("Unexpected length to ACK response");
        return;
      }
      if (reply.type !== expected) {
        throw fault(
          `Unexpected reply type ${reply.type} (${replyName(reply.type)}), ` +
            `expected ${expected} (${replyName(expected)})`,
        );
      }
      if (reply.length > 16 + 2 * MAX_STRING) {
        throw fault("incorrect option length " + reply.length);
      }
      yield await this.#read(reply.length, "option reply");
    }
  }

  async #setContext(query: string): Promise<number | undefined> {
    const { exportName } = this.#requested;
    this.#sendContextQueries(OPTION.SET_META_CONTEXT, exportName, [query]);
    let id: number | undefined;
    const option = OPTION.SET_META_CONTEXT;
    for await (const reply of this.#replies(option, REPLY.META_CONTEXT)) {
      const name = contextName(reply);
      if (id !== undefined) {
        throw fault("Server answered with more than one context");
      }
      if (name !== query) {
        throw fault(
          `Failed to negotiate meta context '${query}', server answered with ` +
            `different context '${name}'`,
        );
      }
      id = reply.u32(0);
    }
    return id;
  }

  async #listContexts(name: string): Promise<string[]> {
    this.#sendContextQueries(OPTION.LIST_META_CONTEXT, name, []);
    const names: string[] = [];
    const option = OPTION.LIST_META_CONTEXT;
    for await (const reply of this.#replies(option, REPLY.META_CONTEXT)) {
      if (names.length === MAX_LIST) throw fault("Too many contexts");
      names.push(contextName(reply));
    }
    return names;
  }

  #sendContextQueries(
    option: number,
    name: string,
    queries: readonly string[],
  ): void {
    this.#sendOption(
      option,
      joined(
        lengthAndText(name),
        u32Bytes(queries.length),
        ...queries.map(lengthAndText),
      ),
    );
  }

  async #listNames(): Promise<
    { name: string; description: string }[] | undefined
  > {
    this.#sendOption(OPTION.LIST);
    const names: { name: string; description: string }[] = [];
    let answered = false;
    for await (const reply of this.#replies(OPTION.LIST, REPLY.SERVER)) {
      answered = true;
      const { bytes } = reply;
      if (bytes.length < 4) {
        throw fault(`incorrect option length ${bytes.length}`);
      }
      const length = reply.u32(0);
      if (length > bytes.length - 4 || length > MAX_STRING) {
        throw fault("incorrect name length in server's list response");
      }
      if (names.length === MAX_LIST) throw fault("Too many exports");
      names.push({
        name: decodeText(bytes.subarray(4, 4 + length)),
        description: decodeText(bytes.subarray(4 + length)),
      });
    }
    // A server that lists nothing is treated like one that cannot list.
    return answered ? names : undefined;
  }

  /**
   * The server's description of an export; `undefined` if it cannot give one.
   */
  async #inform(
    option: number,
    name: string,
  ): Promise<ExportInfo | undefined> {
    this.#sendOption(
      option,
      joined(lengthAndText(name), u16Bytes(1), u16Bytes(INFO.BLOCK_SIZE)),
    );
    let known: { size: number; flags: number } | undefined;
    let blockSizes: BlockSizes | undefined;
    let description = "";
    for (;;) {
      const reply = await this.#reply(option);
      if (!reply) return undefined;
      const { type, length } = reply;
      if (type === REPLY.ACK) {
        if (length > 0) throw fault("server sent invalid NBD_REP_ACK");
        if (!known) throw fault("broken server omitted NBD_INFO_EXPORT");
        return { ...known, blockSizes, description };
      }
      if (type !== REPLY.INFO) {
        throw fault(
          `unexpected reply type ${type} (${replyName(type)}), expected ` +
            `${REPLY.INFO} (${replyName(REPLY.INFO)})`,
        );
      }
      if (length < 2) throw fault(`NBD_REP_INFO length ${length} is too short`);
      if (length > 2 + MAX_STRING) {
        throw fault(`NBD_REP_INFO length ${length} is too long`);
      }
      const info = await this.#read(length, "info payload");
      const kind = info.u16(0);
      const rest = length - 2;
      if (kind === INFO.EXPORT) {
        if (rest !== 10) throw unexpectedSize(rest);
        known = { size: info.u64(2), flags: info.u16(10) };
        checkSize(known.size, blockSizes);
      } else if (kind === INFO.BLOCK_SIZE) {
        if (rest !== 12) throw unexpectedSize(rest);
        blockSizes = checkedSizes(info.u32(2), info.u32(6), info.u32(10));
        if (known) checkSize(known.size, blockSizes);
      } else if (kind === INFO.DESCRIPTION) {
        description = decodeText(info.bytes.subarray(2));
      }
    }
  }

  async #enterByName(): Promise<ExportInfo> {
    this.#canLeave = false;
    this.#sendOption(
      OPTION.EXPORT_NAME,
      encodeText(this.#requested.exportName),
    );
    const size = (await this.#read(8, "export length")).u64(0);
    const flags = (await this.#read(2, "export flags")).u16(0);
    if (!this.#withoutZeroes) await this.#read(124, "reserved block");
    checkSize(size);
    return { size, flags: flags | FLAG.HAS_FLAGS, description: "" };
  }

  async #oldstyleInfo(): Promise<ExportInfo> {
    const size = (await this.#read(8, "export length")).u64(0);
    const flags = (await this.#read(4, "export flags")).u32(0);
    if (flags > 0xffff) {
      throw fault(`Unexpected export flags ${flags.toString(16)}x`);
    }
    await this.#read(124, "reserved block");
    checkSize(size);
    return { size, flags, description: "" };
  }

  async #read(length: number, what: string): Promise<Fields> {
    try {
      const message = await this.#reader.message(length);
      this.#isAdmitted = true;
      return message;
    } catch (error) {
      if (!(error instanceof ConnectionLost)) throw error;
      if (!this.#isAdmitted) {
        throw new BlockError(
          "EIO",
          `Failed to read ${what}: Cannot read from TLS channel: ` +
            "Software caused connection abort",
          { cause: error },
        );
      }
      throw error.prefixed(`Failed to read ${what}: `);
    }
  }
}

/** Most entries of a list that a server may send. */
const MAX_LIST = 10_000;

function refusal(type: number, option: string): string {
  switch (type) {
    case REPLY.ERROR_POLICY:
      return `Denied by server for option ${option}`;
    case REPLY.ERROR_INVALID:
      return `Invalid parameters for option ${option}`;
    case REPLY.ERROR_PLATFORM:
      return `Server lacks support for option ${option}`;
    case REPLY.ERROR_TLS_REQUIRED:
      return `TLS negotiation required before option ${option}`;
    case REPLY.ERROR_UNKNOWN:
      return "Requested export not available";
    case REPLY.ERROR_SHUTDOWN:
      return `Server shutting down before option ${option}`;
    case REPLY.ERROR_BLOCK_SIZE_REQUIRED:
      return `Server requires INFO_BLOCK_SIZE for option ${option}`;
    default:
      return `Unknown error code when asking for option ${option}`;
  }
}

function contextName(reply: Fields): string {
  const { bytes } = reply;
  if (bytes.length <= 4) {
    throw fault(
      "Failed to negotiate meta context, server answered with unexpected " +
        `length ${bytes.length}`,
    );
  }
  return decodeText(bytes.subarray(4));
}

function unexpectedSize(length: number): BlockError {
  return fault(`remaining export info len ${length} is unexpected size`);
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && (value & (value - 1)) === 0;
}

function checkedSizes(
  minimum: number,
  preferred: number,
  maximum: number,
): BlockSizes {
  if (!isPowerOfTwo(minimum) || minimum > 65536) {
    throw fault(
      `server minimum block size ${minimum} is not a power of two`,
    );
  }
  if (!isPowerOfTwo(preferred) || preferred < minimum) {
    throw fault(`server preferred block size ${preferred} is not valid`);
  }
  if (maximum < minimum) {
    throw fault(`server maximum block size ${maximum} is not valid`);
  }
  const most = Math.min(maximum - maximum % minimum, MAX_PAYLOAD);
  return { minimum, preferred, maximum: most };
}

function checkSize(size: number, sizes?: BlockSizes): void {
  if (sizes && size % sizes.minimum !== 0) {
    throw fault(
      `export size ${size} is not multiple of minimum block size ${sizes.minimum}`,
    );
  }
  if (Number.isSafeInteger(size)) return;
  throw new BlockError("EFBIG", "The export is too large");
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"))
    .join("").replace(/^0+(?=.)/, "");
}
