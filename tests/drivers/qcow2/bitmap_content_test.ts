/**
 * The bits of a bitmap in pages, compared with plain bytes.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { BitmapContent } from "../../../drivers/qcow2/bitmaps/content.ts";
import {
  ALL_ONES,
  ALL_ZEROES,
  type BitmapTable,
} from "../../../drivers/qcow2/bitmaps/table.ts";
import { Random, seedsToRun } from "../../model.ts";

/** A file, and a table of the offsets of clusters in it. */
class Stored {
  readonly #clusterSize: number;
  readonly file = new Map<number, Uint8Array>();
  #end = 1;

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
  }

  get source() {
    const clusterSize = this.#clusterSize;
    return {
      clusterSize,
      read: (offset: number, target: Uint8Array) => {
        const start = offset - offset % clusterSize;
        const bytes = this.file.get(start)!;
        const within = offset - start;
        target.set(bytes.subarray(within, within + target.length));
        return Promise.resolve();
      },
    };
  }

  put(bytes: Uint8Array): number {
    const offset = this.#end++ * this.#clusterSize;
    this.file.set(offset, bytes);
    return offset;
  }
}

/** Store the changes, as the driver does. */
async function store(content: BitmapContent, stored: Stored): Promise<void> {
  const table: BitmapTable = new Float64Array(content.clusters);
  for (let index = 0; index < table.length; index++) {
    const bytes = await content.changedCluster(index);
    table[index] = content.table[index] ?? ALL_ZEROES;
    if (!bytes) continue;
    table[index] = bytes.some((byte) => byte > 0)
      ? stored.put(bytes)
      : ALL_ZEROES;
  }
  content.stored(table);
}

async function runs(content: BitmapContent, bits: number) {
  const found = new Uint8Array(bits);
  for (let at = 0;;) {
    const run = await content.nextRun(at, bits);
    if (!run) return found;
    assert(run.start >= at && run.end > run.start && run.end <= bits);
    found.fill(1, run.start, run.end);
    at = run.end;
  }
}

Deno.test("BitmapContent has the bits that were set, stored or not", async () => {
  for (const seed of seedsToRun(20)) {
    const random = new Random(seed);
    const clusterSize = random.pick([512, 1024, 8192]);
    const stored = new Stored(clusterSize);
    let bits = 1 + random.below(90_000);
    const content = new BitmapContent(stored.source, bits, new Float64Array(0));
    let model = new Uint8Array(bits);
    for (let step = 0; step < 40; step++) {
      const kind = random.below(10);
      if (kind < 6) {
        const start = random.below(bits);
        const most = random.pick([3, 5000, bits]);
        const end = Math.min(bits, start + 1 + random.below(most));
        if (!content.set(start, end)) {
          await content.load(start, end);
          assert(content.set(start, end));
        }
        model.fill(1, start, end);
        assertEquals(content.covers(start, end), true);
      } else if (kind < 7) {
        content.clear();
        model.fill(0);
      } else if (kind < 8) {
        bits = 1 + random.below(90_000);
        await content.resize(bits);
        const old = model;
        model = new Uint8Array(bits);
        model.set(old.subarray(0, bits));
      } else {
        await store(content, stored);
      }
      assertEquals(content.clusters, Math.ceil(bits / 8 / clusterSize));
      const found = await runs(content, bits);
      const wrong = found.findIndex((bit, i) => bit !== model[i]);
      assertEquals(wrong, -1, `seed ${seed}, step ${step}, bit ${wrong}`);
    }
  }
});

Deno.test("BitmapContent reads a cluster as ones if its table entry says so", async () => {
  const stored = new Stored(512);
  const table = Float64Array.of(ALL_ZEROES, ALL_ONES, ALL_ONES);
  const bits = 2.5 * 4096;
  const content = new BitmapContent(stored.source, bits, table);
  assertEquals(await content.nextRun(0, bits), { start: 4096, end: bits });
  // The rest of the last cluster does not belong to it.
  await content.resize(3 * 4096);
  assertEquals(await content.nextRun(0, bits + 9), { start: 4096, end: bits });
});
