/**
 * The one error type of the block layer.
 *
 * @module
 */
import { withoutSecrets } from "./redaction.ts";
import { shortened, valueText } from "./values.ts";

/**
 * POSIX error names used as {@linkcode BlockError.code}.
 *
 * @category Errors
 */
export type ErrorCode =
  | "EPERM"
  | "ENOENT"
  | "EINTR"
  | "EIO"
  | "ENXIO"
  | "EBADF"
  | "EAGAIN"
  | "ENOMEM"
  | "EACCES"
  | "EBUSY"
  | "EEXIST"
  | "ENOTDIR"
  | "EISDIR"
  | "EINVAL"
  | "EMFILE"
  | "EFBIG"
  | "ENOSPC"
  | "EROFS"
  | "ERANGE"
  | "ENAMETOOLONG"
  | "ENOLCK"
  | "ENOSYS"
  | "ENOTSUP"
  | "ENOMEDIUM"
  | "ELOOP"
  | "ETIMEDOUT"
  | "ECANCELED"
  | "EPIPE"
  | "EADDRINUSE"
  | "EADDRNOTAVAIL"
  | "ENETUNREACH"
  | "ECONNRESET"
  | "ESHUTDOWN"
  | "ECONNREFUSED"
  | "EHOSTUNREACH";

/** Linux's number for each code, and its C library's text. */
const CODES: {
  readonly [code in ErrorCode]: readonly [errno: number, text: string];
} = {
  EPERM: [1, "Operation not permitted"],
  ENOENT: [2, "No such file or directory"],
  EINTR: [4, "Interrupted system call"],
  EIO: [5, "Input/output error"],
  ENXIO: [6, "No such device or address"],
  EBADF: [9, "Bad file descriptor"],
  EAGAIN: [11, "Resource temporarily unavailable"],
  ENOMEM: [12, "Cannot allocate memory"],
  EACCES: [13, "Permission denied"],
  EBUSY: [16, "Device or resource busy"],
  EEXIST: [17, "File exists"],
  ENOTDIR: [20, "Not a directory"],
  EISDIR: [21, "Is a directory"],
  EINVAL: [22, "Invalid argument"],
  EMFILE: [24, "Too many open files"],
  EFBIG: [27, "File too large"],
  ENOSPC: [28, "No space left on device"],
  EROFS: [30, "Read-only file system"],
  ERANGE: [34, "Numerical result out of range"],
  ENAMETOOLONG: [36, "File name too long"],
  ENOLCK: [37, "No locks available"],
  ENOSYS: [38, "Function not implemented"],
  ENOTSUP: [95, "Operation not supported"],
  ENOMEDIUM: [123, "No medium found"],
  ELOOP: [40, "Too many levels of symbolic links"],
  ETIMEDOUT: [110, "Connection timed out"],
  ECANCELED: [125, "Operation canceled"],
  EPIPE: [32, "Broken pipe"],
  EADDRINUSE: [98, "Address already in use"],
  EADDRNOTAVAIL: [99, "Cannot assign requested address"],
  ENETUNREACH: [101, "Network is unreachable"],
  ECONNRESET: [104, "Connection reset by peer"],
  ESHUTDOWN: [108, "Cannot send after transport endpoint shutdown"],
  ECONNREFUSED: [111, "Connection refused"],
  EHOSTUNREACH: [113, "No route to host"],
};

/**
 * The system's text for an error code, as C's `strerror`.
 *
 * @example
 * ```ts
 * import { strerror } from "@bdrv/bdrv";
 * console.log(strerror("EIO")); // Input/output error
 * ```
 *
 * @category Errors
 */
export function strerror(code: ErrorCode): string {
  return isErrorCode(code)
    ? CODES[code][1]
    : `Unknown error ${valueText(code)}`;
}

/** Whether a text is an error code. */
export function isErrorCode(text: unknown): text is ErrorCode {
  return typeof text === "string" && Object.hasOwn(CODES, text);
}

/** Linux's number for an error code. */
export function errno(code: ErrorCode): number {
  return CODES[code][0];
}

/** Linux's numbers that map to the code of another number. */
const ALIASES: { readonly [number: number]: ErrorCode } = {
  23: "EMFILE", // ENFILE
  26: "EBUSY", // ETXTBSY
  38: "ENOTSUP", // ENOSYS
  75: "EFBIG", // EOVERFLOW
  122: "ENOSPC", // EDQUOT
};

/** The error code for a number of Linux's; EIO if there is none. */
export function codeOfErrno(number: number): ErrorCode {
  if (ALIASES[number]) return ALIASES[number];
  for (const [code, [known]] of Object.entries(CODES)) {
    if (known === number) return code as ErrorCode;
  }
  return "EIO";
}

/**
 * Further facts about a {@linkcode BlockError}.
 *
 * @category Errors
 */
export interface BlockErrorOptions extends ErrorOptions {
  /** A second line for a human reader: what to try next. */
  hint?: string;
  /**
   * The part of the message that QEMU's own lacks. Programs that stand in for
   * QEMU's leave it out.
   */
  detail?: string;
  /** For an unknown word, the known ones, one of which may be meant. */
  words?: readonly string[];
}

/**
 * Everything that can go wrong with an image is reported as a `BlockError`.
 * `code` is stable; `message` is for people.
 *
 * @example
 * ```ts
 * import { BlockError, openImage } from "@bdrv/bdrv";
 * try {
 *   await openImage("no-such-file.qcow2");
 * } catch (error) {
 *   if (error instanceof BlockError) console.log(error.code); // ENOENT
 * }
 * ```
 *
 * @category Errors
 */
