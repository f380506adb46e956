/**
 * The protocol driver `file`: bytes in a local file.
 *
 * @module
 */
import type {
  BlockDriver,
  CreateContext,
  OpenContext,
} from "../../core/driver.ts";
import { asBlockError, BlockError, invalid } from "../../core/errors.ts";
import {
  isAbsolutePath,
  lastSeparator,
  normalizePath,
} from "../../core/names.ts";
import {
  notAmong,
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { ACCESS, ALL_ACCESS } from "../../core/permissions.ts";
import type { FileInfo, HostFile } from "../../core/platform/files.ts";
import { deviceNumbers } from "../../core/platform/system_calls.ts";
import { localFiles, platform } from "../../core/platform/mod.ts";
import { isSurvived } from "../../core/runtime.ts";
import type { AioMode, Permissions } from "../../core/traits.ts";
import { nameText, shortened } from "../../core/values.ts";
import type { Locking } from "./lock.ts";
import { FileNode } from "./node.ts";

/** How a path is opened. */
export const OPEN_OPTIONS: OptionTable = {
  filename: { type: "string", help: "File name of the image" },
  io: {
    type: "enum",
    values: ["auto", "libc", "deno"],
    default: "auto",
    help: "How the file is used: through libc (needs --allow-ffi), or as the " +
      "runtime does it",
  },
  aio: {
    type: "string",
    help: "Have all requests made by threads (threads, native or io_uring)",
  },
  locking: {
    type: "string",
    default: "auto",
    help: "Whether to lock the file (on/off; auto: where that is possible)",
  },
};

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  nocow: {
    type: "boolean",
    help: "Turn off copy-on-write (valid only on btrfs)",
  },
  // Other modes are refused with messages of their own.
  preallocation: {
    type: "string",
    help: "Preallocation mode (allowed values: off, falloc, full)",
  },
  extent_size_hint: {
    type: "size",
    help: "Extent size hint for the image file, 0 to disable",
  },
};

/** A driver of one kind of thing that has a path. */
export interface PathDriver extends BlockDriver {
  /** What its paths must be; ends a sentence. */
  readonly kind: string;
  /** Whether a path is of that kind. */
  isKind(info: FileInfo): boolean;
  /**
   * Refuse a path that can be opened for writing, but not written to.
   *
   * @throws {BlockError} EACCES.
   */
  checkWritable?(info: FileInfo): void;
}

/** Local files. */
export const fileDriver: PathDriver = {
  name: "file",
  role: "protocol",
  kind: "a regular file",
  // For a socket, opening gives the better message.
  isKind: ({ isFile, isSocket }) => isFile || isSocket,
  openOptions: OPEN_OPTIONS,
  createOptions: CREATE_OPTIONS,
  canonicalName,
  ownFolder,
  open: (options, context) => openPath(fileDriver, options, context),

  async create(options, context) {
    const { nocow = false, extent_size_hint, ...others } = options;
    const hints = parseOptions(CREATE_OPTIONS, { nocow, extent_size_hint });
    const { size, preallocation: mode, ...file } = createOptions(
      fileDriver,
      others,
    );
    const preallocation = oneOf(PREALLOCATION_MODES, mode);
    makeFile(file.filename);
    const node = await openToCreate(fileDriver, file, context);
    const whole = roundUp(size, SECTOR_SIZE);
    try {
      if (node.size > 0) {
        // A size that no file can have is refused while the old content is
        // there.
        if (whole > node.size) await node.truncate(whole);
        await node.truncate(0);
      }
      const { giveHints } = await import("./hints.ts");
      giveHints(file.filename, {
        nocow: hints.nocow as boolean,
        extentSize: hints.extent_size_hint as number | undefined,
      }, context.warn);
      if (whole > 0 || preallocation !== "off") {
        await node.truncate(whole, { preallocation });
      }
      if (preallocation === "off") await allocateFirstBlock(node);
    } finally {
      await node.close();
    }
  },
};

/** Open a node according to `options` and `context`. */
export async function openPath(
  driver: PathDriver,
  options: OptionValues,
  context: OpenContext,
): Promise<FileNode> {
  const parsed = openOptions(driver, options);
  if (parsed.filename === "") throw nameless(driver.name);
  const { aio = context.aio } = parsed;
  const isInfo = context.purpose === "info" && !context.direct;
  if (aio === "native" && !context.direct) throw NOT_DIRECT;
  return await openFile(driver, {
    ...parsed,
    // Loading libc is not worth it for reading a header.
    ...(parsed.io === "auto" && isInfo && { io: "deno" }),
    readOnly: context.readOnly,
    noFlush: context.noFlush,
    aio,
    direct: context.direct,
    unlocked: (why) => reportUnlocked(parsed, context, why),
  });
}

/** Open the file of a new image, without destroying a file that is in use. */
export async function openToCreate(
  driver: PathDriver,
  file: FileOptions,
  context: CreateContext,
): Promise<FileNode> {
  const node = await openFile(driver, {
    ...file,
    readOnly: false,
    noFlush: false,
    unlocked: (why) => context.unlocked(cannotLock(file.filename, why)),
  });
  try {
    node.setPermissions(EMPTYING);
    return node;
  } catch (error) {
    node.close();
    throw error;
  }
}

