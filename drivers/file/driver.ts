/**
 * The protocol driver `file`: bytes in a local file or block device.
 *
 * @module
 */
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { normalizePath } from "../../core/names.ts";
import type { Preallocation } from "../../core/node.ts";
import {
  notAmong,
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import {
  ACCESS,
  ALL_ACCESS,
  type Permissions,
} from "../../core/permissions.ts";
import { nameText, shortened } from "../../core/values.ts";
import { openFsFile } from "./fs_file.ts";
import { denoError, type HostFile } from "./host.ts";
import { isLibcAvailable } from "./libc.ts";
import { openLibcFile } from "./libc_file.ts";
import type { Locking } from "./lock.ts";
import { FileNode } from "./node.ts";

const OPEN_OPTIONS: OptionTable = {
  filename: { type: "string", help: "File name of the image" },
  io: {
    type: "enum",
    values: ["auto", "libc", "deno"],
    default: "auto",
    help: "How the file is used: through libc (needs --allow-ffi) or Deno",
  },
  aio: {
    type: "string",
    help: "Accepted for QEMU's sake: threads, native or io_uring",
  },
  locking: {
    type: "string",
    default: "auto",
    help: "Whether to lock the file (on/off; auto: where that is possible)",
  },
};

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  preallocation: {
    type: "enum",
    values: ["off", "falloc", "full"],
    default: "off",
    help: "Preallocation mode (allowed values: off, falloc, full)",
  },
};

/** Local files and block devices. */
export const fileDriver: BlockDriver = {
  name: "file",
  role: "protocol",
  openOptions: OPEN_OPTIONS,
  createOptions: CREATE_OPTIONS,
  canonicalName,

  async open(options, context) {
    const parsed = openOptions(options);
    const node = openFile({
      ...parsed,
      // Loading libc takes 2 ms, which one look at a header does not repay.
      ...(parsed.io === "auto" && context.purpose === "info" && { io: "deno" }),
      readOnly: context.readOnly,
      noFlush: context.noFlush,
      unlocked: (why) => tellUnlocked(parsed, context, why),
    });
    const isNative = parsed.aio ? parsed.aio === "native" : context.nativeAio;
    if (isNative && !context.direct) {
      await node.close();
      throw NOT_DIRECT;
    }
    return node;
  },

  async create(options) {
    const { size, preallocation, ...file } = createOptions(options);
    makeFile(file.filename);
    const node = openFile({
      ...file,
      readOnly: false,
      noFlush: false,
      unlocked: () => {},
    });
    try {
      // Nothing is lost of a file that somebody else is using.
      node.setPermissions(EMPTYING);
      await node.truncate(0);
      await node.truncate(roundUp(size, SECTOR_SIZE), { preallocation });
      if (preallocation === "off") await allocateFirstBlock(node);
    } finally {
      await node.close();
    }
  },
};

const NOT_DIRECT = new BlockError(
  "EINVAL",
  "aio=native was specified, but it requires cache.direct=on, which was not " +
    "specified.",
);

/** What is done to a file that was there; others must not change its size. */
const EMPTYING: Permissions = {
  needs: ACCESS.WRITE | ACCESS.RESIZE,
  shares: ALL_ACCESS & ~ACCESS.RESIZE,
};

/** What its own options say of a file. */
interface FileOptions {
  readonly filename: string;
  readonly io: string;
  readonly aio?: string;
  readonly locking: Locking;
}

function openOptions(options: OptionValues): FileOptions {
  const parsed = parseOptions(OPEN_OPTIONS, options);
  const { filename, io = "auto", aio, locking = "auto" } = parsed;
  if (filename === undefined) {
    throw new BlockError(
      "EINVAL",
      "The 'file' block driver requires a file name",
    );
  }
  return {
    filename: String(filename),
    io: String(io),
    ...(aio !== undefined && { aio: oneOf(AIO_MODES, aio) }),
    locking: oneOf(LOCKING_MODES, locking),
  };
}

const AIO_MODES = ["threads", "native", "io_uring"] as const;
const LOCKING_MODES = ["auto", "on", "off"] as const;

function oneOf<T extends string>(values: readonly T[], value: unknown): T {
  if (values.includes(value as T)) return value as T;
  const text = shortened(String(value), 80);
  throw notAmong(`invalid parameter value: ${text}`, values);
}

