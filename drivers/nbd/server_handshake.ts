/**
 * The handshake phase of the server: greeting and options, until the client has
 * entered the export or leaves.
 *
 * @module
 */
import type { ByteStream } from "../../core/platform/sockets.ts";
import {
  ConnectionLost,
  endStream,
  MessageReader,
  MessageWriter,
} from "./bytes.ts";
import { type Export, exportFlags, selectContexts } from "./export.ts";
import {
  decodeText,
  encodeText,
  type Fields,
  HANDSHAKE,
  INFO,
  joined,
  lengthAndText,
  MAX_PAYLOAD,
  MAX_STRING,
  message,
  NBD_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  optionName,
  REPLY,
  u16Bytes,
  u32Bytes,
} from "./wire.ts";

/** The result of the negotiation. */
export interface Agreement {
  readonly reader: MessageReader;
  readonly writer: MessageWriter;
  readonly stream: ByteStream;
  /** Whether structured replies were negotiated. */
  readonly structured: boolean;
  /** Whether extended headers, with 64-bit lengths, were negotiated. */
  readonly extended: boolean;
  /** The ids of the selected metadata contexts. */
  readonly contexts: readonly number[];
}

/** The server's TLS; see `tls.ts`. */
export interface ServerTls {
  /** Encrypt a connection. */
  accept(stream: ByteStream): Promise<ByteStream>;
}

/** Why the handshake ended without a reply. */
export class HandshakeFailed extends Error {}

/** An option is refused; the client may continue with others. */
class Refusal extends Error {
  readonly type: number;

  constructor(type: number, message: string) {
    super(message);
    this.type = type;
  }
}

const invalid = (message: string) => new Refusal(REPLY.ERROR_INVALID, message);

