/**
 * The power fails while an image with persistent bitmaps is written to, while
 * bitmaps are changed, and while they are stored. Afterwards each is either
 * marked as in use, or has recorded every difference between the disk and its
 * content when the bitmap began.
 *
 * `BDRV_SEED` (`7` or `1-500`) chooses the seeds.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import type { DirtyExtent } from "../../../core/node.ts";
import { openImage } from "../../../mod.ts";
import { BitmapModel } from "../../bitmap_model.ts";
import { DelayNode, Scheduler } from "../../delay.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLogs } from "../../power_log.ts";
import { isInstalled, TempDir } from "../../qemu.ts";
import { storeOf } from "./bytes.ts";
import { assertSound } from "./soundness.ts";
import {
  describe,
  newFiles,
  qemuOn,
  SECRETS,
  someVariant,
  stackOf,
  type Variant,
} from "./variants.ts";

const SEEDS = 16;
const SESSIONS = 4;
const CUTS = 100;
/** The number of cuts for an image that takes some time to open. */
const CUTS_OF_LUKS = 30;

/** The last byte of the header's autoclear features. */
const AUTOCLEAR_END = 95;

/** A bitmap, and the disk's content when it began to record. */
interface Recording {
  readonly model: BitmapModel;
  begin: Uint8Array<ArrayBuffer>;
}

/** The bitmaps that were stored when the image was closed. */
interface Stored {
  /** The moment of the log from which on they are stored. */
  readonly at: number;
  readonly bitmaps: ReadonlyMap<string, {
    readonly extents: DirtyExtent[];
    readonly begin: Uint8Array;
  }>;
}

class Subject {
  readonly #random: Random;
  readonly #granularities: number[];
  readonly #clusterSize: number;
  readonly variant: Variant;
  #log!: PowerLogs;
  #image!: Image;
  #size: number;
  readonly #recordings: Recording[] = [];
  readonly #stored: Stored[] = [];

  constructor(random: Random, folder: TempDir) {
    this.#random = random;
    this.#clusterSize = random.pick([512, 1024, 4096, 16384]);
    this.variant = someVariant(random, folder.file("data"));
    this.#granularities = [512, 512, 1024, 8192];
    this.#size = this.#newSize();
  }

  #newSize(): number {
    return 512 * (1 + this.#random.below(this.#random.pick([40, 400, 9000])));
  }

  async run(): Promise<void> {
    const files = await newFiles(this.variant, {
      size: this.#size,
      cluster_size: this.#clusterSize,
      extended_l2: this.#clusterSize === 16384,
      lazy_refcounts: this.#random.oneIn(4),
    });
    this.#log = new PowerLogs(files);
    this.#noteStored();
    for (let session = 0; session < SESSIONS; session++) await this.#session();
  }