function createOptions(options: OptionValues) {
  const { size = 0, preallocation = "off", ...others } = parseOptions(
    { ...OPEN_OPTIONS, ...CREATE_OPTIONS },
    options,
  );
  return {
    ...openOptions(others),
    size: size as number,
    preallocation: preallocation as Preallocation,
  };
}

/** Who asked for locks is told in any case, others if they might do damage. */
function tellUnlocked(
  { filename, locking }: FileOptions,
  context: OpenContext,
  why: string,
): void {
  const message = `'${filename}' cannot be locked: ${why}`;
  if (locking === "on") context.warn(message);
  else if (!context.readOnly) context.unlocked(message);
}

/** How to open a file. */
interface FileRequest extends FileOptions {
  readonly readOnly: boolean;
  readonly noFlush: boolean;
  unlocked(why: string): void;
}

function openFile(request: FileRequest): FileNode {
  const { filename, io, readOnly } = request;
  let host: HostFile | undefined;
  try {
    const { isFile, ...is } = Deno.statSync(filename);
    // To open a pipe would wait for whoever may open its other end.
    if (is.isDirectory || is.isFifo || is.isSocket) {
      throw new BlockError(
        "EISDIR",
        `'file' driver requires '${filename}' to be a regular file`,
      );
    }
    const useLibc = io === "libc" || (io === "auto" && isLibcAvailable());
    host = (useLibc ? openLibcFile : openFsFile)(filename, readOnly);
    const facts = { driver: fileDriver, fixedSize: !isFile };
    return new FileNode(host, { ...request, ...facts });
  } catch (error) {
    host?.close();
    if (error instanceof BlockError && error.code === "EISDIR") throw error;
    throw cannotOpen(filename, error);
  }
}

/**
 * Have a block behind the start of a file. QEMU does so, since a hole would
 * not tell it what alignment direct I/O needs; sizes and maps then agree.
 */
async function allocateFirstBlock(node: FileNode): Promise<void> {
  if (node.size === 0) return;
  const length = node.size < FIRST_BLOCK ? SECTOR_SIZE : FIRST_BLOCK;
  await node.writev(0, [new Uint8Array(length)]);
}

const FIRST_BLOCK = 4096;

/** Make an empty file, unless there is one. */
function makeFile(filename: string): void {
  try {
    Deno.openSync(filename, { write: true, create: true, mode: 0o644 }).close();
  } catch (error) {
    const { code, hint } = denoError(error);
    throw new BlockError(
      code,
      `Could not create '${nameText(filename)}': ${
        new BlockError(code).message
      }`,
      { cause: error, hint },
    );
  }
}

function cannotOpen(filename: string, error: unknown): BlockError {
  return denoError(error).prefixed(`Could not open '${nameText(filename)}': `);
}

/** Links followed as far as the path exists, the rest worked out by name. */
function canonicalName(filename: string): string {
  const path = normalizeStart(filename);
  return resolveLinks(path, 40) ?? normalizePath(path);
}

/** An absolute path, with whatever `..` it has: those depend on links. */
function normalizeStart(filename: string): string {
  if (filename.startsWith("/")) return filename;
  try {
    return `${Deno.cwd()}/${filename}`;
  } catch {
    return filename;
  }
}

/**
 * `path` with its links followed; `undefined` where we may not look. A link
 * to a file that is not there yet counts: opening it could make that file.
 */
function resolveLinks(path: string, linksLeft: number): string | undefined {
  try {
    return Deno.realPathSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) return undefined;
  }
  const trimmed = path.replace(/\/+$/, "");
  const slash = trimmed.lastIndexOf("/");
  if (slash < 0 || linksLeft === 0) return undefined;
  const folder = resolveLinks(trimmed.slice(0, slash) || "/", linksLeft);
  if (folder === undefined) return undefined;
  const here = `${folder}/${trimmed.slice(slash + 1)}`;
  let target: string;
  try {
    target = Deno.readLinkSync(here);
  } catch {
    return normalizePath(here);
  }
  return resolveLinks(
    target.startsWith("/") ? target : `${folder}/${target}`,
    linksLeft - 1,
  );
}
