/**
 * Inspecting images of formats with simple headers.
 *
 * @module
 */
import { TAIL_LENGTH } from "../formats.ts";
import { nameText } from "../values.ts";
import { size as sizeOf } from "./qcow2.ts";
import type { Report } from "./report.ts";
import { bytesOf, has, latin1, readHeader, type Window } from "./window.ts";

/** Inspect a VDI image. */
export async function inspectVdi(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await readHeader(window, report, 0, 512);
  if (!header) return;
  report.virtualSize = sizeOf(header.getBigUint64(368, true));
  const version = header.getUint32(68, true);
  if (version !== 0x00010001) {
    report.warn(
      "version",
      `it has version ${version >>> 16}.${version & 0xffff} of the format`,
    );
  }
  const isSet = (at: number) =>
    bytesOf(header).subarray(at, at + 16).some(Boolean);
  if (header.getUint32(76, true) === 4 || isSet(424) || isSet(440)) {
    report.danger("backing-file", "it is a differencing image");
  }
  if (header.getUint32(380, true) !== 0) {
    report.warn("damaged", "it has bytes before each block");
  }
  const blocks = header.getUint32(384, true);
  const end = header.getUint32(340, true) + 4 * blocks;
  if (blocks > 536870784) {
    report.danger("excessive-table", `its block map has ${blocks} entries`);
  } else if (end > (window.size ?? Infinity)) {
    report.warn("truncated", "its block map is not within the file");
  }
}

/** Inspect a QED image, which OpenStack's inspector always refuses. */
export async function inspectQed(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await window.readPadded(0, 72);
  report.virtualSize = sizeOf(header.getBigUint64(48, true));
  report.danger(
    "banned",
    "the format is hardly used, and should not be trusted",
  );
  const features = header.getBigUint64(16, true);
  if (features & ~7n) {
    report.danger("unknown-features", "it needs unknown features");
  }
  if (features & 2n) report.warn("dirty", "it was not closed: check it");
  if ((features & 1n) === 0n) return;
  const [offset, length] = [56, 60].map((at) => header.getUint32(at, true));
  const name = length > 0 && length <= 1023
    ? await window.read(offset, length)
    : undefined;
  const filename = name && new TextDecoder().decode(bytesOf(name));
  if (!filename) {
    report.danger("backing-file", "it has a backing file without a sound name");
    return;
  }
  report.names(
    { role: "backing", filename, ...(features & 4n && { format: "raw" }) },
    "backing-file",
    `it has the backing file '${nameText(filename)}', which is read with it`,
  );
}

/** Inspect a Parallels image. */
export async function inspectParallels(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await window.readPadded(0, 64);
  const isOld = has(header, 0, "WithoutFreeSpace");
  const sectors = header.getBigUint64(36, true) &
    (isOld ? 0xffffffffn : 0xffffffffffffffffn);
  report.virtualSize = sizeOf(sectors * 512n);
  if (header.getUint32(16, true) !== 2) {
    report.warn("version", "it has an unknown version of the format");
  }
  if (header.getUint32(44, true) === 0x746f6e59) {
    report.warn("dirty", "it was not closed: check it");
  }
}

/** Iterations of a key slot that take unreasonably long. */
const MAX_ITERATIONS = 12_000_000;

/** Inspect a LUKS header. */
export async function inspectLuks(
  window: Window,
  report: Report,
): Promise<void> {
  report.encrypted = true;
  report.note("encrypted", "it is encrypted: its data was not inspected");
  const header = await window.readPadded(0, 592);
  if ((window.size ?? 592) < 592) {
    report.danger("truncated", "the file ends within its header");
    return;
  }
  const version = header.getUint16(6);
  if (version !== 1) {
    report.danger("version", `it has version ${version} of the format`);
    return;
  }
  const payload = header.getUint32(104) * 512;
  if (window.size !== undefined) {
    report.virtualSize = Math.max(0, window.size - payload);
    if (payload > window.size) {
      report.warn("truncated", "its data begins behind the end of the file");
    }
  }
  for (let slot = 0; slot < 8; slot++) {
    const at = 208 + 48 * slot;
    const isActive = header.getUint32(at) === 0x00ac71f3;
    if (isActive && header.getUint32(at + 4) > MAX_ITERATIONS) {
      report.warn("slow-key", `its key slot ${slot} takes long to try`);
    }
  }
  const cipher = latin1(header, 8, 32).replace(/\0.*$/s, "");
  const mode = latin1(header, 40, 32).replace(/\0.*$/s, "");
  report.note("cipher", `its cipher is '${nameText(`${cipher}-${mode}`)}'`);
}

