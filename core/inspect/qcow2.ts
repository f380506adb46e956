/**
 * Inspecting QCOW and QCOW2 images (specification: "Header").
 *
 * @module
 */
import { nameText } from "../values.ts";
import type { Report } from "./report.ts";
import { bytesOf, type Window } from "./window.ts";

/** Most bytes of the first cluster that are searched for extensions. */
const MOST_EXTENSIONS = 256 * 1024;
/** Longest name of a backing file. */
const MAX_NAME = 1023;

const EXTENSION = {
  BACKING_FORMAT: 0xe2792aca,
  DATA_FILE: 0x44415441,
  BITMAPS: 0x23852875,
} as const;

/** Incompatible features that are known, by bit. */
const FEATURE = { DIRTY: 0, CORRUPT: 1, DATA_FILE: 2, COMPRESSION: 3 } as const;
/** Supported here, but refused by OpenStack's inspector. */
const EXTENDED_L2 = 4;

/** Inspect the header of an image. */
export async function inspectQcow2(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await window.readPadded(0, 512);
  const version = header.getUint32(4);
  if ((window.size ?? 512) < 72) {
    report.danger("truncated", "the file ends within the header");
    return;
  }
  report.virtualSize = size(header.getBigUint64(24));
  if (version !== 2 && version !== 3) {
    if (version === 1) report.encrypted = header.getUint32(36) !== 0;
    if (header.getBigUint64(8) !== 0n) {
      await backing(window, report, header);
    }
    report.danger(
      "version",
      version === 1
        ? "it has version 1 of the format, which is hardly tested any more"
        : `it has version ${version} of the format, which is unknown`,
    );
    return;
  }
  checkNumbers(window, report, header);
  const extensions = await readExtensions(window, report, header);
  if (header.getBigUint64(8) !== 0n) {
    await backing(window, report, header, extensions.backingFormat);
  }
  checkFeatures(report, header, version, extensions);
  report.snapshots = header.getUint32(60);
  if (report.snapshots > 0) {
    const many = report.snapshots === 1
      ? "a snapshot"
      : `${report.snapshots} snapshots`;
    report.note("snapshots", `it has ${many} within it`);
  }
  if (extensions.hasBitmaps) report.note("bitmaps", "it has bitmaps");
  const method = header.getUint32(32);
  report.encrypted = method !== 0;
  if (method > 2) {
    report.danger(
      "unknown-features",
      `it has the encryption method ${method}, which is unknown`,
    );
  } else if (method === 1) {
    report.warn(
      "weak-encryption",
      "it is encrypted with a deprecated method",
    );
  } else if (method === 2) {
    report.note("encrypted", "it is encrypted: its data was not inspected");
  }
}

/** Large numbers stay exact. */
export function size(value: bigint): number | bigint {
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
}

/** Check the header for invalid numbers, and offsets outside the file. */
function checkNumbers(window: Window, report: Report, header: DataView): void {
  const bits = header.getUint32(20);
  if (bits < 9 || bits > 21) {
    report.warn("damaged", `its clusters have 2^${bits} bytes`);
    return;
  }
  const version = header.getUint32(4);
  const headerLength = version === 2 ? 72 : header.getUint32(100);
  if (headerLength < (version === 2 ? 72 : 104) || headerLength > 2 ** bits) {
    report.warn("damaged", `its header has ${headerLength} bytes`);
  }
  if (version === 3 && header.getUint32(96) > 6) {
    report.warn("damaged", "its refcounts are wider than 64 bits");
  }
  const l1Bytes = header.getUint32(36) * 8;
  if (l1Bytes > 32 * 1024 ** 2) {
    report.danger("excessive-table", `its L1 table has ${l1Bytes} bytes`);
  }
  const covered = BigInt(header.getUint32(36)) << BigInt(2 * bits - 3);
  const isExtended = version === 3 && (header.getUint32(76) & 16) !== 0;
  if (header.getBigUint64(24) > (isExtended ? covered / 2n : covered)) {
    report.warn("damaged", "its L1 table is too small for its size");
  }
  const tableBytes = header.getUint32(56) * 2 ** bits;
  if (tableBytes > 8 * 1024 ** 2) {
    report.danger(
      "excessive-table",
      `its refcount table has ${tableBytes} bytes`,
    );
  }
  const snapshots = header.getUint32(60);
  if (snapshots > 65536) {
    report.danger(
      "excessive-table",
      `it claims to have ${snapshots} snapshots`,
    );
  }
  const parts: [what: string, at: number, length: number][] = [
    ["L1 table", 40, l1Bytes],
    ["refcount table", 48, tableBytes],
    ["snapshot table", 64, Math.min(snapshots, 65536) * 40],
  ];
  for (const [what, at, length] of parts) {
    const offset = header.getBigUint64(at);
    if (length > 0 && offset % BigInt(2 ** bits) !== 0n) {
      report.warn("damaged", `its ${what} is not at the start of a cluster`);
    }
    if (length > 0 && offset + BigInt(length) > (window.size ?? Infinity)) {
      report.warn("truncated", `its ${what} is not within the file`);
    }
  }
}

