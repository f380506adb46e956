/**
 * OVF descriptors (DMTF DSP0243): which file holds which disk.
 *
 * @module
 */
import { BlockError, invalid } from "../../core/errors.ts";
import { shortened } from "../../core/values.ts";

/** Most bytes of a descriptor. */
export const MAX_OVF = 4 * 1024 * 1024;

/** A disk of an appliance. */
export interface OvfDisk {
  /** `ovf:diskId`. */
  readonly id: string;
  /** `ovf:id` of its file. */
  readonly fileId: string;
  /** The file's name in the descriptor. */
  readonly href: string;
  /** Whether the file is split into several. */
  readonly isSplit: boolean;
  /** How the file is compressed on top of its format, if it is. */
  readonly compression: string | undefined;
  /** Whether it stores only the differences from another disk. */
  readonly hasParent: boolean;
}

/**
 * The disks that have a file, in order.
 *
 * @throws {BlockError} EINVAL if it is not a descriptor.
 */
export function parseOvf(bytes: Uint8Array): OvfDisk[] {
  const text = decodeXml(bytes).replaceAll(/<!--[^]*?(-->|$)/g, "");
  if (!/<(?:[\w.-]+:)?Envelope[\s>]/.test(text)) {
    throw invalid("The OVF descriptor has no envelope");
  }
  const files = new Map<string, Map<string, string>>();
  for (const file of elements(text, "File")) {
    files.set(file.get("id") ?? "", file);
  }
  const disks: OvfDisk[] = [];
  for (const disk of elements(text, "Disk")) {
    const fileId = disk.get("fileRef");
    // Without a file, it is a new, empty disk.
    if (fileId === undefined) continue;
    const file = files.get(fileId);
    const href = file?.get("href");
    if (!file || href === undefined) {
      throw invalid(
        `The OVF descriptor has no file '${shortened(fileId, 255)}'`,
      );
    }
    disks.push({
      id: disk.get("diskId") ?? "",
      fileId,
      href: decodedHref(href),
      isSplit: file.has("chunkSize"),
      compression: compressionOf(file.get("compression")),
      hasParent: disk.has("parentRef"),
    });
  }
  return disks;
}

function compressionOf(stated: string | undefined): string | undefined {
  return stated === "" || stated === "identity" ? undefined : stated;
}

/** Names in an archive are literal; in a reference they may be escaped. */
function decodedHref(href: string): string {
  try {
    return decodeURIComponent(href.replace(/^(\.\/)+/, ""));
  } catch {
    return href;
  }
}

function decodeXml(bytes: Uint8Array): string {
  const [first, second] = bytes;
  if (first === 0xff && second === 0xfe) {
    return new TextDecoder("utf-16le").decode(bytes);
  }
  if (first === 0xfe && second === 0xff) {
    return new TextDecoder("utf-16be").decode(bytes);
  }
  return new TextDecoder().decode(bytes);
}

/** The attributes of all elements with a name, whatever their namespace. */
function* elements(
  text: string,
  name: string,
): Generator<Map<string, string>> {
  const opening = new RegExp(
    `<(?:[\\w.-]+:)?${name}(?=[\\s/>])([^<>"']*(?:"[^"]*"[^<>"']*|'[^']*'[^<>"']*)*)>`,
    "g",
  );
  for (const [, inside] of text.matchAll(opening)) {
    const attributes = new Map<string, string>();
    const pairs = inside.matchAll(
      /(?:[\w.-]+:)?([\w.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')/g,
    );
    for (const [, key, one, other] of pairs) {
      attributes.set(key, unescaped(one ?? other));
    }
    yield attributes;
  }
}

const ENTITIES: { readonly [name: string]: string } = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
};

function unescaped(text: string): string {
  return text.replaceAll(/&(#x?[0-9a-f]{1,6}|\w{1,6});/gi, (whole, name) => {
    if (!name.startsWith("#")) return ENTITIES[name] ?? whole;
    const code = /^#x/i.test(name)
      ? parseInt(name.slice(2), 16)
      : Number(name.slice(1));
    return code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

/** Escape text for an attribute or the content of an element. */
export function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/** Refuse a disk that is not completely in its own file. */
export function checkOwnDisk(
  { id, href, isSplit, compression, hasParent }: OvfDisk,
): void {
  const called = `The disk '${shortened(id, 255)}' of the OVF descriptor`;
  if (isSplit) {
    throw new BlockError("ENOTSUP", `${called} is split into several files`);
  }
  if (compression !== undefined) {
    throw new BlockError(
      "ENOTSUP",
      `The file '${shortened(href, 255)}' of the disk '${
        shortened(id, 255)
      }' ` +
        `is compressed as a whole (${
          shortened(compression, 40)
        }), so that it ` +
        "cannot be used in its archive",
      { hint: "Unpack the appliance, and then the file, first." },
    );
  }
  if (hasParent) {
    throw new BlockError(
      "ENOTSUP",
      `${called} holds only what differs from another disk`,
    );
  }
}