  async #session(): Promise<void> {
    const random = this.#random;
    if (random.oneIn(3)) await this.#addUnknownFeature();
    const scheduler = new Scheduler(random);
    const files = this.#log.logs.map((log) =>
      new DelayNode(log, scheduler, random)
    );
    this.#image = await openImage({
      ...stackOf(this.variant, files),
      "pass-discard-other": random.oneIn(2),
    }, { secrets: SECRETS });
    if (this.#recordings.length < 3) await this.#add();
    for (let round = 2 + random.below(10); round > 0; round--) {
      const kind = random.below(16);
      if (kind < 2) await this.#image.flush();
      else if (kind < 4) await this.#resize();
      else if (kind < 7) await this.#changeBitmap();
      else if (kind < 9) await this.#store();
      else await this.#write();
    }
    for (const { model } of this.#recordings) await model.check(this.#image);
    await this.#image.close();
    this.#noteStored();
  }

  async #add(): Promise<void> {
    const name = `bitmap ${this.#random.below(1000)}`;
    const granularity = this.#random.pick(this.#granularities);
    await this.#image.bitmaps.add(name, { granularity });
    this.#recordings.push({
      model: new BitmapModel(name, granularity, this.#size),
      begin: await this.#content(),
    });
  }

  #content(): Promise<Uint8Array<ArrayBuffer>> {
    return contentOfImage(this.#image);
  }

  async #changeBitmap(): Promise<void> {
    const random = this.#random;
    const { bitmaps } = this.#image;
    if (this.#recordings.length === 0) return await this.#add();
    const recording = random.pick(this.#recordings);
    const { model } = recording;
    switch (random.below(4)) {
      case 0:
        await bitmaps.clear(model.name);
        model.clear();
        recording.begin = await this.#content();
        return;
      case 1: {
        const other = random.pick(this.#recordings).model;
        for (const { offset, length } of other.extents()) {
          model.mark(offset, length);
        }
        return await bitmaps.merge(model.name, other.name);
      }
      case 2:
        await bitmaps.remove(model.name);
        this.#recordings.splice(this.#recordings.indexOf(recording), 1);
        return;
      case 3:
        return await this.#add();
    }
  }

  /**
   * Set an autoclear bit, as a later program might: then the bitmaps are marked
   * as in use by the first change only.
   */
  async #addUnknownFeature(): Promise<void> {
    const [log] = this.#log.logs;
    const last = new Uint8Array(1);
    await log.readv(AUTOCLEAR_END, [last]);
    last[0] |= 0x20;
    await log.writev(AUTOCLEAR_END, [last]);
    await log.flush();
  }

  /** Store the bitmaps, which are not marked as in use until the next change. */
  async #store(): Promise<void> {
    await this.#image.node.invalidate!();
    this.#noteStored();
  }

  async #resize(): Promise<void> {
    const size = this.#newSize();
    await this.#image.resize(size);
    this.#size = size;
    for (const recording of this.#recordings) {
      recording.model.resize(size);
      const begin = new Uint8Array(size);
      begin.set(recording.begin.subarray(0, size));
      recording.begin = begin;
    }
  }

  async #write(): Promise<void> {
    const random = this.#random;
    const requests: Promise<void>[] = [];
    for (let count = 1 + random.below(4); count > 0; count--) {
      const offset = random.below(this.#size);
      const most = Math.min(
        random.pick([10, 3000, 60_000]),
        this.#size - offset,
      );
      const length = 1 + random.below(most);
      requests.push(
        random.pick([
          () => {
            this.#noteWrite(offset, length);
            return this.#image.write(offset, random.bytes(length));
          },
          () => {
            this.#noteWrite(offset, length);
            return this.#image.writeZeroes(offset, length, { unmap: true });
          },
          () => this.#discard(offset, length),
        ])(),
      );
    }
    await Promise.all(requests);
  }

  #discard(offset: number, length: number): Promise<void> {
    // Sectors are encrypted whole: those covered in part are left out.
    const unit = this.variant.encryption ? 512 : 1;
    const start = Math.ceil(offset / unit) * unit;
    const end = Math.floor((offset + length) / unit) * unit;
    this.#noteWrite(start, Math.max(0, end - start));
    return this.#image.discard(offset, length);
  }

  #noteWrite(offset: number, length: number): void {
    for (const { model } of this.#recordings) model.write(offset, length);
  }

  #noteStored(): void {
    const bitmaps = this.#recordings.map(({ model, begin }) =>
      [model.name, { extents: model.extents(), begin }] as const
    );
    this.#stored.push({ at: this.#log.now, bitmaps: new Map(bitmaps) });
  }

  /** Cut the power, and examine what is left. */
  async cut(folder: TempDir): Promise<{ valid: number; inUse: number }> {
    const random = this.#random;
    const counts = { valid: 0, inUse: 0 };
    const moments = Array.from(
      { length: this.variant.encryption === "luks" ? CUTS_OF_LUKS : CUTS },
      () => random.below(this.#log.now + 1),
    ).sort((a, b) => a - b);
    for (const { moment, files } of this.#log.cuts(moments, random)) {
      const last = this.#stored.findLastIndex(({ at }) => at <= moment);
      const candidates = this.#stored.slice(last, last + 2);
      try {
        await this.#examine(files, candidates, counts);
        if (random.oneIn(40) && isInstalled("qemu-img")) {
          await examineWithQemu(this.variant, files, folder);
        }
      } catch (error) {
        throw new Error(`cut at ${moment}: ${error}`, { cause: error });
      }
    }
    const [log, data] = this.#log.logs;
    // A data file's content at that moment is unknown, and deriving keys takes
    // time.
    if (data || this.variant.encryption === "luks") return counts;
    for (const { what, file } of log.reordered()) {
      // Any of the states ever stored.
      await this.#examine([file], this.#stored, counts).catch((error) => {
        throw new Error(`${what}: ${error}`, { cause: error });
      });
    }
    return counts;
  }

  async #examine(
    files: readonly Uint8Array[],
    candidates: readonly Stored[],
    counts: { valid: number; inUse: number },
  ): Promise<void> {
    const nodes = () =>
      files.map((file) => ({ driver: "memory", store: storeOf(file) }));
    const stack = stackOf(this.variant, nodes());
    const how = { readOnly: true, secrets: SECRETS };
    await using image = await openImage(stack, how);
    const { dirty } = await image.info();
    if (!dirty) {
      const others = stackOf(this.variant, nodes());
      await assertSound(storeOf(files[0]), others);
    }
    const found = await contentOfImage(image);
    for (const { name, flags } of await image.bitmaps.list()) {
      if (flags.includes("in-use")) {
        counts.inUse++;
        continue;
      }
      counts.valid++;
      const extents = await Array.fromAsync(image.bitmaps.dirty(name));
      const text = JSON.stringify(extents);
      const fits = candidates.some(({ bitmaps }) => {
        const stored = bitmaps.get(name);
        return stored && JSON.stringify(stored.extents) === text &&
          covers(extents, stored.begin, found);
      });
      assert(fits, `'${name}' claims less than was written: ${text}`);
    }
  }
}

