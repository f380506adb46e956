/**
 * Inspecting images of formats with simple headers.
 *
 * @module
 */
import { nameText } from "../values.ts";
import { size as sizeOf } from "./qcow2.ts";
import type { Report } from "./report.ts";
import { bytesOf, has, latin1, type Window } from "./window.ts";

/** Inspect a VDI image. */
export async function inspectVdi(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await window.read(0, 512);
  if (!header) {
    report.danger("truncated", "the file ends within its header");
    return;
  }
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
