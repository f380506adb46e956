/**
 * A server's replies in the negotiated form: simple, structured, or structured
 * with extended headers.
 *
 * @module
 */
import type { BlockError } from "../../core/errors.ts";
import type { MessageWriter } from "./bytes.ts";
import type { Run } from "./export.ts";
import {
  CHUNK,
  CHUNK_DONE,
  encodeText,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REPLY_SIZE,
  Fields,
  message,
  SIMPLE_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRUCTURED_REPLY_MAGIC,
  STRUCTURED_REPLY_SIZE,
  wireError,
} from "./wire.ts";

/** A request as received. */
export interface Request {
  readonly type: number;
  readonly flags: number;
  /** The client's cookie, which the reply repeats, in two halves. */
  readonly cookie: readonly [number, number];
  readonly offset: number;
  readonly length: number;
}

/** Sends replies to one client. */
export class Replies {
  /** Bytes to leave free before the data of a read. */
  readonly dataHeader: number;
  readonly #writer: MessageWriter;
  readonly #structured: boolean;
  readonly #extended: boolean;

  /** Replies in the negotiated form. */
  constructor(
    writer: MessageWriter,
    form: { readonly structured: boolean; readonly extended: boolean },
  ) {
    this.#writer = writer;
    this.#structured = form.structured;
    this.#extended = form.extended;
    this.dataHeader = !form.structured
      ? SIMPLE_REPLY_SIZE
      : 8 + (form.extended ? EXTENDED_REPLY_SIZE : STRUCTURED_REPLY_SIZE);
  }

  /** Report success. */
  success(request: Request): void {
    if (!this.#extended) this.#simple(request, 0);
    else this.#chunk(request, CHUNK.NONE, CHUNK_DONE, 0);
  }

  /**
   * Report success of a read without data, which needs a chunk nevertheless.
   */
  nothing(request: Request): void {
    this.#chunk(request, CHUNK.NONE, CHUNK_DONE, 0);
  }

  /** Report failure. */
  failure(request: Request, error: BlockError): void {
    const number = wireError(error.code);
    if (!this.#structured) return this.#simple(request, number);
    const text = encodeText(error.message).subarray(0, 4096);
    const body = 6 + text.length;
    const chunk = this.#chunk(request, CHUNK.ERROR, CHUNK_DONE, body);
    const at = chunk.bytes.length - body;
    chunk.setU32(at, number);
    chunk.setU16(at + 4, text.length);
    chunk.bytes.set(text, at + 6);
  }

  /**
   * Reply to a read or to a part of it: `buffer` holds the data after
   * `dataHeader` bytes, which are filled in here.
   */
  data(
    request: Request,
    offset: number,
    buffer: Uint8Array,
    isLast: boolean,
    written: () => void,
  ): void {
    const fields = new Fields(buffer);
    if (!this.#structured) this.#fillSimple(fields, request, 0);
    else {
      const { length } = buffer;
      const header = this.dataHeader - 8;
      const flags = isLast ? CHUNK_DONE : 0;
      this.#fillChunk(
        fields,
        request,
        CHUNK.OFFSET_DATA,
        flags,
        length - header,
      );
      fields.setU64(header, offset);
    }
    this.#writer.push(buffer, written);
  }

  /** Report a part of a read as zeroes. */
  hole(
    request: Request,
    offset: number,
    length: number,
    isLast: boolean,
  ): void {
    const flags = isLast ? CHUNK_DONE : 0;
    const chunk = this.#chunk(request, CHUNK.OFFSET_HOLE, flags, 12);
    const at = chunk.bytes.length - 12;
    chunk.setU64(at, offset);
    chunk.setU32(at + 8, length);
  }

  /** Report the runs of a context; `written` is called for the last one. */
  status(
    request: Request,
    context: number,
    runs: readonly Run[],
    written?: () => void,
  ): void {
    const flags = written ? CHUNK_DONE : 0;
    const [fixed, size] = this.#extended ? [8, 16] : [4, 8];
    const body = fixed + runs.length * size;
    const type = this.#extended ? CHUNK.BLOCK_STATUS_EXT : CHUNK.BLOCK_STATUS;
    const chunk = this.#chunk(request, type, flags, body, written);
    let at = chunk.bytes.length - body;
    chunk.setU32(at, context);
    if (this.#extended) chunk.setU32(at + 4, runs.length);
    at += fixed;
    for (const { length, flags } of runs) {
      if (this.#extended) {
        chunk.setU64(at, length);
        chunk.setU64(at + 8, flags);
      } else {
        chunk.setU32(at, length);
        chunk.setU32(at + 4, flags);
      }
      at += size;
    }
  }

  #simple(request: Request, error: number): void {
    const reply = message(SIMPLE_REPLY_SIZE);
    this.#fillSimple(reply, request, error);
    this.#writer.push(reply.bytes);
  }

  #fillSimple(fields: Fields, { cookie }: Request, error: number): void {
    fields.setU32(0, SIMPLE_REPLY_MAGIC);
    fields.setU32(4, error);
    fields.setU32(8, cookie[0]);
    fields.setU32(12, cookie[1]);
  }

  /** Queue a chunk; the caller fills in what follows its header. */
  #chunk(
    request: Request,
    type: number,
    flags: number,
    payload: number,
    written?: () => void,
  ): Fields {
    const header = this.#extended ? EXTENDED_REPLY_SIZE : STRUCTURED_REPLY_SIZE;
    const chunk = message(header + payload);
    this.#fillChunk(chunk, request, type, flags, payload);
    this.#writer.push(chunk.bytes, written);
    return chunk;
  }

  #fillChunk(
    fields: Fields,
    { cookie, offset }: Request,
    type: number,
    flags: number,
    payload: number,
  ): void {
    fields.setU32(
      0,
      this.#extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC,
    );
    fields.setU16(4, flags);
    fields.setU16(6, type);
    fields.setU32(8, cookie[0]);
    fields.setU32(12, cookie[1]);
    if (this.#extended) {
      fields.setU64(16, offset);
      fields.setU64(24, payload);
    } else fields.setU32(16, payload);
  }
}
