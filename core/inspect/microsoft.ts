/**
 * Inspecting VHD and VHDX images. (Microsoft's "Virtual Hard Disk Image Format
 * Specification" and "[MS-VHDX]".)
 *
 * @module
 */
import { parentNames } from "../parents.ts";
import { nameText } from "../values.ts";
import { size as sizeOf } from "./qcow2.ts";
import type { Report } from "./report.ts";
import { bytesOf, has, latin1, readHeader, type Window } from "./window.ts";

const KIB = 1024;
/** Most bytes of a text about a parent that are read. */
const MAX_TEXT = 8192;

const DIFFERENCING = 4;

/** Inspect a VHD image with a copy of its footer at its start. */
export async function inspectVhd(
  window: Window,
  report: Report,
): Promise<void> {
  const footer = await readHeader(window, report, 0, 512);
  if (!footer) return;
  report.virtualSize = sizeOf(footer.getBigUint64(48));
  if (!isSound(footer, 64)) report.warn("damaged", "its checksum is wrong");
  const { size } = window;
  const last = size === undefined
    ? undefined
    : await window.read(size - 512, 512);
  if (last && has(last, 0, "conectix") && last.getUint32(60) === 2) {
    report.danger(
      "multiple-formats",
      "it has the header of a dynamic VHD and the footer of a fixed one",
    );
  }
  const type = footer.getUint32(60);
  if (type !== 3 && type !== DIFFERENCING) {
    report.warn("damaged", `it is of the type ${type}, which has no header`);
  }
  const at = Number(footer.getBigUint64(16));
  const header = await window.read(at, 1024);
  if (!header || !has(header, 0, "cxsparse")) {
    report.warn("damaged", "its dynamic header is misplaced");
  } else if (!isSound(header, 36)) {
    report.warn("damaged", "the checksum of its dynamic header is wrong");
  }
  if (type !== DIFFERENCING) return;
  const names = header ? await vhdParents(window, header) : [];
  nameParent(report, names, "vpc");
}

/** Whether the checksum at an offset is correct. */
function isSound(view: DataView, at: number): boolean {
  let sum = 0;
  bytesOf(view).forEach((byte, i) => sum += i < at || i >= at + 4 ? byte : 0);
  return view.getUint32(at) === ~sum >>> 0;
}

async function vhdParents(
  window: Window,
  header: DataView,
): Promise<string[]> {
  const text = (bytes: Uint8Array, encoding: string) =>
    new TextDecoder(encoding).decode(bytes).replace(/\0.*$/s, "");
  const relative: string[] = [];
  const absolute: string[] = [];
  for (let at = 576; at < 768; at += 24) {
    const platform = latin1(header, at, 4);
    const length = header.getUint32(at + 8);
    const bytes = length > 0 && length <= MAX_TEXT
      ? await window.read(Number(header.getBigUint64(at + 16)), length)
      : undefined;
    if (!bytes) continue;
    if (platform === "W2ru") relative.push(text(bytesOf(bytes), "utf-16le"));
    if (platform === "W2ku") absolute.push(text(bytesOf(bytes), "utf-16le"));
  }
  const own = text(bytesOf(header).subarray(64, 576), "utf-16be");
  return parentNames(relative, [...absolute, own]);
}

function nameParent(
  report: Report,
  [filename]: readonly string[],
  format: string,
): void {
  if (!filename) {
    report.danger("backing-file", "it has a parent, which it does not name");
    return;
  }
  report.names(
    { role: "backing", filename, format },
    "backing-file",
    `it has the parent '${nameText(filename)}', which is read with it`,
  );
}

const GUID = {
  bat: "2dc27766-f623-4200-9d64-115e9bfd4a08",
  metadata: "8b7ca206-4790-4b9a-b8fe-575f050f886e",
  parameters: "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
  size: "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
  id: "beca12ab-b2e6-4523-93ef-c309e000c746",
  logicalSector: "8141bf1d-a96f-4709-ba47-f233a8faab5f",
  physicalSector: "cda348c7-445d-4471-9cc9-e9885251c556",
  parent: "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
} as const;

const KNOWN: readonly string[] = Object.values(GUID);

/** A GUID, whose first three groups are little-endian. */
function guidAt(view: DataView, at: number): string {
  const hex = (value: number, digits: number) =>
    value.toString(16).padStart(digits, "0");
  const rest = Array.from(
    { length: 8 },
    (_, i) => hex(view.getUint8(at + 8 + i), 2),
  ).join("");
  return [
    hex(view.getUint32(at, true), 8),
    hex(view.getUint16(at + 4, true), 4),
    hex(view.getUint16(at + 6, true), 4),
    rest.slice(0, 4),
    rest.slice(4),
  ].join("-");
}

