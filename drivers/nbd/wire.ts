/**
 * Constants and messages of the NBD protocol, for client and server.
 *
 * All integers are big-endian and unsigned; lengths and offsets are in bytes.
 *
 * @module
 */
import { BlockError, codeOfErrno, type ErrorCode } from "../../core/errors.ts";

/** Magic numbers of the greeting, as two halves each. */
export const NBD_MAGIC = [0x4e42444d, 0x41474943] as const; // NBDMAGIC
export const OPTION_MAGIC = [0x49484156, 0x454f5054] as const; // IHAVEOPT
export const OLDSTYLE_MAGIC = [0x00004202, 0x81861253] as const;
export const OPTION_REPLY_MAGIC = [0x0003e889, 0x045565a9] as const;

export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

export const REQUEST_SIZE = 28;
export const EXTENDED_REQUEST_SIZE = 32;
export const SIMPLE_REPLY_SIZE = 16;
export const STRUCTURED_REPLY_SIZE = 20;
export const EXTENDED_REPLY_SIZE = 32;

/** Flags of the greeting, and of the client's reply to it. */
export const HANDSHAKE = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;

export const OPTION = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

const OPTION_NAMES: { readonly [option: number]: string } = {
  1: "export name",
  2: "abort",
  3: "list",
  4: "peek",
  5: "starttls",
  6: "info",
  7: "go",
  8: "structured reply",
  9: "list meta context",
  10: "set meta context",
  11: "extended headers",
};

/** The name of an option in messages. */
export function optionName(option: number): string {
  return OPTION_NAMES[option] ?? "<unknown>";
}

export const REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERROR_UNSUPPORTED: 0x80000001,
  ERROR_POLICY: 0x80000002,
  ERROR_INVALID: 0x80000003,
  ERROR_PLATFORM: 0x80000004,
  ERROR_TLS_REQUIRED: 0x80000005,
  ERROR_UNKNOWN: 0x80000006,
  ERROR_SHUTDOWN: 0x80000007,
  ERROR_BLOCK_SIZE_REQUIRED: 0x80000008,
  ERROR_TOO_BIG: 0x80000009,
  ERROR_EXTENDED_HEADERS_REQUIRED: 0x8000000a,
} as const;

const REPLY_NAMES: { readonly [type: number]: string } = {
  [REPLY.ACK]: "ack",
  [REPLY.SERVER]: "server",
  [REPLY.INFO]: "info",
  [REPLY.META_CONTEXT]: "meta context",
};

/** The name of a reply type in messages. */
export function replyName(type: number): string {
  return REPLY_NAMES[type] ?? "<unknown>";
}

export const INFO = {
  EXPORT: 0,
  NAME: 1,
  DESCRIPTION: 2,
  BLOCK_SIZE: 3,
} as const;

/** Transmission flags: the abilities of an export. */
export const FLAG = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

