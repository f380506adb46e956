/**
 * Small qcow2 images made by QEMU, and seeded ways to damage their metadata.
 *
 * @module
 */
import { runOk } from "../../qemu.ts";

/** Numbers from 0 up to `below`, repeatable by seed (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed * 0x9e3779b9 | 0;
  }

  below(limit: number): number {
    this.#state = this.#state + 0x6d2b79f5 | 0;
    let t = Math.imul(this.#state ^ this.#state >>> 15, 1 | this.#state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return Math.floor(((t ^ t >>> 14) >>> 0) / 2 ** 32 * limit);
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)];
  }
}

/** How to make an image. */
export interface Recipe {
  version: 2 | 3;
  clusterSize: number;
  refcountBits: number;
  snapshots: number;
  bitmap?: boolean;
  preallocation?: boolean;
}

/** Images that between them have every structure, and every refcount width. */
export const RECIPES: readonly Recipe[] = [
  { version: 3, clusterSize: 512, refcountBits: 16, snapshots: 2 },
  { version: 3, clusterSize: 4096, refcountBits: 16, snapshots: 1 },
  { version: 2, clusterSize: 1024, refcountBits: 16, snapshots: 2 },
  { version: 3, clusterSize: 512, refcountBits: 1, snapshots: 0 },
  { version: 3, clusterSize: 1024, refcountBits: 2, snapshots: 1 },
  { version: 3, clusterSize: 512, refcountBits: 4, snapshots: 2 },
  { version: 3, clusterSize: 2048, refcountBits: 8, snapshots: 1 },
  { version: 3, clusterSize: 512, refcountBits: 32, snapshots: 1 },
  { version: 3, clusterSize: 512, refcountBits: 64, snapshots: 2 },
  {
    version: 3,
    clusterSize: 1024,
    refcountBits: 16,
    // No snapshots: QEMU itself loses them when it repairs an image with
    // bitmaps.
    snapshots: 0,
    bitmap: true,
  },
  { version: 3, clusterSize: 65536, refcountBits: 16, snapshots: 1 },
  {
    version: 3,
    clusterSize: 512,
    refcountBits: 16,
    snapshots: 0,
    preallocation: true,
  },
];

/** Make an image by a recipe. */
export async function makeImage(path: string, recipe: Recipe): Promise<void> {
  const { version, clusterSize, refcountBits, snapshots } = recipe;
  const cluster = clusterSize / 1024;
  const size = clusterSize === 65536 ? 4096 : 64 * cluster;
  const options = [
    `compat=${version === 2 ? "0.10" : "1.1"}`,
    `cluster_size=${clusterSize}`,
    `refcount_bits=${refcountBits}`,
    `preallocation=${recipe.preallocation ? "metadata" : "off"}`,
  ];
  await runOk([
    ...["qemu-img", "create", "-q", "-f", "qcow2"],
    ...["-o", options.join(","), path, `${size}k`],
  ]);
  const write = (commands: string[]) =>
    runOk(["qemu-io", ...commands.flatMap((c) => ["-c", c]), path]);
  const at = (index: number) => `${index * clusterSize} ${clusterSize}`;
  // As many compressed clusters share a host cluster as refcounts can count.
  const packed = recipe.preallocation ? [] : [12, 13, 14].slice(
    0,
    Math.max(0, 2 ** refcountBits - 1 - 2 * snapshots),
  );
  await write([
    `write -P 1 0 ${10 * clusterSize}`,
    ...packed.map((index) => `write -c -P ${index} ${at(index)}`),
    ...(version === 3 ? [`write -z ${at(3)}`, `write -z -u ${at(20)}`] : []),
  ]);
  for (let index = 0; index < snapshots; index++) {
    await runOk(["qemu-img", "snapshot", "-c", `snap ${index}`, path]);
    await write([
      `write -P ${30 + index} ${at(index)}`,
      `write -P ${40 + index} ${at(25 + 8 * index)}`,
    ]);
  }
  if (recipe.bitmap) {
    await runOk(["qemu-img", "bitmap", "--add", path, "bitmap"]);
    await write([`write -P 5 ${at(30)}`]);
  }
}

/** A piece of metadata, as the offsets of its 64-bit entries. */
interface Structures {
  refcountTable: number[];
  l1: number[];
  l2: number[];
  snapshotL1: number[];
  snapshotL2: number[];
  /** Offsets of snapshot table entries. */
  snapshots: number[];
  /** Offsets of refcount blocks. */
  blocks: number[];
  bitmaps: number[];
}

