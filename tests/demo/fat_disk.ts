/**
 * A small disk as a computer would use it: a partition table, and in the only
 * partition a FAT16 file system with some files. It is written and read through
 * an image, in as few requests as possible, so that holes stay holes.
 *
 * @module
 */
import { BlockError, type Image } from "@bdrv/bdrv";

const SECTOR = 512;
const CLUSTER = 4 * SECTOR;
const FAT_COUNT = 2;
const ROOT_ENTRIES = 512;
const ENTRY = 32;
/** In the allocation table: the last cluster of a file. */
const LAST = 0xffff;
/** The start of the partition, in bytes. */
const PARTITION = 1024 * 1024;
/** Partition type: FAT16, addressed by sector (LBA). */
const FAT16_LBA = 0x0e;

/** The parts of the file system, in bytes from the start of the disk. */
interface Layout {
  fat: number;
  fatSize: number;
  root: number;
  /** Cluster 2, which is the first. */
  data: number;
}

/** Make the file system, and put files into it. Names are `NAME.EXT`. */
export async function makeFatDisk(
  image: Image,
  files: { [name: string]: Uint8Array },
): Promise<void> {
  const sectors = (image.size - PARTITION) / SECTOR;
  const fatSectors = Math.ceil(
    (sectors * SECTOR / CLUSTER + 2) * 2 / SECTOR,
  );
  const boot = bootSector(sectors, fatSectors);
  const { fat, fatSize, root, data } = layoutOf(boot);

  const table = new DataView(new ArrayBuffer(fatSize));
  table.setUint16(0, 0xfff8, true);
  table.setUint16(2, LAST, true);
  const entries = new Uint8Array(ROOT_ENTRIES * ENTRY);
  let cluster = 2;
  let entry = 0;
  for (const [name, bytes] of Object.entries(files)) {
    entries.set(directoryEntry(name, cluster, bytes.length), entry);
    await image.write(data + (cluster - 2) * CLUSTER, bytes);
    const end = cluster + Math.ceil(bytes.length / CLUSTER);
    while (cluster < end) {
      const next = cluster + 1 < end ? cluster + 1 : LAST;
      table.setUint16(cluster++ * 2, next, true);
    }
    entry += ENTRY;
  }
  await image.write(0, masterBootRecord(sectors));
  await image.write(PARTITION, boot);
  for (let copy = 0; copy < FAT_COUNT; copy++) {
    await image.write(fat + copy * fatSize, new Uint8Array(table.buffer));
  }
  await image.write(root, entries);
}

/** Find a file through the partition table, and read it. */
export async function readFatFile(
  image: Image,
  name: string,
): Promise<Uint8Array> {
  const { bytes, clusters, data } = await findFile(image, name);
  const whole = new Uint8Array(clusters.length * CLUSTER);
  for (const [index, cluster] of clusters.entries()) {
    const part = whole.subarray(index * CLUSTER, (index + 1) * CLUSTER);
    await image.read(data + (cluster - 2) * CLUSTER, part);
  }
  return whole.subarray(0, bytes);
}

/** Overwrite the beginning of a file in place, as a hex editor would. */
export async function patchFatFile(
  image: Image,
  name: string,
  start: Uint8Array,
): Promise<void> {
  const { clusters, data } = await findFile(image, name);
  await image.write(data + (clusters[0] - 2) * CLUSTER, start);
}

async function findFile(image: Image, name: string) {
  const record = view(await image.read(0, SECTOR));
  const start = record.getUint32(446 + 8, true) * SECTOR;
  const { fat, fatSize, root, data } = layoutOf(
    await image.read(start, SECTOR),
  );
  const entries = await image.read(root, ROOT_ENTRIES * ENTRY);
  const wanted = shortName(name);
  for (let at = 0; entries[at] !== 0; at += ENTRY) {
    if (!wanted.every((byte, i) => entries[at + i] === byte)) continue;
    const table = view(await image.read(fat, fatSize));
    const clusters: number[] = [];
    let cluster = view(entries).getUint16(at + 26, true);
    while (cluster < LAST) {
      clusters.push(cluster);
      cluster = table.getUint16(cluster * 2, true);
    }
    return {
      bytes: view(entries).getUint32(at + 28, true),
      clusters,
      data,
    };
  }
  throw new BlockError("ENOENT", `There is no file '${name}' on the disk`);
}

function layoutOf(boot: Uint8Array): Layout {
  const fields = view(boot);
  const fat = PARTITION + fields.getUint16(14, true) * SECTOR;
  const fatSize = fields.getUint16(22, true) * SECTOR;
  const root = fat + FAT_COUNT * fatSize;
  return { fat, fatSize, root, data: root + ROOT_ENTRIES * ENTRY };
}

function masterBootRecord(sectors: number): Uint8Array {
  const record = new Uint8Array(SECTOR);
  const fields = view(record);
  record[446] = 0x80; // bootable
  record.set([0xfe, 0xff, 0xff], 447); // beyond what CHS can address
  record[450] = FAT16_LBA;
  record.set([0xfe, 0xff, 0xff], 451);
  fields.setUint32(454, PARTITION / SECTOR, true);
  fields.setUint32(458, sectors, true);
  fields.setUint16(510, 0xaa55, true);
  return record;
}

function bootSector(sectors: number, fatSectors: number): Uint8Array {
  const boot = new Uint8Array(SECTOR);
  const fields = view(boot);
  boot.set([0xeb, 0x3c, 0x90]); // a jump over the fields
  boot.set(ascii("BDRV    "), 3);
  fields.setUint16(11, SECTOR, true);
  fields.setUint8(13, CLUSTER / SECTOR);
  fields.setUint16(14, 1, true); // reserved sectors: this one
  fields.setUint8(16, FAT_COUNT);
  fields.setUint16(17, ROOT_ENTRIES, true);
  fields.setUint16(19, sectors, true);
  fields.setUint8(21, 0xf8); // a hard disk
  fields.setUint16(22, fatSectors, true);
  fields.setUint16(24, 63, true); // sectors a track …
  fields.setUint16(26, 255, true); // … and heads, which are obsolete
  fields.setUint32(28, PARTITION / SECTOR, true);
  fields.setUint8(36, 0x80);
  fields.setUint8(38, 0x29); // the next three fields are valid
  fields.setUint32(39, 0xb10c_d15c, true);
  boot.set(ascii("NO NAME    "), 43);
  boot.set(ascii("FAT16   "), 54);
  fields.setUint16(510, 0xaa55, true);
  return boot;
}

function directoryEntry(
  name: string,
  cluster: number,
  bytes: number,
): Uint8Array {
  const entry = new Uint8Array(ENTRY);
  const fields = view(entry);
  entry.set(shortName(name));
  fields.setUint8(11, 0x20); // an ordinary file
  fields.setUint16(24, (2025 - 1980) << 9 | 1 << 5 | 1, true);
  fields.setUint16(26, cluster, true);
  fields.setUint32(28, bytes, true);
  return entry;
}

/** `NAME.EXT` as directories store it: padded to 8 and 3 characters. */
function shortName(name: string): Uint8Array {
  const [base, extension = ""] = name.split(".");
  return ascii(base.padEnd(8) + extension.padEnd(3));
}

function ascii(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