/** Whether every difference between two contents is recorded. */
function covers(
  extents: readonly DirtyExtent[],
  begin: Uint8Array,
  found: Uint8Array,
): boolean {
  if (begin.length !== found.length) return false;
  let at = 0;
  for (
    const { offset, length } of [...extents, {
      offset: found.length,
      length: 0,
    }]
  ) {
    for (; at < offset; at++) if (begin[at] !== found[at]) return false;
    at = offset + length;
  }
  return true;
}

async function contentOfImage(
  image: Image,
): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await image.read(0, image.size));
}

async function examineWithQemu(
  variant: Variant,
  files: readonly Uint8Array[],
  folder: TempDir,
): Promise<void> {
  const names = files.map((file, index) => {
    const name = folder.file(`cut${index}`);
    Deno.writeFileSync(name, file);
    return name;
  });
  // It refuses an image whose bitmaps it cannot read.
  const { code, stderr } = await qemuOn(variant, ["info"], names);
  assertEquals(code, 0, stderr);
}

Deno.test("bitmaps survive power cuts, or are marked as in use", async () => {
  await using folder = new TempDir();
  const total = { valid: 0, inUse: 0 };
  for (const seed of seedsToRun(SEEDS)) {
    const subject = new Subject(new Random(seed), folder);
    try {
      await subject.run();
      const { valid, inUse } = await subject.cut(folder);
      total.valid += valid;
      total.inUse += inUse;
    } catch (error) {
      const what = describe(subject.variant);
      throw new Error(`BDRV_SEED=${seed}, ${what}: ${error}`, { cause: error });
    }
  }
  assert(total.valid > 0 && total.inUse > 0, JSON.stringify(total));
});
