/**
 * The power fails at random moments while an image is written to. What is left
 * must be a sound image, at worst with leaked clusters, that holds everything
 * that was flushed.
 *
 * `BDRV_SEED` (`7` or `1-500`) chooses the seeds.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  type BlockNode,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { DelayNode, Scheduler } from "../../delay.ts";
import { type Effect, Random, seedsToRun } from "../../model.ts";
import { PowerLogs } from "../../power_log.ts";
import { isInstalled, TempDir } from "../../qemu.ts";
import { storeOf } from "./bytes.ts";
import { assertSound, isDirty } from "./soundness.ts";
import {
  describe,
  newFiles,
  qemuOn,
  SECRETS,
  someVariant,
  stackOf,
  type Variant,
} from "./variants.ts";

const SEEDS = 36;
const ROUNDS = 40;
const CUTS = 60;
/** The number of cuts for an image that takes some time to open. */
const CUTS_OF_LUKS = 25;

/** The time between two flushes of the disk. */
interface Epoch {
  /** Moments of the log at which it began and ended. */
  from: number;
  to: number;
  /** The durable content of the disk at its beginning. */
  before: Uint8Array;
  /** The writes in it. */
  effects: Effect[];
  /** The disk's sizes during it. */
  sizes: Set<number>;
  /** Snapshots that existed all the time, by id. */
  snapshots: Map<string, Uint8Array>;
  /** Whether the image may be marked as dirty, with wrong refcounts. */
  mayBeDirty: boolean;
}

/** An image under test, and its history. */
class Subject {
  readonly #random: Random;
  readonly #folder: TempDir;
  readonly #clusterSize: number;
  readonly #epochs: Epoch[] = [];
  /** The kind of image. */
  variant: Variant = {};
  #log!: PowerLogs;
  #image!: Image;
  #disk = new Uint8Array(0);
  readonly #snapshots = new Map<string, Uint8Array>();
  #isLazy = false;
  #isVersion2 = false;
  #backing?: { driver: string; store: MemoryStore };
  /** The disk's content where it has no clusters. */
  #base = new Uint8Array(0);

  constructor(random: Random, folder: TempDir) {
    this.#random = random;
    this.#folder = folder;
    this.#clusterSize = random.pick([512, 512, 1024, 4096, 16384]);
  }

  async run(): Promise<void> {
    await this.#make();
    this.#beginEpoch();
    for (let round = 0; round < ROUNDS; round++) {
      if (this.#random.oneIn(4)) {
        await this.#image.flush();
        this.#beginEpoch();
      } else if (this.#random.oneIn(15)) {
        await this.#resize();
      } else if (this.#random.oneIn(8)) {
        await this.#snapshot();
      } else if (this.#random.oneIn(12)) {
        await this.#amend();
      } else if (this.#random.oneIn(14)) {
        await this.#makeEmpty();
      } else {
        await this.#round();
      }
    }
    await this.#image.close();
    this.#current.to = this.#log.now;
  }

