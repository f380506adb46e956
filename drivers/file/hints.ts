/**
 * Hints to the file system about a new file: not to copy it on write (btrfs),
 * and to allocate its space in extents of a certain size (XFS). Both must be
 * given while the file is empty.
 *
 * @module
 */
import { BlockError, strerror } from "../../core/errors.ts";
import { errnoError } from "../../core/platform/system_calls.ts";
import type { Libc } from "../../core/platform/libc.ts";
import { localFiles, platform } from "../../core/platform/mod.ts";
import { openLibcDescriptor } from "./libc_file.ts";

/** Linux's numbers of these requests, with 64-bit words. */
const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_IOC_FSGETXATTR = 0x801c581f;
const FS_IOC_FSSETXATTR = 0x401c5820;
const FS_NOCOW_FL = 0x00800000;
const FS_XFLAG_EXTSIZE = 0x00000800;
/** Bytes of `struct fsxattr`. */
const FSXATTR_SIZE = 28;

/** Default bytes of an extent, as in QEMU. */
const USUAL_EXTENT = 1024 * 1024;

/** The hints. */
export interface Hints {
  readonly nocow: boolean;
  /** Bytes; 0 for no hint. Default: 1 MiB. */
  readonly extentSize?: number;
}

/**
 * Give hints about a file that has just been emptied. File systems without
 * support ignore them: they affect the speed of a file, not its content.
 *
 * @param warn Called if a requested extent size hint is refused.
 * @throws {BlockError} EINVAL if an extent cannot be that large; ENOTSUP if a
 * requested hint needs a library that is missing.
 */
export function giveHints(
  filename: string,
  { nocow, extentSize }: Hints,
  warn: (message: string) => void,
): void {
  if (extentSize !== undefined && extentSize > 0xffffffff) {
    throw new BlockError("EINVAL", "Extent size hint is too large");
  }
  const library = platform().libc();
  if (!library) {
    if (!nocow && !extentSize) return;
    throw new BlockError(
      "ENOTSUP",
      `'${nocow ? "nocow" : "extent_size_hint"}' takes the C library, which ` +
        `is not available: ${localFiles().whyNoLibc}`,
    );
  }
  const descriptor = openLibcDescriptor(library, filename, true);
  try {
    if (nocow) setNoCopy(library, descriptor);
    const result = setExtentSize(
      library,
      descriptor,
      extentSize ?? USUAL_EXTENT,
    );
    if (result < 0 && extentSize) {
      const why = strerror(errnoError(-result).code);
      warn(`Failed to set extent size hint: ${why}`);
    }
  } finally {
    library.close(descriptor);
  }
}

function setNoCopy(library: Libc, descriptor: number): void {
  const bytes = new Uint8Array(8);
  const flags = new Int32Array(bytes.buffer);
  if (library.ioctl(descriptor, FS_IOC_GETFLAGS, bytes) < 0) return;
  flags[0] |= FS_NOCOW_FL;
  library.ioctl(descriptor, FS_IOC_SETFLAGS, bytes);
}

function setExtentSize(
  library: Libc,
  descriptor: number,
  size: number,
): number {
  const bytes = new Uint8Array(FSXATTR_SIZE);
  const fields = new Uint32Array(bytes.buffer);
  const result = library.ioctl(descriptor, FS_IOC_FSGETXATTR, bytes);
  if (result < 0) return result;
  fields[0] |= FS_XFLAG_EXTSIZE;
  fields[1] = size;
  return library.ioctl(descriptor, FS_IOC_FSSETXATTR, bytes);
}
