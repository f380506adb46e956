/**
 * The beginnings of images of all formats, as small as probing permits, at the
 * offsets that their specifications give.
 *
 * @module
 */

/** Bytes at an offset, given as text with one character for each. */
export type Piece = readonly [offset: number, text: string];

/** An image's bytes, and QEMU's name of its driver. */
export const HEADERS: readonly [format: string, ...pieces: Piece[]][] = [
  ["qcow", [0, "QFI\xfb\0\0\0\x01"]],
  ["qcow2", [0, "QFI\xfb\0\0\0\x02"]],
  ["qcow2", [0, "QFI\xfb\0\0\0\x09"]],
  ["qed", [0, "QED\0"]],
  ["vdi", [0, "<<< Oracle VM VirtualBox Disk Image >>>\n"], [64, VDI()]],
  ["vdi", [64, VDI()]],
  ["vmdk", [0, "KDMV\x01\0\0\0"]],
  ["vmdk", [0, "KDMV\x03\0\0\0"]],
  ["vmdk", [0, "COWD\x01\0\0\0"]],
  ["vmdk", [0, "\xbe\xba\xfe\xca\0\0\0\0\x01\0\0\0\x02\0\0\0"]],
  ["vmdk", [0, "# Disk DescriptorFile\nversion=1\nCID=fffffffe\n"]],
  ["vmdk", [0, "# Disk DescriptorFile\r\nversion=1\r\nCID=fffffffe\r\n"]],
  ["vmdk", [0, "#disk descriptorfile"]],
  ["vmdk", [0, `# made by hand\n   \n#${"-".repeat(600)}\n version = 2\n`]],
  ["vmdk", [0, "version=3\r\n"], [100, "\x01\x02\x03"]],
  ["vmdk", [0, "# zeroes \0 in a comment\n#\0\nversion=1\n"]],
  ["vmdk", [0, 'CID=1\ncreateType="vmfs"\nversion=1\n']],
  ["vmdk", [0, '\xef\xbb\xbf\nencoding="UTF-8"\nversion=1\ncreatetype="x"']],
  ["vhdx", [0, "vhdxfile"]],
  ["vpc", [0, "conectix"]],
  ["parallels", [0, "WithoutFreeSpace\x02\0\0\0"]],
  ["parallels", [0, "WithouFreSpacExt\x02\0\0\0"]],
  ["luks", [0, "LUKS\xba\xbe\0\x01"]],
  ["luks", [0, "LUKS\xba\xbe\0\x02"]],
  [
    "bochs",
    [0, "Bochs Virtual HD Image\0"],
    [32, "Redolog\0"],
    [48, "Growing\0"],
    [64, "\0\0\x02\0"],
  ],
  ["bochs", [0, "Bochs Virtual HD Image\0"], [48, "Undoable\0"]],
  [
    "cloop",
    [
      0,
      "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t " +
      "iso9660 /dev/cloop $1\n",
    ],
  ],
  ["asif", [0, "shdw\0\0\0\x01\0\0\x02\0"]],
  ["dmg", [0, "encrcdsa\0\0\0\x02"]],
];

function VDI(): string {
  return "\x7f\x10\xda\xbe\x01\0\x01\0";
}

/**
 * Content that is raw, though it looks like something: a disk, or a file to
 * unpack.
 */
export const RAW_DISKS: readonly [what: string, ...pieces: Piece[]][] = [
  ["zeroes"],
  ["a boot sector", [0, "\xeb\x3c\x90MSDOS5.0"], [510, "\x55\xaa"]],
  ["a GPT", [510, "\x55\xaa"], [512, "EFI PART"]],
  ["a GPT with sectors of 4096 bytes", [510, "\x55\xaa"], [4096, "EFI PART"]],
  ["an ISO image", [32769, "CD001"]],
  ["a UDF image", [32769, "NSR02"]],
  ["qcow version 0", [0, "QFI\xfb\0\0\0\0"]],
  ["VMDK in ASCII order", [0, "VMDK\x01\0\0\0"]],
  ["a Java class", [0, "\xca\xfe\xba\xbe\0\0\0\x34"]],
  ["a script", [0, "#!/bin/sh\nversion() { :; }\n"]],
  ["text", [0, "The version=1 of a text\ncreateType is not in it\n"]],
  ["text about bzip2", [0, "BZh9 is what a file begins with"]],
  ["lzma without content", [0, "\x5d\0\0\x80\0"]],
  ["lzma, but too large", [0, "\x5d\0\0\x80\0\0\0\0\0\x40"]],
  ["lzma, but a dictionary of 5 MiB", [0, "\x5d\0\0\x50\0\0\x10"]],
  ["lzma, but rare properties", [0, "\x5e\0\0\x80\0\0\x10"]],
  ["lzma, but impossible ones", [0, "\xe1\0\0\x80\0" + "\xff".repeat(8)]],
  ["lzma, but going on with a one", [
    0,
    "\x5d\0\0\x80\0" + "\xff".repeat(8) + "\x01",
  ]],
  ["ones", [0, "\xff".repeat(2048)]],
  ["a magic elsewhere", [1, "KDMV"], [512, "QED\0"], [2048, "vhdxfile"]],
  ["a footer in the middle", [4096, "koly\0\0\0\x04"], [8192, "conectix"]],
];

/** Files that may have to be unpacked first, and the hints given for them. */
export const WRAPPED: readonly [what: string, ...pieces: Piece[]][] = [
  ["gzip", [0, "\x1f\x8b\x08"]],
  ["bzip2", [0, "BZh91AY&SY"]],
  ["bzip2", [0, "BZh1\x17rE8P\x90\0\0\0\0"]],
  ["xz", [0, "\xfd7zXZ\0"]],
  ["zstd", [0, "\x28\xb5\x2f\xfd"]],
  ["lz4", [0, "\x04\x22\x4d\x18"]],
  ["zip", [0, "PK\x03\x04"]],
  ["zip", [0, "PK\x05\x06"]],
  ["zip", [0, "PK\x07\x08PK\x03\x04"]],
  ["lzip", [0, "LZIP\x01"]],
  ["lzop", [0, "\x89LZO\0\r\n\x1a\n"]],
  // By xz, which never states the size, and with other properties; by others.
  ["lzma", [0, "\x5d\0\0\x80\0" + "\xff".repeat(8) + "\0\x6f"]],
  ["lzma", [0, "\x5e\0\0\xc0\0" + "\xff".repeat(8) + "\0\x6f"]],
  ["lzma", [0, "\x5d\0\0\0\x04\0\0\x30\0\0\0\0\0\0\x6f"]],
  ["7z", [0, "7z\xbc\xaf\x27\x1c"]],
  ["tar", [0, "disk.ovf"], [257, "ustar\x0000"]],
];

/** A file of `size` bytes with some pieces in it. */
export function fileOf(pieces: readonly Piece[], size: number): Uint8Array {
  const file = new Uint8Array(size);
  for (const [offset, text] of pieces) file.set(bytesOf(text), offset);
  return file;
}

/** A byte for each character. */
export function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}