/** Negotiates with a client. */
export class ServerHandshake {
  #stream: ByteStream;
  readonly #export: Export;
  readonly #tls: ServerTls | undefined;
  readonly #requireTls: boolean;
  #reader: MessageReader;
  #writer: MessageWriter;
  #isFixed = false;
  #withoutZeroes = false;
  #encrypted = false;
  #structured = false;
  #extended = false;
  /** The contexts selected by SET_META_CONTEXT, and their export. */
  #contexts: { readonly exportName: string; readonly ids: number[] } = {
    exportName: "",
    ids: [],
  };
  #option = 0;
  /** Bytes of the option's data not yet received. */
  #left = 0;

  constructor(
    stream: ByteStream,
    offered: Export,
    tls?: ServerTls,
    requireTls = true,
  ) {
    this.#stream = stream;
    this.#export = offered;
    this.#tls = tls;
    this.#requireTls = tls !== undefined && requireTls;
    this.#reader = new MessageReader(stream);
    this.#writer = new MessageWriter(stream);
  }

  /** Close the connection, encrypted or not. */
  close(): void {
    endStream(this.#stream);
  }

  /**
   * Negotiate; returns `undefined` if the client leaves properly.
   *
   * @throws {HandshakeFailed} if it violates the protocol.
   * @throws {ConnectionLost} if it is gone.
   */
  async run(): Promise<Agreement | undefined> {
    await this.#greet();
    for (;;) {
      const at = await this.#next(16, "opts magic");
      const { fields } = this.#reader;
      if (!fields.isMagic(at, OPTION_MAGIC)) {
        throw new HandshakeFailed("Bad magic received");
      }
      this.#option = fields.u32(at + 8);
      this.#left = fields.u32(at + 12);
      if (this.#left > MAX_PAYLOAD) {
        throw new HandshakeFailed(
          `len (${this.#left} ) is larger than max len (${MAX_PAYLOAD})`,
        );
      }
      const end = await this.#answer();
      if (end === "transmission") return this.#agreement();
      if (end === "left") return undefined;
      await this.#writer.drained();
    }
  }

  async #next(length: number, what: string): Promise<number> {
    try {
      return await this.#reader.next(length);
    } catch (error) {
      // A client ends TLS so if it does not accept the server.
      const message = error instanceof ConnectionLost && this.#encrypted
        ? "Cannot read from TLS channel: Software caused connection abort"
        : (error as Error).message;
      throw new HandshakeFailed(`Failed to read ${what}: ${message}`);
    }
  }

  #agreement(): Agreement {
    return {
      reader: this.#reader,
      writer: this.#writer,
      stream: this.#stream,
      structured: this.#structured,
      extended: this.#extended,
      contexts: this.#contexts.exportName === this.#export.name
        ? this.#contexts.ids
        : [],
    };
  }

  async #greet(): Promise<void> {
    const greeting = message(18);
    greeting.setMagic(0, NBD_MAGIC);
    greeting.setMagic(8, OPTION_MAGIC);
    greeting.setU16(16, HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES);
    this.#writer.push(greeting.bytes);
    const at = await this.#next(4, "flags");
    const flags = this.#reader.fields.u32(at);
    if (flags & ~(HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES)) {
      throw new HandshakeFailed(
        `Unknown client flags 0x${(flags >>> 0).toString(16)} received`,
      );
    }
    this.#isFixed = (flags & HANDSHAKE.FIXED_NEWSTYLE) !== 0;
    this.#withoutZeroes = (flags & HANDSHAKE.NO_ZEROES) !== 0;
  }

  /** Handle one option; returns how the handshake has ended, if it has. */
  async #answer(): Promise<"transmission" | "left" | undefined> {
    const option = this.#option;
    if (!this.#isFixed && option !== OPTION.EXPORT_NAME) {
      throw new HandshakeFailed(
        `Unsupported option ${option} (${optionName(option)})`,
      );
    }
    const needsTls = this.#requireTls && !this.#encrypted;
    if (option === OPTION.EXPORT_NAME) {
      if (needsTls) {
        throw new HandshakeFailed("Option 0x1 not permitted before TLS");
      }
      await this.#enterByName();
      return "transmission";
    }
    try {
      if (needsTls && option !== OPTION.STARTTLS) {
        throw new Refusal(
          REPLY.ERROR_TLS_REQUIRED,
          `Option 0x${option.toString(16)} not permitted before TLS`,
        );
      }
      return await this.#act(option);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      await this.#reader.skip(this.#left);
      this.#reply(error.type, encodeText(error.message));
      // After refusing an unencrypted client, there is nothing to say but
      // goodbye.
      if (option === OPTION.ABORT) return await this.#leave();
      return undefined;
    }
  }

  async #act(option: number): Promise<"transmission" | "left" | undefined> {
    switch (option) {
      case OPTION.ABORT:
        await this.#reader.skip(this.#left);
        this.#reply(REPLY.ACK);
        return await this.#leave();
      case OPTION.LIST:
        this.#expectEnd();
        this.#listExports();
        return undefined;
      case OPTION.STARTTLS:
        await this.#startTls();
        return undefined;
      case OPTION.INFO:
        await this.#inform(false);
        return undefined;
      case OPTION.GO:
        await this.#inform(true);
        return "transmission";
      case OPTION.STRUCTURED_REPLY:
        this.#expectEnd();
        this.#useStructuredReplies();
        return undefined;
      case OPTION.LIST_META_CONTEXT:
        await this.#listContexts();
        return undefined;
      case OPTION.SET_META_CONTEXT:
        await this.#setContexts();
        return undefined;
      case OPTION.EXTENDED_HEADERS:
        this.#expectEnd();
        if (this.#extended) {
          throw invalid("extended headers already negotiated");
        }
        this.#extended = this.#structured = true;
        this.#reply(REPLY.ACK);
        return undefined;
      default:
        throw new Refusal(
          REPLY.ERROR_UNSUPPORTED,
          `Unsupported option ${option} (${optionName(option)})`,
        );
    }
  }

  /** Send the last reply, if the client still reads. */
  async #leave(): Promise<"left"> {
    await this.#writer.drained().catch(() => {});
    return "left";
  }

  #reply(type: number, data: Uint8Array = new Uint8Array(0)): void {
    const reply = message(20 + data.length);
    reply.setMagic(0, OPTION_REPLY_MAGIC);
    reply.setU32(8, this.#option);
    reply.setU32(12, type);
    reply.setU32(16, data.length);
    reply.bytes.set(data, 20);
    this.#writer.push(reply.bytes);
  }

  /** The next bytes of the option's data. */
  async #take(length: number): Promise<Fields> {
    if (length > this.#left) {
      throw invalid(
        `Inconsistent lengths in option ${optionName(this.#option)}`,
      );
    }
    this.#left -= length;
    return await this.#reader.message(length);
  }

  async #takeText(length: number): Promise<string> {
    const { bytes } = await this.#take(length);
    if (bytes.includes(0)) {
      throw invalid(
        `Unexpected embedded NUL in option ${optionName(this.#option)}`,
      );
    }
    return decodeText(bytes);
  }

  /** The name of an export, preceded by its length. */
  async #takeName(): Promise<string> {
    const length = (await this.#take(4)).u32(0);
    if (length > MAX_STRING) throw invalid(`Invalid name length: ${length}`);
    return await this.#takeText(length);
  }

  /** Refuse unexpected data after an option. */
  #expectEnd(): void {
    if (this.#left === 0) return;
    throw invalid(
      `option '${optionName(this.#option)}' has unexpected length`,
    );
  }

  #expectExport(name: string): void {
    if (name === this.#export.name) return;
    const shown = name.length > 80 ? `${name.slice(0, 80)}...` : name;
    throw new Refusal(
      REPLY.ERROR_UNKNOWN,
      `export '${shown}' not present`,
    );
  }

  async #enterByName(): Promise<void> {
    if (this.#left > MAX_STRING || this.#extended) {
      throw new HandshakeFailed("Bad length received");
    }
    const name = decodeText(await this.#reader.bytes(this.#left));
    const offered = this.#export;
    if (name !== offered.name) throw new HandshakeFailed("export not found");
    const reply = message(this.#withoutZeroes ? 10 : 134);
    reply.setU64(0, offered.size);
    reply.setU16(8, exportFlags(offered, this.#features));
    this.#writer.push(reply.bytes);
  }

  get #features(): { structured: boolean; extended: boolean } {
    return { structured: this.#structured, extended: this.#extended };
  }

  #listExports(): void {
    const { name, description } = this.#export;
    this.#reply(
      REPLY.SERVER,
      joined(lengthAndText(name), encodeText(description)),
    );
    this.#reply(REPLY.ACK);
  }

  #useStructuredReplies(): void {
    if (this.#extended) {
      throw new Refusal(
        REPLY.ERROR_EXTENDED_HEADERS_REQUIRED,
        "extended headers already negotiated",
      );
    }
    if (this.#structured) throw invalid("structured reply already negotiated");
    this.#structured = true;
    this.#reply(REPLY.ACK);
  }

  /** Describe the export; with `enter`, transmission follows. */
  async #inform(enter: boolean): Promise<void> {
    const name = await this.#takeName();
    const count = (await this.#take(2)).u16(0);
    const wanted = await this.#take(count * 2);
    this.#expectEnd();
    this.#expectExport(name);
    const wants = new Set<number>();
    for (let i = 0; i < count; i++) wants.add(wanted.u16(i * 2));
    const offered = this.#export;
    const { preferred, maximum } = offered.blockSizes;
    let { minimum } = offered.blockSizes;
    if (!wants.has(INFO.BLOCK_SIZE) && minimum > 1) {
      if (!enter) {
        throw new Refusal(
          REPLY.ERROR_BLOCK_SIZE_REQUIRED,
          "request NBD_INFO_BLOCK_SIZE to use this export",
        );
      }
      minimum = 1;
    }
    if (wants.has(INFO.NAME)) this.#replyInfo(INFO.NAME, encodeText(name));
    if (offered.description !== "") {
      this.#replyInfo(INFO.DESCRIPTION, encodeText(offered.description));
    }
    this.#replyInfo(
      INFO.BLOCK_SIZE,
      joined(u32Bytes(minimum), u32Bytes(preferred), u32Bytes(maximum)),
    );
    const facts = message(10);
    facts.setU64(0, offered.size);
    facts.setU16(8, exportFlags(offered, this.#features));
    this.#replyInfo(INFO.EXPORT, facts.bytes);
    this.#reply(REPLY.ACK);
  }

  #replyInfo(type: number, data: Uint8Array): void {
    this.#reply(REPLY.INFO, joined(u16Bytes(type), data));
  }

  async #listContexts(): Promise<void> {
    const { ids } = await this.#takeQueries(true);
    for (const id of ids) this.#replyContext(0, id);
    this.#reply(REPLY.ACK);
  }

  async #setContexts(): Promise<void> {
    // An earlier selection is void, even if this one fails.
    this.#contexts = { exportName: "", ids: [] };
    if (!this.#structured) {
      throw invalid(
        "request option 'set meta context' when structured reply is not " +
          "negotiated",
      );
    }
    this.#contexts = await this.#takeQueries(false);
    for (const id of this.#contexts.ids) this.#replyContext(id, id);
    this.#reply(REPLY.ACK);
  }

  #replyContext(number: number, id: number): void {
    const { name } = this.#export.contexts[id];
    this.#reply(REPLY.META_CONTEXT, joined(u32Bytes(number), encodeText(name)));
  }

  /** The contexts that a list of queries selects, each once, in our order. */
  async #takeQueries(
    list: boolean,
  ): Promise<{ exportName: string; ids: number[] }> {
    const exportName = await this.#takeName();
    this.#expectExport(exportName);
    const count = (await this.#take(4)).u32(0);
    const { contexts } = this.#export;
    const chosen = new Set<number>();
    if (list && count === 0) contexts.forEach((_, id) => chosen.add(id));
    for (let i = 0; i < count; i++) {
      const query = await this.#takeQuery();
      for (const id of selectContexts(contexts, query, list)) chosen.add(id);
    }
    this.#expectEnd();
    return { exportName, ids: [...chosen].sort((a, b) => a - b) };
  }

  /** One query; empty, which selects nothing, if it is too long. */
  async #takeQuery(): Promise<string> {
    const length = (await this.#take(4)).u32(0);
    if (length <= MAX_STRING) return await this.#takeText(length);
    if (length > this.#left) await this.#take(length);
    await this.#reader.skip(length);
    this.#left -= length;
    return "";
  }

  async #startTls(): Promise<void> {
    if (this.#encrypted) {
      this.#expectEnd();
      throw invalid("TLS already enabled");
    }
    if (!this.#tls) {
      throw new Refusal(REPLY.ERROR_POLICY, "TLS not configured");
    }
    if (this.#left > 0) {
      throw new HandshakeFailed("option 'starttls' has unexpected length");
    }
    this.#reply(REPLY.ACK);
    await this.#writer.drained();
    // Bytes received before TLS must not be taken for encrypted ones.
    if (this.#reader.has(1)) {
      throw new HandshakeFailed("Unexpected data before the TLS handshake");
    }
    this.#stream = await this.#tls.accept(this.#stream);
    this.#reader = new MessageReader(this.#stream);
    this.#writer = new MessageWriter(this.#stream);
    this.#encrypted = true;
    this.#structured = this.#extended = false;
    this.#contexts = { exportName: "", ids: [] };
  }
}
