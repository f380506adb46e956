/**
 * Inspecting VMDKs: a sparse extent with its descriptor, or a descriptor in a
 * file of its own. It refuses what OpenStack's inspector refuses, and parents,
 * which that one overlooks.
 *
 * @module
 */
import { nameText } from "../values.ts";
import { size as sizeOf } from "./qcow2.ts";
import { Report } from "./report.ts";
import { bytesOf, has, type Window } from "./window.ts";

const SECTOR = 512;
const AT_END = 0xffffffffffffffffn;
/** Most bytes of the descriptor that are read. */
const MAX_TEXT = 768 * 1024;
const MARKER_FOOTER = 3;

/** The types stored in one file. */
const ONE_FILE = ["monolithicsparse", "streamoptimized"];

/** Inspect an image. */
export async function inspectVmdk(
  window: Window,
  report: Report,
): Promise<void> {
  const header = await window.readPadded(0, SECTOR);
  if (has(header, 0, "COWD") || has(header, 0, "\xbe\xba\xfe\xca")) {
    report.warn("extent", "it is an extent of ESX, not an image by itself");
    report.virtualSize = has(header, 0, "COWD")
      ? header.getUint32(12, true) * SECTOR
      : sizeOf(header.getBigUint64(16, true) * BigInt(SECTOR));
    return;
  }
  if (!has(header, 0, "KDMV")) {
    await inspectText(window, report, 0, window.size ?? Infinity);
    return;
  }
  const version = header.getUint32(4, true);
  if (version < 1 || version > 3) {
    report.danger(
      "version",
      `it has version ${version} of the format, which is unknown`,
    );
  }
  report.virtualSize = sizeOf(header.getBigUint64(12, true) * BigInt(SECTOR));
  if (header.getBigUint64(56, true) === AT_END) {
    await inspectFooter(window, report, header);
  }
  const [start, length] = [28, 36].map((at) =>
    Number(header.getBigUint64(at, true)) * SECTOR
  );
  if (start !== SECTOR) {
    report.danger("descriptor", "its descriptor is not in the second sector");
    return;
  }
  await inspectText(window, report, start, length);
}

/** The text of a descriptor, up to its padding of zeroes. */
async function readText(
  window: Window,
  report: Report,
  start: number,
  length: number,
): Promise<string | undefined> {
  const isPart = start > 0;
  let text = "";
  for (let at = start; at < start + length;) {
    const left = Math.min(start + length, window.size ?? Infinity) - at;
    const view = await window.read(at, Math.max(1, Math.min(left, 16 * 1024)));
    if (!view || at + view.byteLength > start + MAX_TEXT) {
      // In a file of its own, the text ends with the file.
      if (!isPart && window.size === at && text !== "") return text;
      report.danger("truncated", "its descriptor is too long");
      return undefined;
    }
    const bytes = bytesOf(view);
    const end = bytes.indexOf(0);
    const used = end < 0 ? bytes : bytes.subarray(0, end);
    text += new TextDecoder("latin1").decode(used);
    if (end >= 0) {
      if (isPart && start + length > (window.size ?? Infinity)) {
        report.danger("truncated", "the file ends within its descriptor");
      }
      return text;
    }
    at += view.byteLength;
  }
  return text;
}

/**
 * Whether a file without a known magic is a descriptor: other programs take it
 * for one wherever it says `createType`.
 */
export async function isDescription(window: Window): Promise<boolean> {
  const length = Math.min(SECTOR, window.size ?? SECTOR);
  const start = length < 64 ? undefined : await window.read(0, length);
  if (!start || !bytesOf(start).every(isOfText)) return false;
  const ignored = new Report();
  const text = await readText(window, ignored, 0, window.size ?? Infinity);
  return text !== undefined && /createtype="/i.test(text);
}

/** Printable, or a separator. */
function isOfText(byte: number): boolean {
  return (byte >= 0x20 && byte < 0x7f) || (byte >= 9 && byte <= 13) ||
    (byte >= 0x1c && byte < 0x20);
}

const ACCESS = ["rw", "rdonly", "noaccess"];

async function inspectText(
  window: Window,
  report: Report,
  start: number,
  length: number,
): Promise<void> {
  const bytes = await readText(window, report, start, length);
  if (bytes === undefined) return;
  const complain = (message: string) => report.danger("descriptor", message);
  if (bytes === "" || !/^\p{ASCII}*$/u.test(bytes)) {
    complain(
      bytes === ""
        ? "it has no descriptor"
        : "its descriptor has other characters than ASCII's",
    );
  }
  const text = utf8(bytes);
  const type = kindOf(text);
  const isOneFile = ONE_FILE.includes(type.toLowerCase());
  if (!isOneFile) {
    complain(
      type === ""
        ? "its descriptor does not say what kind of image it is"
        : `its kind '${nameText(type)}' is not stored in a single file`,
    );
  }
  const lines = text.split("\n").map((line) => line.trim());
  const extents = lines.filter((line) => isExtent(line));
  const odd = lines.find((line) => !isKnown(line));
  if (odd !== undefined) {
    complain(`its descriptor has the line '${nameText(odd)}'`);
  }
  if (extents.length === 0) complain("its descriptor names no extent");
  const away = extents.find((line) => line.includes("/"));
  if (away !== undefined) {
    complain(`an extent may be in another folder: '${nameText(away)}'`);
  }
  if (!isOneFile || start === 0) nameExtents(report, extents);
  nameParent(report, text);
}

