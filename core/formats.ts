/**
 * By which bytes image formats are known, whether or not there is a driver.
 *
 * What has one of these magics is never taken for raw by itself: its bytes are
 * no disk's, and writing to them would destroy an image. The copies of its
 * header that LUKS 2 keeps further on count only for repairs; disks with a
 * partition table or a file system are raw, whatever that is.
 *
 * @module
 */

/** Bytes from the start of an image that probing looks at. */
export const HEAD_LENGTH = 2048;

/** Bytes before the end of an image that probing looks at. */
export const TAIL_LENGTH = 512;

/** A format of the field. */
export interface ImageFormat {
  /** The name of its driver, here or in QEMU. */
  readonly name: string;
  /** What people call it, if that is something else. */
  readonly title?: string;
}

interface Magic extends ImageFormat {
  /** Whether an image is one that begins so. */
  matches(head: Uint8Array): boolean;
}

/**
 * Formats that are known by how they begin. All that a driver for one of these
 * names has to do is to be registered.
 */
const MAGICS: readonly Magic[] = [
  {
    name: "qcow",
    title: "version 1 of qcow2",
    matches: (head) => isQcow(head) && bigEndian(head, 4) === 1,
  },
  // It has no version 0: QEMU takes that for raw as well.
  {
    name: "qcow2",
    matches: (head) => isQcow(head) && bigEndian(head, 4) >= 2,
  },
  { name: "qed", matches: (head) => has(head, 0, "QED\0") },
  { name: "vdi", matches: (head) => has(head, 64, "\x7f\x10\xda\xbe") },
  {
    name: "vmdk",
    // Sparse extents, those of ESX, its newer ones, and the text beside them.
    matches: (head) =>
      has(head, 0, "KDMV") || has(head, 0, "COWD") ||
      has(head, 0, "\xbe\xba\xfe\xca\0\0\0\0") || isVmdkDescriptor(head),
  },
  { name: "vhdx", matches: (head) => has(head, 0, "vhdxfile") },
  { name: "vpc", title: "VHD", matches: (head) => has(head, 0, "conectix") },
  {
    name: "parallels",
    matches: (head) =>
      has(head, 0, "WithoutFreeSpace") || has(head, 0, "WithouFreSpacExt"),
  },
  {
    name: "luks",
    title: "an encrypted disk",
    matches: (head) => has(head, 0, "LUKS\xba\xbe"),
  },
  {
    name: "bochs",
    matches: (head) => has(head, 0, "Bochs Virtual HD Image\0"),
  },
  {
    name: "cloop",
    title: "a compressed loop image",
    matches: (head) =>
      has(head, 0, "#!/bin/sh\n#V") &&
      /^#!\/bin\/sh\n#V\d\.\d Format\nmodprobe cloop /.test(textOf(head)),
  },
  {
    name: "asif",
    title: "Apple's sparse image",
    matches: (head) => has(head, 0, "shdw"),
  },
];

/** This one is known by how it ends. */
const DMG: ImageFormat = { name: "dmg", title: "Apple's disk image" };

/** The formats of images that begin with `head`, {@linkcode HEAD_LENGTH} bytes. */
export function formatsOfHead(head: Uint8Array): ImageFormat[] {
  return MAGICS.filter(({ matches }) => matches(head));
}

/**
 * What is known by how it ends: `tail` is the end of a file of `size` bytes,
 * up to {@linkcode TAIL_LENGTH}. A guest may have written that, if the file is
 * of a format with a header, so it counts only where there is none.
 */
export function formatOfTail(
  tail: Uint8Array,
  size: number,
): ImageFormat | undefined {
  return hasFooter(tail, size, "koly") ? DMG : undefined;
}

/**
 * Whether a raw disk has the footer of a VHD of fixed size behind it. Such an
 * image is a disk from its first byte on, and QEMU takes it for raw.
 */
export function hasVhdFooter(tail: Uint8Array, size: number): boolean {
  return hasFooter(tail, size, "conectix");
}

/**
 * Footers are in the last 512 bytes. Old ones have 511: they begin where the
 * last sector does, and so does any once the file was rounded up to sectors.
 */
function hasFooter(tail: Uint8Array, size: number, magic: string): boolean {
  if (size < TAIL_LENGTH) return false;
  const rest = size % TAIL_LENGTH;
  return has(tail, 0, magic) ||
    (rest > 0 && has(tail, TAIL_LENGTH - rest, magic));
}

/** Files in which an image may be, by how they begin. */
const WRAPPINGS: readonly [magic: string, what: string, offset?: number][] = [
  ["\x1f\x8b\x08", "compressed with gzip"],
  ["BZh", "compressed with bzip2"],
  ["\xfd7zXZ\0", "compressed with xz"],
  ["\x28\xb5\x2f\xfd", "compressed with zstd"],
  ["\x04\x22\x4d\x18", "compressed with lz4"],
  ["PK\x03\x04", "a zip archive"],
  ["7z\xbc\xaf\x27\x1c", "a 7z archive"],
  ["ustar", "a tar archive, as an OVA is", 257],
];

/** What a file is that has to be unpacked first, by how it begins. */
export function wrappingOf(head: Uint8Array): string | undefined {
  return WRAPPINGS.find(([magic, _, offset = 0]) => has(head, offset, magic))
    ?.[1];
}

function isQcow(head: Uint8Array): boolean {
  return has(head, 0, "QFI\xfb");
}

/** Comments and empty lines, before all else in a text. */
const LEADING_COMMENTS = String
  .raw`^(?:\xef\xbb\xbf)?(?:[ \t\r]*(?:#[^\n]*)?\n)*`;

/** The first line of text that describes a VMDK, or its first entry. */
const VMDK_BEGINNING = new RegExp(
  `${LEADING_COMMENTS}[ \\t]*(?:# *Disk DescriptorFile|version[ \\t]*=[ \\t]*\\d)`,
  "i",
);

/** Less text than this has not both of the entries. */
const SHORTEST_ENTRIES = "version=\ncreateType=";

/** Whether a file is the text that describes a VMDK; zeroes may follow it. */
function isVmdkDescriptor(head: Uint8Array): boolean {
  // QEMU skips comments by their line, whatever bytes are in them.
  const mayBegin = "#vV \t\r\n\xef".includes(String.fromCharCode(head[0]));
  if (mayBegin && VMDK_BEGINNING.test(textOf(head))) return true;
  const end = head.indexOf(0);
  // Nearly every other image has a zero before so much text.
  if (end >= 0 && end < SHORTEST_ENTRIES.length) return false;
  const text = textOf(end < 0 ? head : head.subarray(0, end));
  // Its entries may be in any order, but there is nothing else.
  return /^\s*version\s*=/im.test(text) && /^\s*createType\s*=/im.test(text) &&
    !/[^\t\n\r\x20-\x7e\x80-\xff]/.test(text);
}

/** Whether `bytes` has a magic, a character a byte, at an offset. */
function has(bytes: Uint8Array, offset: number, magic: string): boolean {
  for (let i = 0; i < magic.length; i++) {
    if (bytes[offset + i] !== magic.charCodeAt(i)) return false;
  }
  return true;
}

function bigEndian(bytes: Uint8Array, offset: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(offset);
}

/** A character a byte. */
function textOf(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes);
}