export const COMMAND = {
  READ: 0,
  WRITE: 1,
  DISCONNECT: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

const COMMAND_NAMES = [
  "read",
  "write",
  "disconnect",
  "flush",
  "trim",
  "cache",
  "write zeroes",
  "block status",
];

/** The name of a command in messages. */
export function commandName(command: number): string {
  return COMMAND_NAMES[command] ?? "<unknown>";
}

/** Command flags. */
export const COMMAND_FLAG = {
  FUA: 1,
  NO_HOLE: 2,
  DF: 4,
  REQ_ONE: 8,
  FAST_ZERO: 16,
  PAYLOAD_LEN: 32,
} as const;

/** Chunk types of structured replies. */
export const CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

/** Bit of a chunk type: it reports an error. */
export const CHUNK_IS_ERROR = 0x8000;
/** Chunk flag: the last one of a reply. */
export const CHUNK_DONE = 1;

/** Extent flags of the context `base:allocation`. */
export const STATE = { HOLE: 1, ZERO: 2, DIRTY: 1 } as const;

export const BASE_ALLOCATION = "base:allocation";
export const ALLOCATION_DEPTH = "qemu:allocation-depth";
export const DIRTY_BITMAP = "qemu:dirty-bitmap:";

/** Most bytes of data in a request or option. */
export const MAX_PAYLOAD = 32 * 1024 * 1024;
/** Most bytes of a name. */
export const MAX_STRING = 4096;

/** Error numbers of the protocol, which are Linux's. */
const WIRE_ERRORS: { readonly [code in ErrorCode]?: number } = {
  EPERM: 1,
  EACCES: 1,
  EROFS: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EFBIG: 28,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
};

/** The protocol's number for an error: EINVAL for those without one. */
export function wireError(code: ErrorCode): number {
  return WIRE_ERRORS[code] ?? 22;
}

const KNOWN_ERRORS = new Set([1, 5, 12, 22, 28, 75, 95, 108]);

/** The error for a number of the protocol; unknown numbers count as EINVAL. */
export function errorOfWire(number: number, text?: string): BlockError {
  const code = KNOWN_ERRORS.has(number) ? codeOfErrno(number) : "EINVAL";
  return new BlockError(code, undefined, {
    // QEMU reports only the system's text.
    ...(text && { cause: new Error(text) }),
  });
}

/** Big-endian numbers in a message. */
export class Fields {
  /** The bytes, for texts and data among them. */
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  /** Access these bytes. */
  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  /** Read 16 bits. */
  u16(at: number): number {
    return this.#view.getUint16(at);
  }

  /** Read 32 bits. */
  u32(at: number): number {
    return this.#view.getUint32(at);
  }

  /** Read 64 bits; inexact for 2^53 and more. */
  u64(at: number): number {
    return this.#view.getUint32(at) * 2 ** 32 + this.#view.getUint32(at + 4);
  }

  /** Set 16 bits. */
  setU16(at: number, value: number): void {
    this.#view.setUint16(at, value);
  }

  /** Set 32 bits. */
  setU32(at: number, value: number): void {
    this.#view.setUint32(at, value);
  }

  /** Set 64 bits. */
  setU64(at: number, value: number): void {
    this.#view.setUint32(at, Math.floor(value / 2 ** 32));
    this.#view.setUint32(at + 4, value % 2 ** 32);
  }

  /** Write a magic number. */
  setMagic(at: number, [high, low]: readonly [number, number]): void {
    this.setU32(at, high);
    this.setU32(at + 4, low);
  }

  /** Whether a magic number is at an offset. */
  isMagic(at: number, [high, low]: readonly [number, number]): boolean {
    return this.u32(at) === high && this.u32(at + 4) === low;
  }
}

/** A zeroed message of some length. */
export function message(length: number): Fields {
  return new Fields(new Uint8Array(length));
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Encode text. */
export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

/** Decode text; invalid UTF-8 is replaced. */
export function decodeText(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/** Concatenate pieces into a message. */
export function joined(...pieces: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(
    pieces.reduce((sum, { length }) => sum + length, 0),
  );
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** A 16-bit number as bytes. */
export function u16Bytes(value: number): Uint8Array {
  const fields = message(2);
  fields.setU16(0, value);
  return fields.bytes;
}

/** A 32-bit number as bytes. */
export function u32Bytes(value: number): Uint8Array {
  const fields = message(4);
  fields.setU32(0, value);
  return fields.bytes;
}

/** A text preceded by its length. */
export function lengthAndText(text: string): Uint8Array {
  const bytes = encodeText(text);
  return joined(u32Bytes(bytes.length), bytes);
}

/**
 * Block size constraints of an export.
 *
 * @category Network
 */
export interface BlockSizes {
  /** Requests must be multiples of this power of two. */
  readonly minimum: number;
  /** Requests should be multiples of this. */
  readonly preferred: number;
  /** Most bytes that a request moves. */
  readonly maximum: number;
}
