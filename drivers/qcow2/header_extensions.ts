/**
 * Header extensions: what is between the header and the backing file name.
 * (Specification: "Header extensions", "Feature name table".)
 *
 * @module
 */
import { allocate, roundUp, viewOf } from "../../core/bytes.ts";
import {
  asBlockError,
  BlockError,
  invalid,
  reasonOf,
} from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { Autoclear, Crypt, readUint64 } from "./format.ts";

/** Types of the header extensions that are understood. */
export const Extension = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  ENCRYPTION: 0x0537be77,
  BITMAPS: 0x23852875,
  DATA_FILE: 0x44415441,
} as const;

/** A header extension that is preserved as it is. */
export interface HeaderExtension {
  type: number;
  data: Uint8Array;
}

/** The bitmaps extension (specification: "Bitmaps extension"). */
export interface BitmapsExtension {
  count: number;
  directorySize: number;
  directoryOffset: number;
}

/** The fields of a header that are stored in extensions. */
export interface ExtensionFields {
  backingFormat?: string;
  dataFile?: string;
  /** Where the LUKS header is. */
  encryptionHeader?: { offset: number; length: number };
  bitmaps?: BitmapsExtension;
  /** Extensions of unknown types, preserved. */
  unknownExtensions: HeaderExtension[];
}

/** The fields of a header that its extensions must agree with. */
interface ExtendedHeader extends ExtensionFields {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly cryptMethod: number;
  readonly autoclear: { readonly low: number };
}

/** Receives warnings. */
interface Warned {
  warn(message: string): void;
}

/** Most bitmaps of an image. */
export const MAX_BITMAPS = 65535;
/** Most bytes of the bitmap directory. */
export const MAX_DIRECTORY_BYTES = 1024 * MAX_BITMAPS;

/** Shared: a header has room for a quarter of a million empty extensions. */
const NO_DATA = new Uint8Array();

/** The extensions between the header and the backing file name. */
async function* extensions(
  file: BlockNode,
  start: number,
  end: number,
): AsyncGenerator<HeaderExtension & { offset: number }> {
  for (let offset = start; offset < end;) {
    const head = allocate(8);
    await readOr(
      file,
      offset,
      head,
      `qcow2_read_extension: ERROR: pread fail from offset ${offset}: `,
    );
    const view = viewOf(head);
    const [type, length] = [view.getUint32(0), view.getUint32(4)];
    offset += 8;
    if (length > end - offset || offset > end) {
      throw invalid("Header extension too large");
    }
    if (type === Extension.END) return;
    const data = length > 0 ? allocate(length) : NO_DATA;
    if (length > 0) await readOr(file, offset, data, "");
    yield { type, data, offset };
    offset += roundUp(length, 8);
  }
}

/** Decode the extensions between `start` and `end` into the header. */
export async function readExtensions(
  file: BlockNode,
  header: ExtendedHeader,
  start: number,
  end: number,
  policy: Warned,
): Promise<void> {
  for await (const extension of extensions(file, start, end)) {
    const { type, data } = extension;
    switch (type) {
      case Extension.BACKING_FORMAT:
        if (data.length >= 16) {
          throw invalid(
            `ERROR: ext_backing_format: len=${data.length} too large (>=16)`,
          );
        }
        header.backingFormat = text(data);
        break;
      case Extension.FEATURE_NAMES:
        break; // Written anew with the header.
      case Extension.ENCRYPTION:
        header.encryptionHeader = parseEncryption(header, data);
        break;
      case Extension.BITMAPS:
        header.bitmaps = parseBitmaps(header, data, policy);
        break;
      case Extension.DATA_FILE:
        header.dataFile = text(data);
        break;
      default:
        header.unknownExtensions.push({ type, data });
    }
  }
}

function parseEncryption(
  header: ExtendedHeader,
  data: Uint8Array,
): { offset: number; length: number } {
  if (header.cryptMethod !== Crypt.LUKS) {
    throw invalid(
      "CRYPTO header extension only expected with LUKS encryption method",
    );
  }
  if (data.length !== 16) {
    throw invalid(
      `CRYPTO header extension size ${data.length}, but expected size 16`,
    );
  }
  const offset = readUint64(viewOf(data), 0);
  const clusterSize = 2 ** header.clusterBits;
  if (offset % clusterSize !== 0) {
    throw invalid(
      `Encryption header offset '${offset}' is not a multiple of cluster size '${clusterSize}'`,
    );
  }
  return { offset, length: readUint64(viewOf(data), 8) };
}

function parseBitmaps(
  header: ExtendedHeader,
  data: Uint8Array,
  policy: Warned,
): BitmapsExtension | undefined {
  if (data.length !== 24) {
    throw invalid("bitmaps_ext: Invalid extension length");
  }
  if (!(header.autoclear.low & Autoclear.BITMAPS)) {
    const why = header.version < 3
      ? "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap support; so now they must all be considered inconsistent"
      : "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent";
    policy.warn(
      `${why}\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix.`,
    );
    return undefined;
  }
  const view = viewOf(data);
  if (view.getUint32(4) !== 0) {
    throw invalid("bitmaps_ext: Reserved field is not zero");
  }
  const count = view.getUint32(0);
  const directorySize = readUint64(view, 8);
  const directoryOffset = readUint64(view, 16);
  if (count > MAX_BITMAPS) {
    throw invalid(
      `bitmaps_ext: Image has ${count} bitmaps, exceeding the QEMU supported maximum of ${MAX_BITMAPS}`,
    );
  }
  if (count === 0) {
    throw invalid("found bitmaps extension with zero bitmaps");
  }
  if (directoryOffset % 2 ** header.clusterBits !== 0) {
    throw invalid("bitmaps_ext: invalid bitmap directory offset");
  }
  if (directorySize > MAX_DIRECTORY_BYTES) {
    throw invalid(
      `bitmaps_ext: bitmap directory size (${directorySize}) exceeds the maximum supported size (${MAX_DIRECTORY_BYTES})`,
    );
  }
  return { count, directorySize, directoryOffset };
}

/** Names of incompatible features by bit, from the image's own table. */
export async function featureNames(
  file: BlockNode,
  start: number,
  end: number,
): Promise<Map<number, string>> {
  const names = new Map<number, string>();
  for await (const { type, data } of extensions(file, start, end)) {
    if (type !== Extension.FEATURE_NAMES) continue;
    // The last name may be cut short; one without letters ends the table.
    for (let at = 0; at + 2 < data.length && data[at + 2] !== 0; at += 48) {
      if (data[at] !== 0) continue;
      names.set(data[at + 1], text(data.subarray(at + 2, at + 48)));
    }
  }
  return names;
}

/** Zero-terminated text. */
export function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  // A byte order mark is part of a name.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** Read a part of the header; `message` precedes the reason of a failure. */
export async function readOr(
  file: BlockNode,
  offset: number,
  target: Uint8Array,
  message: string,
): Promise<void> {
  try {
    await file.readv(offset, [target]);
  } catch (error) {
    const { code } = asBlockError(error);
    throw new BlockError(code, message + reasonOf(error), { cause: error });
  }
}