const NOT_DIRECT = new BlockError(
  "EINVAL",
  "aio=native was specified, but it requires cache.direct=on, which was not " +
    "specified.",
);

/** Claims while emptying an existing file: others must not resize it. */
const EMPTYING: Permissions = {
  needs: ACCESS.WRITE | ACCESS.RESIZE,
  shares: ALL_ACCESS & ~ACCESS.RESIZE,
};

/** The parsed options of a file. */
export interface FileOptions {
  readonly filename: string;
  readonly io: string;
  readonly aio?: AioMode;
  readonly locking: Locking;
}

function openOptions(
  { name }: PathDriver,
  options: OptionValues,
): FileOptions {
  const parsed = parseOptions(OPEN_OPTIONS, options);
  const { filename, io = "auto", aio, locking = "auto" } = parsed;
  if (filename === undefined) throw nameless(name);
  return {
    filename: String(filename),
    io: String(io),
    ...(aio !== undefined && { aio: oneOf(AIO_MODES, aio) }),
    locking: oneOf(LOCKING_MODES, locking),
  };
}

function nameless(driver: string): BlockError {
  return invalid(`The '${driver}' block driver requires a file name`);
}

const AIO_MODES: readonly AioMode[] = ["threads", "native", "io_uring"];
const PREALLOCATION_MODES = ["off", "falloc", "full"] as const;
const LOCKING_MODES = ["auto", "on", "off"] as const;

function oneOf<T extends string>(values: readonly T[], value: unknown): T {
  if (values.includes(value as T)) return value as T;
  const text = shortened(String(value), 80);
  throw notAmong(`invalid parameter value: ${text}`, values);
}

/** Parse the options of a new image. */
export function createOptions(driver: PathDriver, options: OptionValues) {
  const { size = 0, preallocation = "off", ...others } = parseOptions(
    { ...OPEN_OPTIONS, ...CREATE_OPTIONS },
    options,
  );
  return {
    ...openOptions(driver, others),
    size: size as number,
    preallocation: String(preallocation),
  };
}

function cannotLock(filename: string, why: string): string {
  return `'${filename}' cannot be locked: ${why}`;
}

/** Report missing locks if they were asked for, or the file may be written. */
function reportUnlocked(
  { filename, locking }: FileOptions,
  context: OpenContext,
  why: string,
): void {
  const message = cannotLock(filename, why);
  if (locking === "on") context.warn(message);
  else if (!context.readOnly) context.unlocked(message);
}

/** How to open a file. */
interface FileRequest extends FileOptions {
  readonly readOnly: boolean;
  readonly noFlush: boolean;
  /** Whether to bypass the page cache. */
  readonly direct?: boolean;
  unlocked(why: string): void;
}

async function openFile(
  driver: PathDriver,
  request: FileRequest,
): Promise<FileNode> {
  const { filename, readOnly } = request;
  const info = lookAt(filename);
  // The system's own message takes precedence where there is one.
  if (!readOnly && info.isDirectory) {
    throw cannotOpen(filename, new BlockError("EISDIR"));
  }
  // Opening a pipe would wait until its other end is opened.
  if (!driver.isKind(info)) throw wrongKind(driver, filename);
  if (!readOnly) driver.checkWritable?.(info);
  const openHost = await hostOpener(request);
  const open = (readOnly: boolean) => {
    try {
      return openHost(readOnly);
    } catch (error) {
      throw cannotOpen(filename, error);
    }
  };
  const host = open(readOnly);
  try {
    // The command line survives the signal in any case.
    if (!readOnly && !isSurvived("SIGXFSZ")) {
      (await import("./size_limit.ts")).failAtSizeLimit();
    }
    return new FileNode(host, {
      ...request,
      driver,
      fixedSize: !info.isFile,
      reopen(readOnly) {
        if (!readOnly) driver.checkWritable?.(info);
        return open(readOnly);
      },
    });
  } catch (error) {
    host.close();
    throw cannotOpen(filename, error);
  }
}

/** Opens the file in the requested way, or else the best one. */
async function hostOpener(
  { io, filename, direct }: FileRequest,
): Promise<(readOnly: boolean) => HostFile> {
  if (direct) {
    const { notDirect, openDirectFile } = await import("./direct_file.ts");
    return (readOnly) => {
      if (io === "deno") throw notDirect("use libc, not io=deno");
      return openDirectFile(filename, readOnly);
    };
  }
  const useLibc = io === "auto" ? platform().libc() !== null : io === "libc";
  if (!useLibc) return (readOnly) => localFiles().open(filename, !readOnly);
  const { openLibcFile } = await import("./libc_file.ts");
  return (readOnly) => openLibcFile(filename, readOnly);
}

function lookAt(filename: string): FileInfo {
  try {
    checkName(filename);
    return localFiles().stat(filename);
  } catch (error) {
    throw cannotOpen(filename, error);
  }
}