/** Damages the bytes of an image; see {@linkcode damage}. */
class Damager {
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #random: Random;
  readonly #clusterSize: number;
  readonly #found: Structures;
  cutTo?: number;

  constructor(bytes: Uint8Array<ArrayBuffer>, random: Random) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer);
    this.#random = random;
    this.#clusterSize = 2 ** this.#view.getUint32(20);
    this.#found = this.#find();
  }

  #uint64(at: number): number {
    return at + 8 <= this.#bytes.length
      ? Number(this.#view.getBigUint64(at) & 0xffffffffffffffn)
      : 0;
  }

  /** The nonzero entries of a table, and one or two zero ones. */
  #entries(offset: number, count: number): number[] {
    const found: number[] = [];
    let zeroes = 0;
    for (let index = 0; index < count; index++) {
      const at = offset + index * 8;
      if (this.#uint64(at) !== 0 || zeroes++ < 2) found.push(at);
    }
    return found;
  }

  #tables(entries: number[]): number[] {
    return entries.flatMap((at) => {
      const offset = this.#uint64(at) & ~0x1ff;
      return offset ? this.#entries(offset, this.#clusterSize / 8) : [];
    });
  }

  #find(): Structures {
    const view = this.#view;
    const l1 = this.#entries(this.#uint64(40), view.getUint32(36));
    const tableBytes = view.getUint32(56) * this.#clusterSize;
    const refcountTable = this.#entries(this.#uint64(48), tableBytes / 8);
    const blocks = refcountTable.map((at) => this.#uint64(at)).filter(Boolean);
    const snapshots: number[] = [];
    const snapshotL1: number[] = [];
    let at = this.#uint64(64);
    for (let index = 0; index < view.getUint32(60); index++) {
      at = Math.ceil(at / 8) * 8;
      snapshots.push(at);
      snapshotL1.push(
        ...this.#entries(this.#uint64(at), view.getUint32(at + 8)),
      );
      at += 40 + view.getUint32(at + 36) + view.getUint16(at + 12) +
        view.getUint16(at + 14);
    }
    const l2 = this.#tables(l1);
    const snapshotL2 = this.#tables(snapshotL1);
    const bitmaps = this.#findBitmaps();
    return {
      ...{ l1, l2, refcountTable, blocks, snapshots, snapshotL1, snapshotL2 },
      bitmaps,
    };
  }

  #findBitmaps(): number[] {
    const view = this.#view;
    if (view.getUint32(4) < 3) return [];
    for (let at = view.getUint32(100); at < this.#clusterSize;) {
      const type = view.getUint32(at);
      if (type === 0) break;
      if (type === 0x23852875) {
        const directory = this.#uint64(at + 24);
        const table = this.#uint64(directory);
        return [
          directory,
          directory + 8,
          ...this.#entries(table, view.getUint32(directory + 8)),
        ];
      }
      at += 8 + Math.ceil(view.getUint32(at + 4) / 8) * 8;
    }
    return [];
  }

  /** Do one thing to the image; returns a description. */
  step(): string {
    const { l1, l2, refcountTable, snapshotL1, snapshotL2, bitmaps } =
      this.#found;
    const random = this.#random;
    const kind = random.below(20);
    if (kind < 5) return `L2 ${this.#entry(l2)}`;
    if (kind < 8) return `L1 ${this.#entry(l1)}`;
    if (kind < 11) return this.#refcounts();
    if (kind < 13) return `refcount table ${this.#entry(refcountTable)}`;
    if (kind < 14) return `snapshot L1 ${this.#entry(snapshotL1)}`;
    if (kind < 16) return `snapshot L2 ${this.#entry(snapshotL2)}`;
    if (kind < 18) return this.#snapshot();
    if (kind < 19) return `bitmap ${this.#entry(bitmaps)}`;
    return this.#header();
  }

  /** Change a 64-bit entry. */
  #entry(places: number[]): string {
    if (places.length === 0) return this.#refcounts();
    const random = this.#random;
    const at = random.pick(places);
    const old = this.#view.getBigUint64(at);
    const value = this.#badEntry(old, places);
    this.#view.setBigUint64(at, BigInt.asUintN(64, value));
    return `at ${at}: ${old.toString(16)} -> ${value.toString(16)}`;
  }

  #badEntry(old: bigint, places: number[]): bigint {
    const random = this.#random;
    const size = BigInt(this.#clusterSize);
    const clusters = Math.ceil(this.#bytes.length / this.#clusterSize);
    const offset = BigInt(random.below(clusters + 3)) * size;
    const flags = old & ~0x00fffffffffffe00n;
    switch (random.below(12)) {
      case 0:
        return 0n;
      case 1:
        return old ^ 1n << 63n;
      case 2:
        return old ^ 1n << 62n;
      case 3:
        return old ^ 1n;
      case 4: {
        const bit = BigInt(random.below(64));
        return bit > 26n && bit < 60n ? old ^ 2n : old ^ 1n << bit;
      }
      case 5:
        return old + 512n * BigInt(1 + random.below(3));
      case 6: {
        // Refcount blocks stay nearer: QEMU extends the file up to them.
        const bits = places === this.#found.refcountTable ? 6 : 30;
        return flags | BigInt(2 ** (20 + random.below(bits)));
      }
      case 7:
        return this.#view.getBigUint64(random.pick(places));
      case 8:
        return old + size;
      case 9:
        return old | BigInt(1 + random.below(511));
      default:
        return flags | offset;
    }
  }

  #refcounts(): string {
    const random = this.#random;
    const { blocks } = this.#found;
    if (blocks.length === 0) return "nothing";
    const block = random.pick(blocks);
    const cluster = this.#clusterSize;
    const used = Math.min(cluster, random.pick([16, 64, 256, cluster]));
    if (random.below(8) === 0) {
      this.#bytes.fill(0, block, block + cluster);
      return `refcount block at ${block} cleared`;
    }
    const start = block + random.below(used);
    const length = 1 + random.below(random.pick([1, 2, 16]));
    const end = Math.min(start + length, block + cluster);
    const value = random.pick([0, 1, 2, 3, 0x11, 0x55, 0x80, 0xff]);
    this.#bytes.fill(value, start, end);
    return `refcounts at ${start}-${end}: ${value}`;
  }

  #snapshot(): string {
    const random = this.#random;
    const { snapshots } = this.#found;
    if (snapshots.length === 0) return this.#header();
    const at = random.pick(snapshots);
    const field = random.below(7);
    const view = this.#view;
    if (field === 0) view.setUint32(at + 36, random.below(17));
    else if (field === 1) view.setUint32(at + 36, 1025 + random.below(3000));
    else if (field === 2) view.setUint32(at + 8, random.below(2 ** 20));
    else if (field === 3) view.setUint32(at + 8, 2 ** 32 - 1 - random.below(9));
    else if (field === 4) return `snapshot ${this.#entry([at])}`;
    else if (field === 5) view.setUint16(at + 12, random.below(40));
    else view.setUint16(at + 14, random.below(60000));
    return `snapshot at ${at}, field ${field}`;
  }

  #header(): string {
    const random = this.#random;
    const view = this.#view;
    const field = random.below(9);
    if (field === 0) view.setUint32(60, view.getUint32(60) + 1);
    else if (field === 1 && random.below(8) === 0) {
      view.setUint32(60, 65537 + random.below(100));
    } else if (field === 2) view.setUint32(56, random.below(4));
    else if (field === 3) view.setUint32(48, random.below(2) << 8);
    else if (field === 4) {
      const clusters = random.below(40) * this.#clusterSize;
      view.setBigUint64(48, BigInt(clusters));
    } else if (field === 5 && view.getUint32(4) === 3) {
      view.setUint32(76, view.getUint32(76) | 1 + random.below(3));
    } else if (field === 6) view.setUint32(68, random.below(2 ** 20));
    else if (field === 7) {
      view.setUint32(68, random.below(40) * this.#clusterSize);
    } else {
      this.cutTo = Math.max(
        this.#clusterSize * 4,
        this.#bytes.length - random.below(12 * this.#clusterSize),
      );
      return `cut to ${this.cutTo}`;
    }
    return `header, field ${field}`;
  }
}

/** Damage an image in one to four ways; returns a description. */
export function damage(
  image: Uint8Array,
  random: Random,
): { bytes: Uint8Array; what: string } {
  const bytes = image.slice();
  const damager = new Damager(bytes, random);
  const steps: string[] = [];
  for (let left = random.pick([1, 1, 1, 2, 2, 3, 4]); left > 0; left--) {
    steps.push(damager.step());
  }
  const length = damager.cutTo ?? bytes.length;
  return { bytes: bytes.subarray(0, length), what: steps.join("; ") };
}
