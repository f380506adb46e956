/**
 * Which file system is on a disk? Reads its magic, whatever the image's format.
 *
 *     deno run --allow-read examples/magic.ts disk.qcow2
 *
 * @module
 */
import { type Image, openImage } from "@bdrv/bdrv";

/** File systems, where their magic lies, and what it is. */
const MAGICS: readonly [name: string, offset: number, magic: string][] = [
  ["XFS", 0, "XFSB"],
  ["SquashFS", 0, "hsqs"],
  ["NTFS", 3, "NTFS    "],
  ["exFAT", 3, "EXFAT   "],
  ["FAT16", 54, "FAT16   "],
  ["FAT32", 82, "FAT32   "],
  ["ext2, ext3 or ext4", 1080, "\x53\xef"],
  ["ISO 9660", 32769, "CD001"],
  ["Btrfs", 65600, "_BHRfS_M"],
  ["a partition table (GPT)", 512, "EFI PART"],
  ["a boot sector, or a partition table (MBR)", 510, "\x55\xaa"],
];

/** The name of the file system on a disk, if it is known. */
export async function fileSystemOf(disk: Image): Promise<string | undefined> {
  for (const [name, offset, magic] of MAGICS) {
    if (offset + magic.length > disk.size) continue;
    const bytes = await disk.read(offset, magic.length);
    if (String.fromCharCode(...bytes) === magic) return name;
  }
}

if (import.meta.main) {
  const [file] = Deno.args;
  await using disk = await openImage(file, { readOnly: true });
  const found = await fileSystemOf(disk) ?? "nothing that is known here";
  console.log(`${file}: ${disk.format}, ${disk.size} bytes, holds ${found}`);
}
