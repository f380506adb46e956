/**
 * Jobs over graphs that are drained and changed meanwhile.
 *
 * @module
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  bench,
  BlockError,
  type BlockNode,
  commit,
  compare,
  convert,
  convertStream,
  createImage,
  drain,
  Image,
  insertFilter,
  measure,
  MemoryStore,
  openImage,
  rebase,
  removeFilter,
  replaceChild,
  streamImage,
  ThrottleGroup,
} from "../../../mod.ts";
import { DelayNode } from "../../delay.ts";
import { Random, seedsToRun } from "../../model.ts";
import { SlowFiles } from "../../slow_files.ts";

const CLUSTER = 4096;
const SIZE = 256 * CLUSTER;

/** An overlay, its base, and another disk, all on slow files. */
class Disks {
  readonly random: Random;
  readonly files: SlowFiles;
  /** The content of the overlay, and that of its base. */
  readonly content = new Uint8Array(SIZE);
  readonly baseContent = new Uint8Array(SIZE);
  overlay!: Image;
  other!: Image;
  /**
   * The format nodes on slow files: the overlay, its base, and the other disk.
   */
  readonly formats: BlockNode[] = [];

  private constructor(random: Random) {
    this.random = random;
    this.files = new SlowFiles(random);
  }

  static async make(random: Random): Promise<Disks> {
    const disks = new Disks(random);
    const { files, content, baseContent } = disks;
    const stores = [new MemoryStore(), new MemoryStore(), new MemoryStore()];
    for (const store of stores) {
      const file = { driver: "memory", store };
      await createImage("qcow2", file, { size: SIZE, cluster_size: CLUSTER });
    }
    const [low, high] = stores.map((store) => ({ driver: "memory", store }));
    baseContent.set(await written({ driver: "qcow2", file: low }, random));
    content.set(baseContent);
    const own = await written({ driver: "qcow2", file: high }, random);
    for (let at = 0; at < SIZE; at += CLUSTER) {
      const cluster = own.subarray(at, at + CLUSTER);
      if (cluster.some((byte) => byte !== 0)) content.set(cluster, at);
    }
    const slow: BlockNode[] = [];
    for (const store of stores) slow.push(await files.open(store));
    disks.overlay = await openImage({
      driver: "qcow2",
      file: slow[1],
      backing: { driver: "qcow2", file: slow[0], "read-only": false },
    });
    disks.other = await openImage({ driver: "qcow2", file: slow[2] });
    const { node } = disks.overlay;
    disks.formats.push(node, node.children.backing!, disks.other.node);
    return disks;
  }

  /** The slow file of a format's node, below any filters. */
  slowFile(format: BlockNode): DelayNode {
    let at = format.children.file!;
    while (!(at instanceof DelayNode)) at = at.children.file!;
    return at;
  }

  async close(): Promise<void> {
    await this.overlay.close();
    await this.other.close();
    for (const handle of this.files.handles) await handle.close();
  }
}

/** Write to some runs of clusters of an image, and return its content. */
async function written(
  stack: { driver: string; file: unknown },
  random: Random,
): Promise<Uint8Array> {
  const disk = new Uint8Array(SIZE);
  await using image = await openImage(stack);
  for (let at = 0; at < SIZE;) {
    const length = Math.min(SIZE - at, (1 + random.below(4)) * CLUSTER);
    if (random.oneIn(2)) {
      disk.set(random.bytes(length), at);
      await image.write(at, disk.slice(at, at + length));
    }
    at += length;
  }
  return disk;
}

type Work = (disks: Disks) => Promise<void>;

async function isCopied({ other, content }: Disks): Promise<void> {
  assert(same(await other.read(0, SIZE), content));
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

const JOBS: { readonly [name: string]: Work } = {
  async convert(disks) {
    await convert(disks.overlay, disks.other, { targetIsZero: true });
    await isCopied(disks);
  },

  async "convert, compressed"(disks) {
    await convert(disks.overlay, disks.other, { compressed: true });
    await isCopied(disks);
  },

  async "convert of differences"({ overlay, other, content, baseContent }) {
    await convert(overlay, other, { onlyDifferences: true });
    const expected = content.slice();
    for (let at = 0; at < SIZE; at += CLUSTER) {
      const cluster = content.subarray(at, at + CLUSTER);
      if (same(cluster, baseContent.subarray(at, at + CLUSTER))) {
        expected.fill(0, at, at + CLUSTER);
      }
    }
    assert(same(await other.read(0, SIZE), expected));
  },

  async commit({ overlay, content, formats }) {
    await commit(overlay);
    await using base = new Image(formats[1]);
    assert(same(await base.read(0, SIZE), content));
    assert(same(await overlay.read(0, SIZE), content));
  },

  async rebase({ overlay, other, content }) {
    await rebase(overlay, { name: "other", format: "qcow2", node: other });
    assert(same(await overlay.read(0, SIZE), content));
    // The overlay's own clusters must suffice now, above a disk of zeroes.
    for await (const { offset, length, depth } of overlay.extents()) {
      const bytes = content.subarray(offset, offset + length);
      assert(depth === 0 || bytes.every((byte) => byte === 0));
    }
  },

  async compare({ overlay, other, content }) {
    await other.write(0, content);
    const { outcome } = await compare(overlay, other);
    assertEquals(outcome, "identical");
  },

  async streamImage({ overlay, content }) {
    const stream = streamImage("raw", overlay);
    assert(same(await new Response(stream).bytes(), content));
  },

  async convertStream(disks) {
    const { content, other } = disks;
    const chunks = async function* () {
      for (let at = 0; at < SIZE; at += CLUSTER) {
        await Promise.resolve();
        yield content.subarray(at, at + CLUSTER);
      }
    };
    await convertStream(chunks(), other, { resize: true });
    await isCopied(disks);
  },

  async measure({ overlay }) {
    const before = await measure("qcow2", {}, overlay);
    assertEquals(await measure("qcow2", {}, overlay), before);
  },

  async bench({ other, random }) {
    const pattern = random.below(256);
    const count = SIZE / CLUSTER;
    await bench(other, { write: true, count, depth: 8, pattern });
    const expected = new Uint8Array(SIZE).fill(pattern);
    assert(same(await other.read(0, SIZE), expected));
  },
};

/** Give everything time to proceed. */
function settle(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 2));
}

