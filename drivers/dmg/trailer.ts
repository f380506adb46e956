/**
 * The trailer of a DMG: the last 512 bytes of the file, big-endian.
 *
 * @module
 */
import {
  allocate,
  isExactSize,
  roundUp,
  SECTOR_SIZE,
  viewOf,
} from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { u64 } from "../../core/read_only.ts";
import { readPadded } from "../../core/requests.ts";

/** A fault of the trailer or the tables that makes an image unusable. */
export class TableFault extends Error {
  /** A line that QEMU prints before the error. */
  readonly line?: string;

  /** Create the fault. */
  constructor(message: string, line?: string) {
    super(message);
    this.line = line;
  }
}

/** The error for an image that is refused. */
export function refusal(filename: string, why: string): BlockError {
  const detail = `: ${why}`;
  return new BlockError(
    "EINVAL",
    `Could not open '${filename}': Invalid argument${detail}`,
    { detail },
  );
}

/** Bytes of a file. */
export interface Area {
  /** Its offset. */
  readonly offset: number;
  /** Its length. */
  readonly length: number;
}

/** The content of the trailer. */
export interface Trailer {
  /** Bytes of the disk. */
  readonly size: number;
  /** Added to the offsets of all chunks. */
  readonly dataOffset: number;
  /** The resource fork; empty in newer images. */
  readonly fork: Area;
  /** The XML property list; empty in old images. */
  readonly list: Area;
}

/** Offsets of the fields that are used. */
const AT = {
  dataOffset: 24,
  forkOffset: 40,
  forkLength: 48,
  segments: 60,
  listOffset: 216,
  listLength: 224,
  sectors: 492,
} as const;

/** Files that do not consist of whole sectors have bytes after the trailer. */
const WINDOW = 2 * SECTOR_SIZE - 1;
const MAGIC_SIZE = 4;

/**
 * Find and read the trailer.
 *
 * @throws {BlockError} EINVAL if there is none, ENOTSUP if the image is
 * encrypted, or split.
 * @throws {TableFault} if it is invalid.
 */
export async function readTrailer(file: BlockNode): Promise<Trailer> {
  const length = roundUp(file.size, SECTOR_SIZE);
  if (length < SECTOR_SIZE) {
    throw invalid("dmg file must be at least 512 bytes long");
  }
  const start = Math.max(0, length - WINDOW);
  const bytes = allocate(2 * SECTOR_SIZE);
  await readPadded(file, start, [bytes]);
  const text = String.fromCharCode(...bytes);
  const at = text.slice(0, SECTOR_SIZE - 1 + MAGIC_SIZE).indexOf("koly");
  if (at < 0) throw await withoutTrailer(file, text);
  const view = viewOf(bytes.subarray(at, at + SECTOR_SIZE));
  const segments = view.getUint32(AT.segments);
  if (segments > 1) {
    throw new BlockError(
      "ENOTSUP",
      `This is one of ${segments} files that an image was split into, ` +
        "which cannot be read",
      {
        hint: "On a Mac, join them: " +
          "hdiutil convert first.dmg -format UDZO -o new.dmg",
      },
    );
  }
  return readFields(view, start + at);
}

function readFields(view: DataView, trailer: number): Trailer {
  const area = (what: string, offset: number, length: number) => {
    if (offset >= trailer || length > trailer - offset) {
      throw new TableFault(`its ${what} does not lie before its trailer`);
    }
    return { offset, length };
  };
  const field = (at: number) => u64(view, at);
  const dataOffset = field(AT.dataOffset);
  if (dataOffset > trailer) {
    throw new TableFault("its data does not lie before its trailer");
  }
  const size = field(AT.sectors) * SECTOR_SIZE;
  if (!isExactSize(size)) throw new TableFault("its disk is too large");
  return {
    size,
    dataOffset,
    fork: area("resource fork", field(AT.forkOffset), field(AT.forkLength)),
    list: area("property list", field(AT.listOffset), field(AT.listLength)),
  };
}

/**
 * The error for a file without a trailer. Encrypted images have a magic at the
 * start or, if old, at the end.
 */
async function withoutTrailer(
  file: BlockNode,
  end: string,
): Promise<BlockError> {
  const head = allocate(8);
  await readPadded(file, 0, [head]);
  const isEncrypted = String.fromCharCode(...head) === "encrcdsa" ||
    end.includes("cdsaencr");
  return isEncrypted
    ? new BlockError("ENOTSUP", "Encrypted dmg files cannot be read", {
      hint: "On a Mac, decrypt it: " +
        "hdiutil convert old.dmg -format UDZO -o new.dmg",
    })
    : invalid("Could not locate UDIF trailer in dmg file");
}