/** Inspect a VHDX image. */
export async function inspectVhdx(
  window: Window,
  report: Report,
): Promise<void> {
  if (await needsReplay(window)) {
    report.warn("dirty", "it was not closed: its log must be replayed");
  }
  let table: DataView | undefined;
  for (const at of [192 * KIB, 256 * KIB]) {
    const view = await window.read(at, 64 * KIB);
    if (!view && at === 192 * KIB) {
      report.danger("truncated", "the file ends before its region table");
      return;
    }
    const isTable = view && has(view, 0, "regi") &&
      view.getUint32(8, true) <= 2047;
    if (isTable) table ??= view;
  }
  if (!table) return report.warn("damaged", "its region tables are damaged");
  const count = table.getUint32(8, true);
  let start: number | undefined;
  for (let at = 16; at < 16 + 32 * count; at += 32) {
    const guid = guidAt(table, at);
    if (guid === GUID.metadata) {
      start = Number(table.getBigUint64(at + 16, true));
    } else if (!KNOWN.includes(guid) && table.getUint32(at + 28, true) & 1) {
      report.danger("unknown-features", `it needs the region ${guid}`);
    }
  }
  if (start === undefined) {
    return report.warn("damaged", "it has no region with metadata");
  }
  await inspectMetadata(window, report, start);
}

/** Whether the current header, the latest one, refers to a log. */
async function needsReplay(window: Window): Promise<boolean> {
  let latest = -1n;
  let isLogged = false;
  for (const at of [64 * KIB, 128 * KIB]) {
    const header = await window.read(at, 4096);
    if (!header || !has(header, 0, "head")) continue;
    const sequence = header.getBigUint64(8, true);
    if (sequence <= latest) continue;
    latest = sequence;
    isLogged = bytesOf(header).subarray(48, 64).some(Boolean);
  }
  return isLogged;
}

async function inspectMetadata(
  window: Window,
  report: Report,
  start: number,
): Promise<void> {
  const table = await window.read(start, 64 * KIB);
  if (!table) {
    report.danger("truncated", "the file ends within its metadata");
    return;
  }
  const count = table.getUint16(10, true);
  if (!has(table, 0, "metadata") || count > 2047) {
    return report.warn("damaged", "its metadata is damaged");
  }
  const items = new Map<string, { offset: number; length: number }>();
  for (let at = 32; at < 32 * (count + 1); at += 32) {
    const guid = guidAt(table, at);
    const [offset, length, flags] = [16, 20, 24].map((field) =>
      table.getUint32(at + field, true)
    );
    if (!items.has(guid)) items.set(guid, { offset: start + offset, length });
    if (!KNOWN.includes(guid) && flags & 4) {
      report.danger("unknown-features", `it needs the metadata ${guid}`);
    }
  }
  const read = async (guid: string, length: number) => {
    const item = items.get(guid);
    return item && await window.read(item.offset, length);
  };
  const size = await read(GUID.size, 8);
  if (size) report.virtualSize = sizeOf(size.getBigUint64(0, true));
  else report.danger("truncated", "it does not state the size of its disk");
  const parameters = await read(GUID.parameters, 8);
  if (!parameters) return report.warn("damaged", "it lacks metadata");
  if ((parameters.getUint32(4, true) & 2) === 0) return;
  const { length = 0 } = items.get(GUID.parent) ?? {};
  const locator = await read(GUID.parent, Math.min(length, 64 * KIB));
  nameParent(report, locator ? vhdxParents(locator) : [], "vhdx");
}

/** The names in a parent locator, the best first. */
function vhdxParents(locator: DataView): string[] {
  if (locator.byteLength < 20) return [];
  const text = (at: number, length: number) =>
    new TextDecoder("utf-16le").decode(
      bytesOf(locator).subarray(at, at + length),
    );
  const values = new Map<string, string>();
  const count = locator.getUint16(18, true);
  const end = Math.min(20 + 12 * count, locator.byteLength - 11);
  for (let at = 20; at < end; at += 12) {
    const [key, value] = [0, 4].map((i) => locator.getUint32(at + i, true));
    const [keyLength, valueLength] = [8, 10].map((i) =>
      locator.getUint16(at + i, true)
    );
    values.set(text(key, keyLength), text(value, valueLength));
  }
  const named = (...keys: string[]) =>
    keys.flatMap((key) => values.get(key) ?? []);
  return parentNames(
    named("relative_path"),
    named("volume_path", "absolute_win32_path"),
  );
}