for (const [name, work] of Object.entries(JOBS)) {
  Deno.test(`a drain pauses a job: ${name}`, async () => {
    const disks = await Disks.make(new Random(1));
    const all = disks.formats.map((format) => disks.slowFile(format));
    for (const [index, file] of all.entries()) {
      let isDone = false;
      const job = work(disks).finally(() => isDone = true);
      for (let ticks = 0; ticks < 60; ticks++) await null;
      {
        using _ = await drain(index % 2 ? disks.formats[index] : file);
        const before = file.begun;
        await settle();
        assertEquals(file.begun, before);
        if (!isDone) await settle();
      }
      await job;
      if (name === "commit" || name === "rebase" || name === "compare") break;
      await disks.other.writeZeroes(0, SIZE);
    }
    await disks.close();
  });

  for (const seed of seedsToRun(2)) {
    Deno.test(`a graph changes below a job: ${name} (seed ${seed})`, async () => {
      const random = new Random(seed);
      const disks = await Disks.make(random);
      let isDone = false;
      const job = work(disks).finally(() => isDone = true);
      // Errors are handled below, once the changes have ended.
      job.catch(() => {});
      const filters: BlockNode[] = [];
      while (!isDone) {
        await change(disks, filters);
        if (random.oneIn(8)) await settle();
      }
      await job;
      for (const filter of filters) await removeFilter(filter);
      const { corruptions, leaks } = await disks.overlay.check();
      assertEquals([corruptions, leaks], [0, 0]);
      await disks.close();
    });
  }
}

const group = new ThrottleGroup({});

async function change(disks: Disks, filters: BlockNode[]): Promise<void> {
  const { random, files } = disks;
  for (let ticks = random.below(200); ticks > 0; ticks--) await null;
  const format = random.pick(disks.formats);
  switch (random.below(4)) {
    case 0: {
      using _ = await drain(random.pick([format, disks.slowFile(format)]));
      for (let ticks = random.below(50); ticks > 0; ticks--) await null;
      return;
    }
    case 1: {
      using _ = await drain(format);
      const { file } = format.children;
      if (!(file instanceof DelayNode)) return;
      return await replaceChild(format, "file", await files.copyOf(file));
    }
    case 2: {
      if (filters.length > 4) return;
      const above = random.pick([format, format.children.file!]);
      const throttle = { driver: "throttle", "throttle-group": group };
      filters.push(await insertFilter(above, throttle));
      return;
    }
    case 3: {
      const filter = filters.splice(random.below(4), 1)[0];
      if (filter) await removeFilter(filter);
      return;
    }
  }
}

Deno.test("a job keeps its nodes open, and continues after a reopen", async () => {
  const disks = await Disks.make(new Random(3));
  const { overlay, other, content } = disks;
  const job = convert(overlay, other);
  await overlay.reopen({ readOnly: true });
  await other.reopen({ cache: "unsafe" });
  const target = new Image(other.node);
  await other.close();
  await overlay.close();
  await job;
  assert(same(await target.read(0, SIZE), content));
  await target.close();
  const error = assertThrows(() => new Image(overlay.node), BlockError);
  assertEquals(error.code, "EBADF");
  for (const handle of disks.files.handles) await handle.close();
});

Deno.test("a job that waits for the end of a drain can be aborted", async () => {
  const disks = await Disks.make(new Random(4));
  const { overlay, other } = disks;
  const cancel = new AbortController();
  {
    using _ = await drain(overlay);
    const job = convert(overlay, other, { signal: cancel.signal });
    await settle();
    cancel.abort();
    const error = await assertRejects(() => job, BlockError);
    assertEquals(error.code, "ECANCELED");
  }
  await disks.close();
});
