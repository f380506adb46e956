/**
 * What a disk begins with: a partition table or a file system.
 *
 * @module
 */
import type { Report } from "./report.ts";
import { bytesOf, has, type Window } from "./window.ts";

/** File systems and other contents of disks, by their magic. */
const FILE_SYSTEMS: readonly [name: string, at: number, magic: string][] = [
  ["xfs", 0, "XFSB"],
  ["squashfs", 0, "hsqs"],
  ["ntfs", 3, "NTFS    "],
  ["exfat", 3, "EXFAT   "],
  ["apfs", 32, "NXSB"],
  ["fat", 54, "FAT12   "],
  ["fat", 54, "FAT16   "],
  ["fat", 82, "FAT32   "],
  ["lvm2", 512, "LABELONE"],
  ["f2fs", 1024, "\x10\x20\xf5\xf2"],
  ["erofs", 1024, "\xe2\xe1\xf5\xe0"],
  ["hfs+", 1024, "H+\0\x04"],
  ["hfs+", 1024, "HX\0\x05"],
  ["ext", 1080, "\x53\xef"],
  ["swap", 4086, "SWAPSPACE2"],
  ["iso9660", 32769, "CD001"],
  ["udf", 32769, "NSR02"],
  ["udf", 32769, "NSR03"],
  ["btrfs", 65600, "_BHRfS_M"],
];

/** The magics of an ISO, as in OpenStack's inspector. */
const ISO = ["CD001", "NSR02", "NSR03"];

/** Where the volume descriptors of optical discs have their magic. */
const ISO_AT = 32769;

/** The file system that a disk begins with. */
export async function fileSystemOf(
  window: Window,
): Promise<string | undefined> {
  for (const [name, at, magic] of FILE_SYSTEMS) {
    const view = await window.read(at, magic.length);
    if (view && has(view, 0, magic)) return name;
  }
  return undefined;
}

/** Whether the file is an ISO: its first descriptor must be complete. */
export async function isIso(window: Window): Promise<boolean> {
  const view = await window.read(ISO_AT - 1, 2048);
  return view !== undefined && ISO.some((magic) => has(view, 1, magic));
}

/**
 * Whether the first sector has the signature of a partition table, and is not
 * that of a FAT file system, which has the same.
 */
export function hasPartitionTable(sector: DataView): boolean {
  const isFat = sector.getUint8(16) === 2 && sector.getUint8(21) === 0xf8;
  return sector.getUint16(510, true) === 0xaa55 && !isFat;
}

const PROTECTIVE = 0xee;

/** Inspect the partition table, whose first sector has the signature. */
export async function inspectPartitions(
  window: Window,
  sector: DataView,
  report: Report,
): Promise<void> {
  const used: number[] = [];
  let isGpt = false;
  let fault: string | undefined;
  for (let index = 0; index < 4; index++) {
    const at = 446 + 16 * index;
    const [boot, type] = [sector.getUint8(at), sector.getUint8(at + 4)];
    if (boot !== 0 && boot !== 0x80) {
      fault ??= `entry ${index} of its MBR is neither active nor inactive`;
    }
    if (type !== 0) used.push(index);
    if (type !== PROTECTIVE) continue;
    isGpt = true;
    const isFirst = sector.getUint8(at + 1) === 0 &&
      sector.getUint8(at + 2) === 2 && sector.getUint8(at + 3) === 0;
    if (!isFirst) {
      fault ??= "its protective MBR has another CHS start than 0/0/2";
    }
    if (sector.getUint32(at + 8, true) !== 1) {
      fault ??= "its protective MBR does not begin at the second sector";
    }
  }
  if (isGpt && (used.length !== 1 || used[0] !== 0)) {
    fault ??= "its protective MBR has other partitions as well";
  }
  if (used.length === 0) fault ??= "its MBR has no partitions";
  if (fault) report.danger("mbr", fault);
  const partitions = isGpt ? await countGpt(window, report) : used.length;
  report.partitionTable = { type: isGpt ? "gpt" : "mbr", partitions };
}

/** Count the entries in use; most tables have 128. */
async function countGpt(window: Window, report: Report): Promise<number> {
  for (const sectorSize of [512, 4096]) {
    const header = await window.read(sectorSize, 92);
    if (!header || !has(header, 0, "EFI PART")) continue;
    const start = Number(header.getBigUint64(72, true)) * sectorSize;
    const [count, length] = [80, 84].map((at) => header.getUint32(at, true));
    const isSound = length >= 128 && length <= 4096 && count <= 1024;
    const table = isSound
      ? await window.read(start, count * length)
      : undefined;
    if (!table) break;
    let used = 0;
    for (let at = 0; at < count * length; at += length) {
      if (bytesOf(table).subarray(at, at + 16).some(Boolean)) used++;
    }
    return used;
  }
  report.warn(
    "gpt",
    "its GPT is not where its protective MBR says, or damaged",
  );
  return 0;
}
