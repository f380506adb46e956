/**
 * The protocol driver `opfs`: files of the browser's own file system, and files
 * that the user let a page open. In a worker they are read and written through
 * a synchronous access handle; elsewhere they can only be read.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import type { IoVector } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { dataExtent, heldKind } from "../../core/held.ts";
import type {
  AccessMode,
  BlockNode,
  Extent,
  RequestFlags,
} from "../../core/node.ts";
import { type OptionTable, parseOptions } from "../../core/options.ts";
import { valueText } from "../../core/values.ts";
import { nodeOfBlob } from "./driver.ts";

/** A `FileSystemFileHandle`, as far as it is used. */
export interface OpfsFileHandle {
  /** The present content of the file. */
  getFile(): Promise<Blob>;
  /** Exclusive access, only in workers and not for all files. */
  createSyncAccessHandle?(): Promise<OpfsAccess>;
}

/** A `FileSystemSyncAccessHandle`, as far as it is used. */
export interface OpfsAccess {
  /** Fill a buffer; returns the number of bytes read. */
  read(into: Uint8Array, options: { at: number }): number;
  /** Write a buffer; returns the number of bytes written. */
  write(bytes: Uint8Array, options: { at: number }): number;
  /** Change the size. */
  truncate(size: number): void;
  /** The size in bytes. */
  getSize(): number;
  /** Make written bytes durable. */
  flush(): void;
  /** Release the access. */
  close(): void;
}

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  preallocation: {
    type: "enum",
    values: ["off"],
    default: "off",
    help: "Preallocation mode (allowed values: off)",
  },
};

/** `{driver: "opfs", handle}`: a `FileSystemFileHandle`, or access to one. */
export const opfsDriver: BlockDriver = {
  name: "opfs",
  role: "protocol",
  createOptions: CREATE_OPTIONS,
  parseFilename() {
    throw invalid("Unknown protocol 'opfs'");
  },

  async open(options, context) {
    const handle = handleOf(parseOptions({}, options, ["handle"]).handle);
    if (isAccess(handle)) {
      return new OpfsNode(handle, context.filename, context.readOnly, false);
    }
    if (!context.readOnly) {
      const access = await accessTo(handle);
      if (access) return new OpfsNode(access, context.filename, false, true);
    }
    return nodeOfBlob(opfsDriver, await fileOf(handle), context.filename);
  },

  async create(options) {
    const { handle: given, size = 0 } = parseOptions(CREATE_OPTIONS, options, [
      "handle",
    ]);
    const handle = handleOf(given);
    const access = isAccess(handle) ? handle : await accessTo(handle);
    if (!access) {
      throw new BlockError(
        "ENOTSUP",
        "Files of the browser can be written only in a worker",
      );
    }
    try {
      attempt(() => access.truncate(0));
      attempt(() => access.truncate(size as number));
    } finally {
      if (access !== handle) access.close();
    }
  },
};

function handleOf(value: unknown): OpfsFileHandle | OpfsAccess {
  if (heldKind(value) === "opfs") return value as OpfsFileHandle | OpfsAccess;
  throw invalid(
    `Parameter 'handle' expects a FileSystemFileHandle, not ${
      valueText(value)
    }`,
  );
}

function isAccess(handle: OpfsFileHandle | OpfsAccess): handle is OpfsAccess {
  return "getSize" in handle;
}

/** Exclusive access to a file; `undefined` if it is not available. */
async function accessTo(
  handle: OpfsFileHandle,
): Promise<OpfsAccess | undefined> {
  if (!handle.createSyncAccessHandle) return undefined;
  try {
    return await handle.createSyncAccessHandle();
  } catch (error) {
    const { name } = error as Error;
    // A file outside the browser's own file system.
    if (name === "InvalidStateError") return undefined;
    throw name === "NoModificationAllowedError"
      ? new BlockError("EAGAIN", "Another user of the file has it open", {
        cause: error,
      })
      : fileError(error);
  }
}

async function fileOf(handle: OpfsFileHandle): Promise<Blob> {
  try {
    return await handle.getFile();
  } catch (error) {
    throw fileError(error);
  }
}

const CODES = {
  NotFoundError: "ENOENT",
  NotAllowedError: "EACCES",
  SecurityError: "EACCES",
  QuotaExceededError: "ENOSPC",
  InvalidStateError: "EBADF",
} as const;

function fileError(thrown: unknown): BlockError {
  const { name } = thrown as Error;
  const code = Object.hasOwn(CODES, name)
    ? CODES[name as keyof typeof CODES]
    : "EIO";
  return new BlockError(code, undefined, { cause: thrown });
}

function attempt<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fileError(error);
  }
}

class OpfsNode implements BlockNode {
  readonly driver = opfsDriver;
  readonly children = {};
  readonly #access: OpfsAccess;
  readonly #isOurs: boolean;

  constructor(
    access: OpfsAccess,
    readonly filename: string,
    public readOnly: boolean,
    isOurs: boolean,
  ) {
    this.#access = access;
    this.#isOurs = isOurs;
  }

  get size(): number {
    return attempt(() => this.#access.getSize());
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async readv(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      const at = offset;
      part.fill(0, attempt(() => this.#access.read(part, { at })));
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async writev(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      const at = offset;
      const count = attempt(() => this.#access.write(part, { at }));
      if (count < part.length) throw new BlockError("ENOSPC");
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async truncate(size: number): Promise<void> {
    attempt(() => this.#access.truncate(size));
  }

  // deno-lint-ignore require-await
  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    attempt(() => this.#access.flush());
  }

  // deno-lint-ignore require-await
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    return dataExtent(this, offset, length);
  }

  // deno-lint-ignore require-await
  async setMode({ readOnly }: AccessMode): Promise<void> {
    this.readOnly = readOnly;
  }

  // deno-lint-ignore require-await
  async close(): Promise<void> {
    if (this.#isOurs) attempt(() => this.#access.close());
  }
}