/** Longer names of kinds are none. */
const MAX_KIND = 63;

/**
 * The kind of an image. Programs differ in which of several statements counts,
 * and in whether it may be part of a comment: the first one that is stored in
 * several files, else the first one.
 */
function kindOf(text: string): string {
  const kinds = [...text.matchAll(/createtype[ \t]*=[ \t]*"([^"]*)"/gi)]
    .map(([, kind]) => kind.length > MAX_KIND ? "" : kind);
  const other = kinds.find((kind) => !ONE_FILE.includes(kind.toLowerCase()));
  return other ?? kinds[0] ?? "";
}

function utf8(bytes: string): string {
  return new TextDecoder().decode(
    Uint8Array.from(bytes, (character) => character.charCodeAt(0)),
  );
}

function isExtent(line: string): boolean {
  return !isPlain(line) && ACCESS.includes(line.toLowerCase().split(" ")[0]);
}

/** A comment, an entry of the disk database, or a field. */
function isPlain(line: string): boolean {
  const [key] = line.split("=");
  return line === "" || line.startsWith("#") ||
    line.toLowerCase().startsWith("ddb") ||
    (line.includes("=") && !key.includes(" "));
}

function isKnown(line: string): boolean {
  return isPlain(line) || isExtent(line);
}

function nameExtents(report: Report, lines: readonly string[]): void {
  let sectors = 0;
  const named = new Set<string>();
  for (const line of lines) {
    const match = /^\w+\s+(\d+)\s+(\w+)(?:\s+"([^"]*)")?/.exec(line);
    sectors += Number(match?.[1] ?? 0);
    const filename = match?.[3];
    if (!filename && match?.[2].toUpperCase() !== "ZERO") {
      report.danger("extents", `its extent '${nameText(line)}' is unclear`);
      return;
    }
    if (!filename || named.has(filename)) continue;
    named.add(filename);
    if (named.size <= 100) report.files.push({ role: "extent", filename });
  }
  report.virtualSize ||= sectors * SECTOR;
  if (named.size === 0) return;
  const [first] = named;
  const others = named.size > 1 ? `, and ${named.size - 1} more` : "";
  report.danger(
    "extents",
    `its data is in other files: '${nameText(first)}'${others}`,
  );
}

function nameParent(report: Report, text: string): void {
  // QEMU finds the name anywhere, in a comment too.
  const filename = /parentFileNameHint[ \t]*=?[ \t]*"?([^"\n]+)/i
    .exec(text)?.[1];
  const cid = /^[ \t]*parentCID[ \t]*=[ \t]*(?:0x)?([0-9a-f]{1,8})\b/im
    .exec(text)?.[1];
  if (filename) {
    report.names(
      { role: "backing", filename, format: "vmdk" },
      "backing-file",
      `it has the parent '${nameText(filename)}', which is read with it`,
    );
  } else if (cid !== undefined && cid.toLowerCase() !== "ffffffff") {
    report.warn("parent", "it has a parent, which it does not name");
  }
}

/** The footer replaces the header, so both must agree. */
async function inspectFooter(
  window: Window,
  report: Report,
  header: DataView,
): Promise<void> {
  const complain = (message: string) => report.danger("footer", message);
  const { size } = window;
  const end = size === undefined
    ? undefined
    : await window.read(size - 3 * SECTOR, 3 * SECTOR);
  if (!end) return complain("its footer, which takes precedence, was not seen");
  const part = (index: number) =>
    new DataView(end.buffer, end.byteOffset + index * SECTOR, SECTOR);
  const [marker, footer, last] = [part(0), part(1), part(2)];
  if (!has(footer, 0, "KDMV")) return complain("its footer is invalid");
  if (footer.getUint32(4, true) !== header.getUint32(4, true)) {
    complain("its footer has another version than its header");
  }
  const differs = [28, 36].some((at) =>
    footer.getBigUint64(at, true) !== header.getBigUint64(at, true)
  );
  if (differs) complain("its footer has another descriptor than its header");
  if (footer.getBigUint64(56, true) === AT_END) {
    complain("its footer refers to another footer");
  }
  const isEmpty = (view: DataView, at: number) =>
    !bytesOf(view).subarray(at).some(Boolean);
  if (
    marker.getUint32(8, true) !== 0 ||
    marker.getUint32(12, true) !== MARKER_FOOTER || !isEmpty(marker, 16)
  ) complain("the marker before its footer is damaged");
  if (!isEmpty(last, 0)) complain("it has no marker of its end");
  const capacity = footer.getBigUint64(12, true);
  if (capacity !== header.getBigUint64(12, true)) {
    report.warn("footer", "its footer has another capacity than its header");
  }
  report.virtualSize = sizeOf(capacity * BigInt(SECTOR));
}