function wrongKind({ name, kind }: PathDriver, filename: string): BlockError {
  return new BlockError(
    "EISDIR",
    `'${name}' driver requires '${filename}' to be ${kind}`,
  );
}

/**
 * Allocate the first block of a file. QEMU does so because a hole would not
 * reveal the alignment of direct I/O; doing the same keeps sizes and maps
 * equal.
 */
async function allocateFirstBlock(node: FileNode): Promise<void> {
  if (node.size === 0) return;
  const length = node.size < FIRST_BLOCK ? SECTOR_SIZE : FIRST_BLOCK;
  await node.writev(0, [new Uint8Array(length)]);
}

const FIRST_BLOCK = 4096;

/** Create an empty file, unless there is one. */
function makeFile(filename: string): void {
  refuseBlocking(filename);
  try {
    checkName(filename);
    localFiles().create(filename);
  } catch (error) {
    throw asBlockError(error).prefixed(`Could not create '${filename}': `);
  }
}

/**
 * Refuse a name that cannot be the intended one: the replacement character
 * stands for bytes that were not UTF-8, and lone surrogates would become it.
 */
function checkName(filename: string): void {
  if (filename.includes("\0")) throw new BlockError("ENOENT");
  if (filename.includes("\ufffd") || !filename.isWellFormed()) {
    throw invalid("The name of the file is not UTF-8");
  }
}

/** Opening a pipe, or waiting for a medium, could take forever. */
function refuseBlocking(filename: string): void {
  let info: FileInfo;
  try {
    info = localFiles().stat(filename);
  } catch {
    return; // If it cannot be created, creating it reports why.
  }
  const { isDirectory } = info;
  if (!isDirectory && !fileDriver.isKind(info)) {
    throw wrongKind(fileDriver, filename);
  }
}

function cannotOpen(filename: string, error: unknown): BlockError {
  return asBlockError(error).prefixed(
    `Could not open '${nameText(filename)}': `,
  );
}

/** Follow links as far as the path exists, and resolve the rest by name. */
export function canonicalName(filename: string): string {
  const path = normalizeStart(filename);
  return resolveLinks(path, 40) ?? normalizePath(path);
}

/** The folder of a plain file, or of one that does not exist yet. */
function ownFolder(filename: string): string | undefined {
  try {
    if (!localFiles().stat(filename).isFile) return undefined;
  } catch {
    // Opening it will report the problem.
  }
  const end = lastSeparator(filename) + 1;
  const folder = canonicalName(filename.slice(0, end) || ".");
  // Names there may refer to open files, such as standard input.
  return /^\/(dev|proc\/.*)$/.test(folder) ? undefined : folder;
}

/** An absolute path that keeps its `..`, whose meaning depends on links. */
function normalizeStart(filename: string): string {
  if (isAbsolutePath(filename)) return filename;
  try {
    return `${localFiles().workingFolder()}/${filename}`;
  } catch {
    return filename;
  }
}

/**
 * `path` with its links followed; `undefined` without permission to look. A
 * link to a missing file counts: opening it could create that file.
 */
function resolveLinks(path: string, linksLeft: number): string | undefined {
  try {
    return normalizePath(localFiles().realPath(path));
  } catch (error) {
    if (asBlockError(error).code !== "ENOENT") return undefined;
  }
  let end = path.length;
  while (lastSeparator(path.slice(0, end)) === end - 1 && end > 0) end--;
  const start = lastSeparator(path.slice(0, end)) + 1;
  if (start === 0 || linksLeft === 0) return undefined;
  const folder = resolveLinks(path.slice(0, start), linksLeft);
  if (folder === undefined) return undefined;
  const here = `${folder}/${path.slice(start, end)}`;
  let target: string;
  try {
    target = localFiles().readLink(here);
  } catch {
    return normalizePath(here);
  }
  return resolveLinks(
    isAbsolutePath(target) ? target : `${folder}/${target}`,
    linksLeft - 1,
  );
}

/** A device driver's traits, needed before it is loaded. */
export interface DeviceTraits {
  /** The name of the driver. */
  readonly name: string;
  /** The role of the driver. */
  readonly role: "protocol";
  /** Whether a plain file name means one of its devices. */
  claimsFile(filename: string, info?: FileInfo): boolean;
  /** As for files. */
  canonicalName(filename: string): string;
}

/** Devices of the host: disks, partitions, loop devices. */
export const HOST_DEVICE: DeviceTraits = {
  name: "host_device",
  role: "protocol",
  claimsFile: (_filename, info) => isDevice(info),
  canonicalName,
};

/** Linux's major number of optical drives. */
const CDROM_MAJOR = 11;

/** Optical drives. */
export const HOST_CDROM: DeviceTraits = {
  name: "host_cdrom",
  role: "protocol",
  claimsFile: (_filename, info) =>
    info?.isBlockDevice === true && deviceNumbers(info.rdev)[0] === CDROM_MAJOR,
  canonicalName,
};

/** Whether a path is that of a block or character device. */
export function isDevice(info: FileInfo | undefined): boolean {
  return info !== undefined && (info.isBlockDevice || info.isCharDevice);
}