  async #make(): Promise<void> {
    const random = this.#random;
    const size = 512 * (1 + random.below(500));
    const isVersion2 = this.#isVersion2 = random.oneIn(4);
    this.#isLazy = !isVersion2 && random.oneIn(4);
    this.variant = someVariant(
      random,
      isVersion2 ? undefined : this.#folder.file("data"),
    );
    const files = await newFiles(this.variant, {
      size,
      cluster_size: this.#clusterSize,
      compat: isVersion2 ? "v2" : "v3",
      lazy_refcounts: this.#isLazy,
      extended_l2: !isVersion2 && this.#clusterSize === 16384,
      refcount_bits: isVersion2 ? 16 : random.pick([1, 8, 16, 64]),
    });
    this.#disk = new Uint8Array(size);
    if (!this.variant.isRaw && random.oneIn(3)) {
      this.#base = random.bytes(512 * (1 + random.below(600)));
      const store = new MemoryStore();
      store.write(0, this.#base);
      this.#backing = { driver: "memory", store };
      this.#disk = this.#baseRange(0, size);
    }
    this.#log = new PowerLogs(files);
    const scheduler = new Scheduler(random);
    this.#image = await this.#open(
      this.#log.logs.map((log) => new DelayNode(log, scheduler, random)),
      {
        "l2-cache-size": random.pick([0, 4096]),
        "l2-cache-entry-size": 512,
        "refcount-cache-size": 0,
        "pass-discard-other": random.oneIn(2),
      },
    );
  }

  /** The content of a range of the disk without clusters. */
  #baseRange(start: number, end: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(end - start);
    bytes.set(this.#base.subarray(start, end));
    return bytes;
  }

  #open(
    files: readonly BlockNode[] | readonly MemoryStore[],
    options = {},
    readOnly = false,
  ): Promise<Image> {
    const backing = this.#backing
      ? { driver: "raw", file: this.#backing }
      : null;
    const nodes = files.map(nodeOf);
    const stack = { ...stackOf(this.variant, nodes), backing, ...options };
    return openImage(stack, { readOnly, secrets: SECRETS });
  }

  #beginEpoch(): void {
    const from = this.#log.now;
    const last = this.#epochs[this.#epochs.length - 1];
    if (last) last.to = from;
    this.#epochs.push({
      from,
      to: Infinity,
      before: this.#disk.slice(),
      effects: [],
      sizes: new Set([this.#disk.length]),
      snapshots: new Map(this.#snapshots),
      mayBeDirty: this.#isLazy,
    });
  }

  /** Concurrent requests that do not overlap. */
  async #round(): Promise<void> {
    const random = this.#random;
    const { effects } = this.#current;
    const { length: size } = this.#disk;
    const requests: Promise<void>[] = [];
    let at = random.below(size);
    for (let count = 1 + random.below(5); count > 0 && at < size; count--) {
      const wanted = 1 + random.below(random.pick([100, 2000, 20_000]));
      const offset = at;
      const length = Math.min(wanted, size - offset);
      const kind = random.below(10);
      const bytes = kind < 5 ? random.bytes(length) : new Uint8Array(length);
      if (kind < 7) {
        effects.push({ offset, bytes });
        this.#disk.set(bytes, offset);
        requests.push(
          kind < 5
            ? this.#image.write(offset, bytes)
            : this.#image.writeZeroes(offset, length, { unmap: kind === 6 }),
        );
      } else if (kind === 7) {
        requests.push(this.#discard(offset, length));
      } else {
        const end = this.#compressed(offset, requests);
        if (end > size) break;
        at = Math.max(at, end - length);
      }
      at += length + random.below(3000);
    }
    await Promise.all(requests);
  }

  /** Whole clusters from the next boundary on; returns their end. */
  #compressed(offset: number, requests: Promise<void>[]): number {
    offset = Math.ceil(offset / this.#clusterSize) * this.#clusterSize;
    const end = offset + this.#clusterSize;
    const { encryption, dataFile } = this.variant;
    if (end > this.#disk.length || encryption || dataFile) return end;
    const bytes = this.#random.dullBytes(this.#clusterSize);
    const write = async () => {
      try {
        await this.#image.node.writeCompressed!(offset, [bytes]);
      } catch (error) {
        // Refused where the cluster is allocated.
        if (!(error instanceof BlockError && error.code === "EIO")) throw error;
        return;
      }
      this.#current.effects.push({ offset, bytes });
      this.#disk.set(bytes, offset);
    };
    requests.push(write());
    return end;
  }

  /** Take, delete or apply a snapshot. */
  async #snapshot(): Promise<void> {
    if (this.variant.dataFile) return;
    const snapshots = this.#image.node.snapshots!;
    const epoch = this.#current;
    const id = this.#random.pick([...this.#snapshots.keys(), undefined]);
    if (id === undefined) {
      try {
        const { id } = await snapshots.create({ name: "a snapshot" });
        this.#snapshots.set(id, this.#disk.slice());
      } catch (error) {
        if (!isOverflow(error)) throw error;
      }
    } else if (this.#random.oneIn(2)) {
      epoch.snapshots.delete(id);
      this.#snapshots.delete(id);
      await snapshots.delete(id);
    } else if (
      !this.#isVersion2 || this.#snapshots.get(id)!.length === this.#disk.length
    ) {
      const bytes = this.#snapshots.get(id)!;
      epoch.effects.push({ offset: 0, bytes });
      this.#noteResize(bytes.length);
      try {
        await snapshots.apply(id);
      } catch (error) {
        if (isOverflow(error)) return;
        throw error;
      }
      this.#disk = bytes.slice();
    }
  }

  /** Change the width of refcounts, or the version; the content stays. */
  async #amend(): Promise<void> {
    const isVersion2 = this.#random.oneIn(3) && !this.#isLazy &&
      !this.variant.dataFile;
    const width = this.#random.pick([1, 16, 16, 32, 64]);
    try {
      await this.#image.node.image!.amend!({
        compat: isVersion2 ? "0.10" : "1.1",
        refcount_bits: isVersion2 ? 16 : width,
      });
    } catch (error) {
      // Snapshots may need more bits, or have another size; version 2 has no
      // subclusters.
      if (!(error instanceof BlockError)) throw error;
      assertMatch(error.message, /Cannot decrease|prevent downgrade|features/);
    }
    const { specific } = await this.#image.info();
    this.#isVersion2 = specific?.data.compat === "0.10";
  }

  get #current(): Epoch {
    return this.#epochs[this.#epochs.length - 1];
  }

  async #discard(offset: number, length: number): Promise<void> {
    const bytes = new Uint8Array(length);
    this.#current.effects.push({ offset, bytes });
    await this.#image.discard(offset, length);
    this.#disk.set(await this.#image.read(offset, length), offset);
  }

  async #makeEmpty(): Promise<void> {
    const bytes = this.#baseRange(0, this.#disk.length);
    this.#current.effects.push({ offset: 0, bytes });
    this.#current.mayBeDirty = true;
    await this.#image.node.image!.makeEmpty!();
    this.#disk = bytes.slice();
  }

  async #resize(): Promise<void> {
    // Version 2 cannot hide the content of a backing file.
    const isShared = this.#backing || this.#snapshots.size > 0;
    if (this.#isVersion2 && isShared) return;
    const size = 512 * (1 + this.#random.below(500));
    this.#noteResize(size);
    await this.#image.resize(size);
    this.#disk = resized(this.#disk, size);
  }

  /** Data past the smaller size may disappear before the size changes. */
  #noteResize(size: number): void {
    const { effects, sizes } = this.#current;
    const { length: old } = this.#disk;
    const [start, end] = [Math.min(old, size), Math.max(old, size)];
    effects.push({ offset: start, bytes: new Uint8Array(end - start) });
    if (size < old) {
      effects.push({ offset: start, bytes: this.#baseRange(start, end) });
    }
    sizes.add(size);
  }

  /** Cut the power at random moments, and examine what is left. */
  async cut(folder: TempDir): Promise<void> {
    const random = this.#random;
    const moments = Array.from(
      { length: this.variant.encryption === "luks" ? CUTS_OF_LUKS : CUTS },
      () => random.below(this.#log.now + 1),
    ).sort((a, b) => a - b);
    for (const { moment, files } of this.#log.cuts(moments, random)) {
      try {
        await this.#examine(moment, files.map(storeOf));
        if (random.oneIn(30) && isInstalled("qemu-img")) {
          await examineWithQemu(this.variant, files, folder);
        }
      } catch (error) {
        const name = `${folder.path}-cut.qcow2`;
        Deno.writeFileSync(name, files[0]);
        throw new Error(`cut at ${moment} (${name}): ${error}`, {
          cause: error,
        });
      }
    }
  }

  async #examine(moment: number, stores: MemoryStore[]): Promise<void> {
    const [store] = stores;
    const others = stackOf(this.variant, stores.map(nodeOf));
    const epoch = this.#epochs.findLast(({ from }) => from <= moment)!;
    // If it is dirty, opening it repairs it.
    if (!epoch.mayBeDirty || !await isDirty(store, others)) {
      await assertSound(store, others);
    }
    await using image = await this.#open(stores);
    assertEquals(epoch.sizes.has(image.size), true, "an unexpected size");
    const found = await image.read(0, image.size);
    checkContent(epoch, found);
    // The image remains usable.
    const bytes = this.#random.bytes(Math.min(20_000, image.size));
    const offset = this.#random.below(image.size - bytes.length + 1);
    await image.write(offset, bytes);
    found.set(bytes, offset);
    await image.flush();
    assertEquals(isEqual(await image.read(0, image.size), found), true);
    await image.close();
    await assertSound(store, others);
    for (const [id, content] of epoch.snapshots) {
      await this.#examineSnapshot(stores, id, content);
    }
    if (this.#random.oneIn(3)) await this.#resizeAfterCut(stores, found);
  }

  /** Data that was cut off must not come back when the disk grows. */
  async #resizeAfterCut(
    stores: MemoryStore[],
    disk: Uint8Array,
  ): Promise<void> {
    await using image = await this.#open(stores);
    const { specific } = await image.info();
    const isVersion2 = specific!.data.compat === "0.10";
    const { length: snapshots } = await image.node.snapshots!.list();
    if (isVersion2 && (this.#backing || snapshots > 0)) return;
    for (const most of [2000, 300, 2000]) {
      const size = 512 * (1 + this.#random.below(most));
      await image.resize(size);
      disk = resized(disk, size);
      const found = await image.read(0, size);
      assertEquals(isEqual(found, disk), true, `resized to ${size}`);
    }
    await image.close();
    const others = stackOf(this.variant, stores.map(nodeOf));
    await assertSound(stores[0], others);
  }

  async #examineSnapshot(
    stores: MemoryStore[],
    id: string,
    content: Uint8Array,
  ): Promise<void> {
    await using image = await this.#open(stores, {}, true);
    await image.node.snapshots!.loadTemporary(id);
    const found = await image.read(0, image.size);
    assertEquals(isEqual(found, content), true, `snapshot ${id}`);
  }
}

/**
 * Assert that each byte is what it was before the epoch, or was written in it.
 */
function checkContent(epoch: Epoch, found: Uint8Array): void {
  const { before, effects } = epoch;
  for (let at = 0; at < found.length; at++) {
    if (at < before.length && found[at] === before[at]) continue;
    const written = effects.some(({ offset, bytes }) =>
      at >= offset && bytes[at - offset] === found[at]
    );
    if (written) continue;
    throw new Error(
      `byte ${at} is ${found[at]}, was ${before[at]} when last flushed, and ` +
        "nobody wrote that since",
    );
  }
}

/** The description of a file. */
function nodeOf(file: BlockNode | MemoryStore): unknown {
  return file instanceof MemoryStore ? { driver: "memory", store: file } : file;
}

async function examineWithQemu(
  variant: Variant,
  [file, data]: readonly Uint8Array[],
  folder: TempDir,
): Promise<void> {
  const names = ["cut.qcow2", "cut.data"].map((name) => folder.file(name));
  Deno.writeFileSync(names[0], file);
  if (data) Deno.writeFileSync(names[1], data);
  // Bit 0 of the incompatible features: dirty.
  const isMarked = file[7] === 3 && (file[79] & 1) !== 0;
  const { code, stderr } = await qemuOn(variant, ["check"], names);
  // 3 means leaked clusters only.
  if (code === 0 || code === 3) return;
  const mayBeRepaired = isMarked || stderr.includes("OFLAG_COPIED");
  const repair = await qemuOn(variant, ["check", "-r", "all"], names);
  if (mayBeRepaired && repair.code === 0) return;
  throw new Error(`qemu-img check: ${stderr}`);
}

/** The bytes of a disk after a change of its size. */
function resized(disk: Uint8Array, size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  bytes.set(disk.subarray(0, size));
  return bytes;
}

/** The narrowest refcounts cannot count a second user of a cluster. */
function isOverflow(error: unknown): boolean {
  return error instanceof BlockError && error.code === "EINVAL";
}

Deno.test("flushed data survives power cuts", async () => {
  await using folder = new TempDir();
  for (const seed of seedsToRun(SEEDS)) {
    const subject = new Subject(new Random(seed), folder);
    try {
      await subject.run();
      await subject.cut(folder);
    } catch (error) {
      const what = describe(subject.variant);
      throw new Error(`BDRV_SEED=${seed}, ${what}: ${error}`, { cause: error });
    }
  }
});
