/**
 * The protocol driver `file`: bytes in a local file or block device.
 *
 * @module
 */
import type { BlockDriver, Preallocation } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { normalizePath } from "../../core/names.ts";
import {
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { openFsFile } from "./fs_file.ts";
import { denoError, type HostFile } from "./host.ts";
import { isLibcAvailable, openLibcFile } from "./libc.ts";
import { FileNode } from "./node.ts";

const OPEN_OPTIONS: OptionTable = {
  filename: { type: "string", help: "File name of the image" },
  io: {
    type: "enum",
    values: ["auto", "libc", "deno"],
    default: "auto",
    help: "How the file is used: through libc (needs --allow-ffi) or Deno",
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

  // deno-lint-ignore require-await -- opening is synchronous, as I/O is
  async open(options, context) {
    const { filename, io } = openOptions(options);
    return openFile(
      filename,
      // Loading libc takes 3 ms, which one look at a header does not repay.
      io === "auto" && context.purpose === "info" ? "deno" : io,
      context.readOnly,
      context.noFlush,
    );
  },

  async create(options) {
    const { filename, io, size, preallocation } = createOptions(options);
    makeEmpty(filename);
    const node = openFile(filename, io, false, false);
    try {
      await node.truncate(roundUp(size, SECTOR_SIZE), { preallocation });
      if (preallocation === "off") await allocateFirstBlock(node);
    } finally {
      await node.close();
    }
  },
};

function openOptions(options: OptionValues): { filename: string; io: string } {
  const { filename, io = "auto" } = parseOptions(OPEN_OPTIONS, options);
  if (filename === undefined) {
    throw new BlockError(
      "EINVAL",
      "The 'file' block driver requires a file name",
    );
  }
  return { filename: String(filename), io: String(io) };
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

function openFile(
  filename: string,
  io: string,
  readOnly: boolean,
  noFlush: boolean,
): FileNode {
  let host: HostFile | undefined;
  try {
    const { isFile, isDirectory } = Deno.statSync(filename);
    if (isDirectory) {
      throw new BlockError(
        "EISDIR",
        `'file' driver requires '${filename}' to be a regular file`,
      );
    }
    const useLibc = io === "libc" || (io === "auto" && isLibcAvailable());
    host = (useLibc ? openLibcFile : openFsFile)(filename, readOnly);
    return new FileNode(host, {
      driver: fileDriver,
      filename,
      readOnly,
      noFlush,
      fixedSize: !isFile,
    });
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

/** Make a file, or empty the one that is there; a device stays as it is. */
function makeEmpty(filename: string): void {
  try {
    Deno.openSync(filename, {
      write: true,
      create: true,
      truncate: true,
      mode: 0o644,
    }).close();
  } catch (error) {
    const { code, hint } = denoError(error);
    throw new BlockError(
      code,
      `Could not create '${filename}': ${new BlockError(code).message}`,
      { cause: error, hint },
    );
  }
}

function cannotOpen(filename: string, error: unknown): BlockError {
  return denoError(error).prefixed(`Could not open '${filename}': `);
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