/** The content of header extensions. */
interface Extensions {
  backingFormat?: string;
  dataFile?: string;
  hasBitmaps?: boolean;
}

async function readExtensions(
  window: Window,
  report: Report,
  header: DataView,
): Promise<Extensions> {
  const found: Extensions = {};
  const text = (view: DataView) => {
    const bytes = bytesOf(view);
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
  };
  const name = Number(header.getBigUint64(8));
  const cluster = 2 ** Math.min(21, Math.max(9, header.getUint32(20)));
  const end = name > 0 && name < cluster ? name : cluster;
  const start = header.getUint32(4) === 2 ? 72 : header.getUint32(100);
  for (let at = start; at + 8 <= end;) {
    const head = at < MOST_EXTENSIONS ? await window.read(at, 8) : undefined;
    if (!head) {
      report.warn("damaged", "its header extensions are too long");
      break;
    }
    const [type, length] = [head.getUint32(0), head.getUint32(4)];
    if (type === 0) break;
    if (length > end - at - 8) {
      report.warn("damaged", "a header extension is larger than its cluster");
      break;
    }
    const isText = type === EXTENSION.BACKING_FORMAT ||
      type === EXTENSION.DATA_FILE;
    const data = isText && length < 65536
      ? await window.read(at + 8, length)
      : undefined;
    if (data && type === EXTENSION.BACKING_FORMAT) {
      found.backingFormat = text(data);
    } else if (data) found.dataFile = text(data);
    if (type === EXTENSION.BITMAPS) found.hasBitmaps = true;
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return found;
}

async function backing(
  window: Window,
  report: Report,
  header: DataView,
  format?: string,
): Promise<void> {
  const offset = Number(header.getBigUint64(8));
  const length = header.getUint32(16);
  const name = length > 0 && length <= MAX_NAME
    ? await window.read(offset, length)
    : undefined;
  if (!name) {
    report.danger("backing-file", "it has a backing file without a sound name");
    return;
  }
  const filename = new TextDecoder().decode(bytesOf(name));
  report.names(
    { role: "backing", filename, ...(format && { format }) },
    "backing-file",
    `it has the backing file '${nameText(filename)}', which is read with it`,
  );
  if (format === undefined) {
    report.warn(
      "backing-format",
      "it does not say which format its backing file has",
    );
  }
}

function checkFeatures(
  report: Report,
  header: DataView,
  version: number,
  { dataFile }: Extensions,
): void {
  // In version 2, these bytes belong to the first header extension; OpenStack's
  // inspector reads them as features all the same.
  const low = header.getUint32(76);
  if (low & 1 << FEATURE.DATA_FILE) {
    const message = dataFile === undefined
      ? "its data is in another file, which it does not name"
      : `its data is in the file '${nameText(dataFile)}'`;
    if (dataFile !== undefined && version === 3) {
      report.names(
        { role: "data-file", filename: dataFile },
        "data-file",
        message,
      );
    } else report.danger("data-file", message);
  }
  if (version === 2) return;
  const features = header.getBigUint64(72);
  for (let bit = EXTENDED_L2; bit < 64; bit++) {
    if ((features >> BigInt(bit) & 1n) === 0n) continue;
    report.danger(
      "unknown-features",
      bit === EXTENDED_L2
        ? "it has extended L2 entries, an incompatible feature (bit 4) that " +
          "not all programs know"
        : `it needs the feature of bit ${bit}, which is unknown`,
    );
  }
  if (low & 1 << FEATURE.CORRUPT) {
    report.warn(
      "corrupt",
      "it is marked as corrupt: repair it before using it",
    );
  }
  if (low & 1 << FEATURE.DIRTY) {
    report.warn("dirty", "it was not closed: its refcounts must be repaired");
  }
  const compression = header.getUint32(100) > 104 ? header.getUint8(104) : 0;
  if (compression > 1) {
    report.danger(
      "unknown-features",
      `it is compressed by the method ${compression}, which is unknown`,
    );
  }
  if (header.getBigUint64(80) & ~1n) {
    report.note("compatible-features", "it has compatible features not known");
  }
}