/** Inspect a compressed loop image. */
export async function inspectCloop(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await readHeader(window, report, 128, 8);
  if (!header) return;
  const [blockSize, blocks] = [0, 4].map((at) => header.getUint32(at));
  report.virtualSize = sizeOf(BigInt(blockSize) * BigInt(blocks));
  if (blockSize === 0 || blockSize % 512 !== 0) {
    report.warn("damaged", `its blocks have ${blockSize} bytes`);
  } else if (blockSize > 64 * 1024 * 1024) {
    report.danger("excessive-table", `its blocks have ${blockSize} bytes`);
  }
  checkTable(window, report, 136, 8 * (blocks + 1), 512 * 1024 * 1024);
}

/** Inspect a growing image of Bochs. */
export async function inspectBochs(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await readHeader(window, report, 0, 512);
  if (!header) return;
  const u32 = (at: number) => header.getUint32(at, true);
  const version = u32(64);
  const isGrowing = has(header, 32, "Redolog\0") &&
    has(header, 48, "Growing\0");
  if (!isGrowing || version !== 0x10000 && version !== 0x20000) {
    report.warn("version", "it has an unknown version or type of the format");
    return;
  }
  const sizeAt = version === 0x10000 ? 84 : 88;
  const bytes = header.getBigUint64(sizeAt, true);
  report.virtualSize = sizeOf(bytes - bytes % 512n);
  checkTable(window, report, u32(68), 4 * u32(72), 4 * 1024 * 1024);
}

/** Warn of a table outside of the file, or of more than `most` bytes. */
function checkTable(
  { size = Infinity }: Window,
  report: Report,
  start: number,
  length: number,
  most: number,
): void {
  if (length > most) {
    report.danger("excessive-table", `its table has ${length} bytes`);
  } else if (start + length > size) {
    report.warn("truncated", "its table is not within the file");
  }
}

/** Inspect a sparse image of Apple. */
export async function inspectAsif(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await readHeader(window, report, 0, 80);
  if (!header) return;
  const version = header.getUint32(4);
  if (version !== 1) {
    report.warn("version", `it has version ${version} of the format`);
    return;
  }
  const sectors = header.getBigUint64(48);
  report.virtualSize = sizeOf(sectors * BigInt(header.getUint16(68)));
}

/** Inspect a disk image of Apple, which has its header at its end. */
export async function inspectDmg(
  window: Window,
  report: Report,
): Promise<void> {
  if (has(await window.readPadded(0, 8), 0, "encrcdsa")) {
    report.encrypted = true;
    report.note("encrypted", "it is encrypted: its data was not inspected");
    return;
  }
  const { size } = window;
  if (size === undefined) return;
  // A file that does not consist of sectors has bytes after the trailer.
  const starts = [size - TAIL_LENGTH, size - TAIL_LENGTH - size % TAIL_LENGTH]
    .concat(size - size % TAIL_LENGTH);
  for (const start of starts) {
    const trailer = await window.readPadded(start, TAIL_LENGTH);
    if (!has(trailer, 0, "koly")) continue;
    report.virtualSize = sizeOf(trailer.getBigUint64(492) * 512n);
    const segments = trailer.getUint32(60);
    if (segments > 1) {
      report.danger("extents", `it is one of ${segments} files of an image`);
    }
    const ends = [[24, 32], [40, 48], [216, 224]].map(([at, length]) =>
      trailer.getBigUint64(at) + trailer.getBigUint64(length)
    );
    if (ends.some((end) => end > start)) {
      report.warn(
        "truncated",
        "its data or its tables are not within the file",
      );
    }
    return;
  }
}