export class BlockError extends Error {
  /** The class name, so that a printed error says what it is. */
  override name = "BlockError";
  /** A POSIX error name. */
  readonly code: ErrorCode;
  /** A second line for a human reader, if there is one. */
  readonly hint?: string;
  /** The part of the message that QEMU's own lacks. */
  readonly detail?: string;
  /** For an unknown word, the known ones. */
  readonly words?: readonly string[];

  /** Create an error; the default message is the system's text for `code`. */
  constructor(
    code: ErrorCode,
    message: string = strerror(code),
    options: BlockErrorOptions = {},
  ) {
    // The message may quote anything, but must not reveal passwords.
    super(withoutSecrets(message), options);
    this.code = code;
    const { hint, detail } = options;
    this.hint = hint === undefined ? hint : withoutSecrets(hint);
    this.detail = detail === undefined ? detail : withoutSecrets(detail);
    this.words = options.words;
  }

  /** The same error with `prefix` before its message. */
  prefixed(prefix: string): BlockError {
    return new BlockError(this.code, prefix + this.message, {
      cause: this,
      hint: this.hint,
      detail: this.detail,
      words: this.words,
    });
  }
}

/** What an error's cause adds to the system's text; QEMU prints only that. */
export function detailOf(cause: BlockError): string {
  const { message, code } = cause;
  return message === strerror(code) ? "" : ` (${shortened(message)})`;
}

/**
 * Why something failed, in QEMU's words: the system's text for the code. An
 * unexpected exception keeps its own message, since EIO alone says nothing.
 */
export function reasonOf(thrown: unknown): string {
  const error = asBlockError(thrown);
  for (let cause: unknown = error; isBlockError(cause); cause = cause.cause) {
    if (cause instanceof UnexpectedError) return cause.message;
  }
  return strerror(error.code);
}

/** An exception that is not an I/O error: a bug in a driver. */
export class UnexpectedError extends BlockError {
  /** Wrap an exception, keeping its message. */
  constructor(message: string, cause: unknown) {
    super("EIO", message, { cause });
  }
}

/** Optional verbs that change or describe a node's content. */
export const OPTIONAL_VERBS = [
  "writev",
  "writeZeroes",
  "discard",
  "writeCompressed",
  "copyFrom",
  "flush",
  "truncate",
  "info",
  "setMode",
  "replaceChild",
  "setPermissions",
  "invalidate",
  "reopen",
] as const;

/** One of {@linkcode OPTIONAL_VERBS}. */
export type OptionalVerb = typeof OPTIONAL_VERBS[number];

/** A driver has called a verb of a node that lacks it. */
export class AbsentVerbError extends BlockError {
  /** The verb's name. */
  readonly verb: OptionalVerb;

  /** Wrap the engine's `TypeError`. */
  constructor(verb: OptionalVerb, cause: TypeError) {
    const message = `A node is asked to ${verb}(), which it cannot`;
    super("ENOTSUP", message, { cause });
    this.verb = verb;
  }
}

/** How engines word a call of a missing method. */
const NO_VERB = new RegExp(
  `\\.(${OPTIONAL_VERBS.join("|")})\\b\\S* is not a function`,
);

/** An error for invalid input: EINVAL. */
export function invalid(message: string, hint?: string): BlockError {
  return new BlockError("EINVAL", message, { hint });
}

/** Deno's message for a missing permission, a line to itself. */
const NOT_PERMITTED = /^Requires \w+ access\b.*, run again with .*$/m;

/**
 * The hint if loading a module lacks a permission, which users cannot guess.
 */
const OF_MODULES =
  "; it has to cover bdrv's own modules, which are loaded when they are used";

/**
 * The error for a range outside the disk: EINVAL, as for every mistake of a
 * caller. QEMU's tools report it as an I/O error.
 */
export class OutOfRangeError extends BlockError {
  /** Create an error with this message. */
  constructor(message: string) {
    super("EINVAL", message);
  }
}

/**
 * Wrap whatever was thrown; a {@linkcode BlockError} is returned unchanged.
 * Another error keeps its message, and its code if it is one of ours, and
 * becomes the cause. If a permission of Deno's is missing, the hint names it:
 * files need one, and so do modules that are loaded late.
 *
 * @category Errors
 */
export function asBlockError(error: unknown): BlockError {
  if (isBlockError(error)) return error;
  const { code, message } = factsOf(error);
  const [refusal] = NOT_PERMITTED.exec(message ?? "") ?? [];
  if (refusal !== undefined) {
    const isModule = error instanceof TypeError;
    const hint = isModule ? refusal + OF_MODULES : refusal;
    return new BlockError("EACCES", undefined, { cause: error, hint });
  }
  const text = message === undefined ? undefined : shortened(message);
  const verb = text === undefined ? undefined : NO_VERB.exec(text)?.[1];
  if (verb && error instanceof TypeError) {
    return new AbsentVerbError(verb as OptionalVerb, error);
  }
  if (text === undefined || isErrorCode(code)) {
    const known = isErrorCode(code) ? code : "EIO";
    return new BlockError(known, text, { cause: error });
  }
  return new UnexpectedError(text, error);
}

function isBlockError(error: unknown): error is BlockError {
  try {
    return error instanceof BlockError;
  } catch {
    return false; // A revoked proxy.
  }
}

/** The code and message of a thrown value, which may be anything. */
function factsOf(error: unknown): { code?: unknown; message?: string } {
  try {
    if (typeof error === "string" && error !== "") return { message: error };
    if (typeof error !== "object" || error === null) {
      return { message: `${valueText(error)} was thrown` };
    }
    const { code, message, name } = error as Partial<BlockError>;
    const said = [message, name].find((text) =>
      typeof text === "string" && text !== ""
    );
    return { code, message: said ?? `${valueText(error)} was thrown` };
  } catch {
    return {};
  }
}
