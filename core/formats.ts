/**
 * The magics of image formats, whether or not there is a driver.
 *
 * A file with one of these magics is never probed as raw: its bytes are not a
 * disk's, and writing to them would destroy an image. LUKS 2's backup headers
 * count only for repairs; disks with a partition table or a file system are
 * raw, whichever it is.
 *
 * @module
 */

/** Bytes from the start of an image that probing looks at. */
export const HEAD_LENGTH = 2048;

/** Bytes before the end of an image that probing looks at. */
export const TAIL_LENGTH = 512;

/** An image format, supported or not. */
export interface ImageFormat {
  /** The name of its driver, here or in QEMU. */
  readonly name: string;
  /** Its common name, if different. */
  readonly title?: string;
}

interface Magic extends ImageFormat {
  /** Whether an image with this beginning has the format. */
  matches(head: Uint8Array): boolean;
}

/**
 * Formats recognised by their beginning. A driver with one of these names needs
 * no `probe` of its own.
 */
const MAGICS: readonly Magic[] = [
  {
    name: "qcow",
    title: "version 1 of qcow2",
    matches: (head) => isQcow(head) && bigEndian(head, 4) === 1,
  },
  // There is no version 0: QEMU takes that for raw as well.
  {
    name: "qcow2",
    matches: (head) => isQcow(head) && bigEndian(head, 4) >= 2,
  },
  { name: "qed", matches: (head) => has(head, 0, "QED\0") },
  { name: "vdi", matches: (head) => has(head, 64, "\x7f\x10\xda\xbe") },
  {
    name: "vmdk",
    // Sparse extents, those of ESX, its newer ones, and the text descriptor.
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
  // Encrypted: what is recognised by its end is encrypted with the rest.
  { name: "dmg", matches: (head) => has(head, 0, "encrcdsa") },
];

/** Recognised by its end. */
const DMG: ImageFormat = { name: "dmg", title: "Apple's disk image" };

/** The formats of images that begin with `head`, {@linkcode HEAD_LENGTH} bytes. */
export function formatsOfHead(head: Uint8Array): ImageFormat[] {
  return MAGICS.filter(({ matches }) => matches(head));
}

/**
 * The format recognised by the end of a file: `tail` is the last
 * {@linkcode TAIL_LENGTH} bytes of `size`. In a file with a header, a guest may
 * have written it, so it counts only where there is no header.
 */
export function formatOfTail(
  tail: Uint8Array,
  size: number,
): ImageFormat | undefined {
  return hasFooter(tail, size, "koly") ? DMG : undefined;
}

/**
 * Whether a raw disk is followed by the footer of a fixed VHD. Such an image is
 * a disk from its first byte on, and QEMU takes it for raw.
 */
export function hasVhdFooter(tail: Uint8Array, size: number): boolean {
  return hasFooter(tail, size, "conectix");
}

/**
 * Footers are in the last 512 bytes. Old ones have 511: they begin at the last
 * sector, as does any footer once the file was rounded up to sectors.
 */
function hasFooter(tail: Uint8Array, size: number, magic: string): boolean {
  if (size < TAIL_LENGTH) return false;
  const rest = size % TAIL_LENGTH;
  return has(tail, 0, magic) ||
    (rest > 0 && has(tail, TAIL_LENGTH - rest, magic));
}

/** A kind of file that can contain an image. */
export interface Wrapping {
  /** Its name in a sentence. */
  readonly what: string;
  /** The driver that opens it, if there is one. */
  readonly driver?: string;
  /** The command that unpacks it. */
  readonly command: string;
}

type Magics = readonly [
  magic: string,
  what: string,
  command: string,
  driver?: string,
];

const ZSTD = "\x28\xb5\x2f\xfd";

/** Archives and compressed files that may contain an image, by their magic. */
const WRAPPINGS: readonly Magics[] = [
  ["\x1f\x8b\x08", "compressed with gzip", "gunzip -k", "gzip"],
  ["BZh", "compressed with bzip2", "bunzip2 -k"],
  ["\xfd7zXZ\0", "compressed with xz", "xz -dk", "xz"],
  [ZSTD, "compressed with zstd", "zstd -dk", "zstd"],
  ["\x04\x22\x4d\x18", "compressed with lz4", "lz4 -dk"],
  ["LZIP", "compressed with lzip", "lzip -dk"],
  ["\x89LZO\0\r\n\x1a\n", "compressed with lzop", "lzop -d"],
  ["PK\x03\x04", "a zip archive", "unzip", "zip"],
  // Empty, and the first part of several.
  ["PK\x05\x06", "a zip archive", "unzip", "zip"],
  ["PK\x07\x08PK", "a zip archive", "unzip", "zip"],
  ["7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"],
];

/** Where a tar archive has its magic. */
const TAR_MAGIC = 257;

/** The archive or compression of a file, recognised by its beginning. */
export function wrappingOf(head: Uint8Array): Wrapping | undefined {
  if (has(head, TAR_MAGIC, "ustar")) {
    return {
      what: "a tar archive, as an OVA is",
      driver: "tar",
      command: "tar -x",
    };
  }
  if (isLzma(head)) {
    return { what: "compressed with lzma", command: "unlzma -k" };
  }
  const found = hasSkippable(head)
    ? WRAPPINGS.find(([magic]) => magic === ZSTD)
    : WRAPPINGS.find(([magic]) => has(head, 0, magic));
  if (!found) return undefined;
  const [, what, command, driver] = found;
  // Three letters are too little: block sizes and the magic of a block follow.
  const isOther = what.endsWith("bzip2") && !isBzip2(head);
  return isOther ? undefined : { what, driver, command };
}

/** The command that unpacks what a driver reads. */
export function unpackingCommand(driver: string): string | undefined {
  return WRAPPINGS.find(([, , , name]) => name === driver)?.[2];
}

/** Whether a block size and the first block follow, or the end if empty. */
function isBzip2(head: Uint8Array): boolean {
  return head[3] >= 0x31 && head[3] <= 0x39 &&
    (has(head, 4, "1AY&SY") || has(head, 4, "\x17rE8P\x90"));
}

/** The largest size that xz accepts in the header of an `.lzma` file. */
const MAX_LZMA_SIZE = 2 ** 38;

/**
 * Whether it is an `.lzma` file ("LZMA_Alone"), which has no magic: one byte of
 * properties, the size of the dictionary, that of the content, and a byte that
 * is always zero. As for xz, the sizes have to be plausible; where that of the
 * content is stated, the properties must be the usual ones, too, as for `file`.
 */
function isLzma(head: Uint8Array): boolean {
  const view = new DataView(head.buffer, head.byteOffset);
  const [properties, dictionary] = [head[0], view.getUint32(1, true)];
  const [low, high] = [view.getUint32(5, true), view.getUint32(9, true)];
  if (head[13] !== 0 || !isLzmaDictionary(dictionary)) return false;
  const literalBits = properties % 9 + Math.floor(properties / 9) % 5;
  if (low === 0xffffffff && high === 0xffffffff) {
    return properties < 9 * 5 * 5 && literalBits <= 4;
  }
  const size = high * 2 ** 32 + low;
  return properties === 0x5d && size > 0 && size < MAX_LZMA_SIZE;
}

/** Whether it is 2^n or 2^n + 2^(n - 1), at least 4096, or unlimited. */
function isLzmaDictionary(size: number): boolean {
  const n = 31 - Math.clz32(size);
  return size === 0xffffffff ||
    n >= 12 && (size === 2 ** n || size === 2 ** n + 2 ** (n - 1));
}

/**
 * Whether a file begins with skippable frames, and goes on with zstd's (lz4 has
 * the same ones), as far as the head tells (RFC 8878, section 3.1.2).
 */
function hasSkippable(head: Uint8Array): boolean {
  let at = 0;
  while (
    at + 8 <= head.length && head[at] >>> 4 === 5 &&
    has(head, at + 1, "\x2a\x4d\x18")
  ) {
    at += 8 +
      new DataView(head.buffer, head.byteOffset).getUint32(at + 4, true);
  }
  return at > 0 && (at + 4 > head.length || has(head, at, ZSTD));
}

function isQcow(head: Uint8Array): boolean {
  return has(head, 0, "QFI\xfb");
}

/** Comments and empty lines at the beginning of a text. */
const LEADING_COMMENTS = String
  .raw`^(?:\xef\xbb\xbf)?(?:[ \t\r]*(?:#[^\n]*)?\n)*`;

/** The first line of a VMDK descriptor, or its first entry. */
const VMDK_BEGINNING = new RegExp(
  `${LEADING_COMMENTS}[ \\t]*(?:# *Disk DescriptorFile|version[ \\t]*=[ \\t]*\\d)`,
  "i",
);

/** A text shorter than this cannot have both entries. */
const SHORTEST_ENTRIES = "version=\ncreateType=";

/** Whether a file is a VMDK descriptor; zeroes may follow it. */
function isVmdkDescriptor(head: Uint8Array): boolean {
  // QEMU skips comments line by line, whatever bytes they contain.
  const mayBegin = "#vV \t\r\n\xef".includes(String.fromCharCode(head[0]));
  if (mayBegin && VMDK_BEGINNING.test(textOf(head))) return true;
  const end = head.indexOf(0);
  // Nearly every other image has a zero byte this early.
  if (end >= 0 && end < SHORTEST_ENTRIES.length) return false;
  const text = textOf(end < 0 ? head : head.subarray(0, end));
  // The entries may be in any order, but nothing else may come before them.
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
