/**
 * Requests below qcow2 fail: at each debug event, and at each n-th request. The
 * operation above fails with a `BlockError`, later ones work or fail too, and
 * what is left is a sound image, at worst with leaked clusters, that holds
 * everything that was flushed.
 *
 * @module
 */
import { assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { openNode } from "../../../core/open.ts";
import { Image } from "../../../core/image.ts";
import type { OptionValues } from "../../../core/options.ts";
import {
  BlockError,
  type BlockNode,
  type ErrorCode,
  MemoryStore,
  openImage,
  type StackObject,
} from "../../../mod.ts";
import {
  contentOf,
  FaultDisk,
  type FaultKind,
  faultyNode,
  type NthFault,
} from "../../fault_disk.ts";
import { qemuTest, run, TempDir } from "../../qemu.ts";
import { newFiles, SECRETS, stackOf, type Variant } from "./variants.ts";

const KIB = 1024;

/** What is done with an image, and what kind of image it is. */
interface Workload {
  readonly options: OptionValues;
  readonly size: number;
  /** The size of a backing file, which is all data, in bytes. */
  readonly backing?: number;
  /** How many bytes have been written already, from the start of the disk. */
  readonly filled?: number;
  /** The kind of image; the data file's name does not matter. */
  readonly variant?: Variant;
  /** How many faults of each kind are tried. Default: 80. */
  readonly trials?: number;
  run(disk: FaultDisk): Promise<void>;
}

/** Bytes that differ between offsets, and between calls. */
function pattern(seed: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0, x = seed * 7919 + 1; i < length; i++) {
    x = (Math.imul(x, 1103515245) + 12345) >>> 0;
    bytes[i] = 1 + (x >>> 16) % 255;
  }
  return bytes;
}

/** Bytes that deflate well. */
function compressible(seed: number, length: number): Uint8Array {
  return new Uint8Array(length).fill(1 + seed % 255);
}

/** Allocation, copy-on-write, snapshots, zeroes, compression, resizing. */
const mixed: Workload = {
  options: { cluster_size: 512 },
  size: 96 * KIB,
  backing: 80 * KIB,
  async run(disk) {
    await disk.write(1000, pattern(1, 5000));
    await disk.flush();
    await disk.write(40_000, pattern(2, 100));
    await disk.write(1000, pattern(3, 600));
    await disk.takeSnapshot("one");
    await disk.write(500, pattern(4, 3000));
    await disk.zero(2048, 1024, false);
    await disk.zero(70 * KIB, 3 * KIB, true);
    await disk.flush();
    await disk.writeCompressed(8192, compressible(5, 512));
    await disk.writeCompressed(8704, compressible(6, 512));
    await disk.writeCompressed(60 * KIB, compressible(7, 512));
    await disk.write(8200, pattern(8, 100));
    await disk.takeSnapshot("two");
    await disk.discard(1024, 2048);
    await disk.write(33 * KIB, pattern(9, 2000));
    await disk.deleteSnapshot("one");
    await disk.write(90 * KIB, pattern(10, 1000));
    await disk.resize(200 * KIB);
    await disk.write(198 * KIB, pattern(11, 1024));
    await disk.flush();
    await disk.takeSnapshot("three");
    await disk.write(0, pattern(12, 1024));
    await disk.applySnapshot("three");
    await disk.read();
    await disk.deleteSnapshot("two");
    await disk.deleteSnapshot("three");
    await disk.resize(100 * KIB);
    await disk.write(99 * KIB, pattern(13, 1024));
  },
};

/** The refcount table has to move. */
const growing: Workload = {
  options: { cluster_size: 512, refcount_bits: 64 },
  size: 3000 * KIB,
  filled: 1850 * KIB,
  trials: 8,
  async run(disk) {
    await disk.write(1900 * KIB, pattern(2, 250 * KIB));
    await disk.flush();
    await disk.write(2400 * KIB, pattern(4, 40 * KIB));
  },
};

/** Refcounts are written late, and repaired if that fails. */
const lazy: Workload = {
  ...mixed,
  options: { cluster_size: 1024, lazy_refcounts: true },
  async run(disk) {
    await disk.write(1000, pattern(1, 5000));
    await disk.flush();
    await disk.write(60_000, pattern(2, 9000));
    await disk.discard(2048, 2048);
    await disk.write(1000, pattern(3, 600));
    await disk.flush();
    await disk.write(3000, pattern(4, 600));
  },
};

/** Options are changed: zero clusters and refcounts are rewritten. */
const amending: Workload = {
  options: { cluster_size: 512 },
  size: 96 * KIB,
  backing: 80 * KIB,
  async run(disk) {
    await disk.write(1000, pattern(1, 5000));
    await disk.write(50_000, pattern(2, 3000));
    await disk.zero(3 * KIB, KIB, false);
    await disk.takeSnapshot("one");
    await disk.zero(KIB, 2 * KIB, false);
    await disk.zero(50_176, KIB, true);
    await disk.zero(60 * KIB, 2 * KIB, true);
    await disk.takeSnapshot("two");
    await disk.write(60 * KIB, pattern(3, 700));
    await disk.flush();
    await disk.amend({ refcount_bits: 64 });
    await disk.write(20 * KIB, pattern(4, 700));
    await disk.amend({ refcount_bits: 16, compat: "0.10" });
    await disk.read();
    await disk.write(5 * KIB, pattern(5, 700));
    await disk.deleteSnapshot("one");
    await disk.amend({ compat: "1.1", lazy_refcounts: true, refcount_bits: 8 });
    await disk.write(7 * KIB, pattern(6, 700));
    await disk.amend({ lazy_refcounts: false, refcount_bits: 2 });
    await disk.read();
  },
};

/** Bitmaps record, are changed, and are stored. */
const bitmaps: Workload = {
  options: { cluster_size: 512 },
  size: 96 * KIB,
  async run(disk) {
    await disk.addBitmap("fine", 512);
    await disk.write(1000, pattern(1, 5000));
    await disk.addBitmap("coarse", 4096);
    await disk.zero(30 * KIB, 3 * KIB, true);
    // Stored here, and marked as in use by the next write.
    await disk.invalidate();
    await disk.write(50 * KIB, pattern(2, 3000));
    await disk.resize(200 * KIB);
    await disk.write(190 * KIB, pattern(3, 3000));
    await disk.clearBitmap("fine");
    await disk.write(20 * KIB, pattern(4, 600));
    await disk.invalidate();
    await disk.discard(20 * KIB, 512);
    await disk.resize(100 * KIB);
    await disk.removeBitmap("coarse");
    await disk.write(99 * KIB, pattern(5, 1024));
  },
};

/** Subclusters are allocated, zeroed and copied. */
const extended: Workload = {
  options: { cluster_size: 16 * KIB, extended_l2: true },
  size: 160 * KIB,
  backing: 100 * KIB,
  async run(disk) {
    await disk.write(1000, pattern(1, 700));
    await disk.write(30 * KIB, pattern(2, 40 * KIB));
    await disk.zero(31 * KIB, KIB, false);
    await disk.flush();
    await disk.writeCompressed(96 * KIB, compressible(3, 16 * KIB));
    await disk.takeSnapshot("one");
    await disk.write(2 * KIB, pattern(4, 700));
    await disk.write(40 * KIB, pattern(5, 512));
    await disk.zero(97 * KIB, KIB, true);
    await disk.zero(64 * KIB, 16 * KIB, true);
    await disk.discard(32 * KIB, 16 * KIB);
    await disk.resize(200 * KIB);
    await disk.write(161 * KIB, pattern(6, 512));
    await disk.applySnapshot("one");
    await disk.read();
    await disk.deleteSnapshot("one");
    await disk.write(1500, pattern(7, 20 * KIB));
  },
};

/** Copied data is encrypted again. */
const encrypted: Workload = {
  options: { cluster_size: 4 * KIB },
  size: 96 * KIB,
  backing: 80 * KIB,
  variant: { encryption: "luks" },
  trials: 6,
  async run(disk) {
    await disk.write(1000, pattern(1, 5000));
    await disk.flush();
    await disk.takeSnapshot("one");
    await disk.write(500, pattern(2, 9000));
    await disk.zero(2 * KIB, 6 * KIB, false);
    await disk.discard(32 * KIB, 8 * KIB);
    await disk.resize(140 * KIB);
    await disk.write(138 * KIB, pattern(3, 700));
    await disk.applySnapshot("one");
    await disk.amend({ ...ADD_PASSPHRASE });
    await disk.write(41 * KIB, pattern(4, 100));
    await disk.deleteSnapshot("one");
    await disk.amend({ "encrypt.state": "inactive", "encrypt.keyslot": 1 });
    await disk.resize(100 * KIB);
    await disk.read();
  },
};

/** Data and its metadata are in two files. */
const dataFile: Workload = {
  options: { cluster_size: 4 * KIB },
  size: 96 * KIB,
  variant: { dataFile: "data" },
  async run(disk) {
    await disk.addBitmap("changes", 512);
    await disk.write(1000, pattern(1, 5000));
    await disk.flush();
    await disk.write(500, pattern(2, 30_000));
    await disk.zero(2 * KIB, 6 * KIB, true);
    await disk.discard(16 * KIB, 16 * KIB);
    await disk.resize(200 * KIB);
    await disk.write(190 * KIB, pattern(3, 700));
    await disk.flush();
    await disk.write(0, pattern(4, 20 * KIB));
    await disk.resize(100 * KIB);
    await disk.read();
    await disk.write(99 * KIB, pattern(5, 1024));
  },
};

/** The same, but the data file equals the disk; its sectors are encrypted. */
const rawDataFile: Workload = {
  ...dataFile,
  options: { cluster_size: 16 * KIB, extended_l2: true },
  variant: { dataFile: "data", isRaw: true, encryption: "aes" },
};

const ADD_PASSPHRASE = {
  "encrypt.state": "active",
  "encrypt.new-secret": "key",
  "encrypt.iter-time": 0,
};

const WORKLOADS: { readonly [name: string]: Workload } = {
  mixed,
  growing,
  lazy,
  amending,
  bitmaps,
  extended,
  encrypted,
  "data file": dataFile,
  "raw data file": rawDataFile,
};

/** A new image, and how to open it with failing requests. */
class Subject {
  readonly store = new MemoryStore();
  readonly #workload: Workload;
  readonly #base = new MemoryStore();
  /** The external data file's content, if there is one. */
  readonly #data = new MemoryStore();
  readonly #content: Uint8Array;

  private constructor(workload: Workload) {
    this.#workload = workload;
    this.#content = new Uint8Array(workload.size);
  }

  /** Make the image, or copy one made earlier with the same options. */
  static async make(workload: Workload, like?: Subject): Promise<Subject> {
    const { options, size, backing = 0, filled = 0 } = workload;
    const subject = new Subject(workload);
    if (like) {
      subject.#content.set(like.#content);
      subject.#base.write(0, contentOf(like.#base));
      subject.store.write(0, contentOf(like.store));
      subject.#data.write(0, contentOf(like.#data));
      return subject;
    }
    subject.#content.set(pattern(99, Math.max(backing, filled)));
    subject.#base.write(0, subject.#content.subarray(0, backing));
    await using folder = new TempDir();
    const { variant } = workload;
    const files = await newFiles({
      ...variant,
      ...(variant?.dataFile && { dataFile: folder.file(variant.dataFile) }),
    }, { size, ...options });
    subject.store.write(0, files[0]);
    if (files[1]) subject.#data.write(0, files[1]);
    if (filled > 0) {
      await using image = await openImage({
        driver: "qcow2",
        file: subject.#file,
      });
      await image.write(0, subject.#content.subarray(0, filled));
    }
    return subject;
  }

  get #file() {
    return { driver: "memory", store: this.store };
  }

  /** The description to open it, on top of its files. */
  #stack(file: BlockNode, data: BlockNode): StackObject {
    const { backing, variant = {} } = this.#workload;
    const stack = stackOf(variant, [file, data]);
    if (backing === undefined) return stack;
    const base = { driver: "memory", store: this.#base };
    return { ...stack, backing: { driver: "raw", file: base } };
  }

  /**
   * Run the workload on top of the files, close, and examine what is left.
   *
   * @returns how many steps failed, or reported partial success.
   */
  async work(file: BlockNode, data?: BlockNode): Promise<number> {
    let node: BlockNode;
    let reports = 0;
    const how = { gate: "allow", secrets: SECRETS } as const;
    try {
      node = await openNode(
        this.#stack(file, data ?? await this.plainData()),
        { ...how, report: () => reports++ },
      );
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      return 1;
    }
    const disk = new FaultDisk(new Image(node), this.#content);
    await this.#workload.run(disk);
    await disk.close();
    const plain = this.#stack(await this.plainFile(), await this.plainData());
    await disk.inspect(plain, how);
    return disk.failures + reports;
  }

  async plainFile(): Promise<BlockNode> {
    return await openNode({ driver: "raw", file: this.#file });
  }

  async plainData(): Promise<BlockNode> {
    const file = { driver: "memory", store: this.#data };
    return await openNode({ driver: "raw", file });
  }

  async blkdebug(options: OptionValues): Promise<BlockNode> {
    return await openNode({
      driver: "blkdebug",
      image: this.#file,
      ...options,
    });
  }
}

/** Run the workload without failures, and count requests. */
async function rehearse(workload: Workload) {
  const model = await Subject.make(workload);
  const subject = await Subject.make(workload, model);
  const events = new Map<string, number>();
  const { node, counts } = faultyNode(await subject.plainFile());
  const data = faultyNode(await subject.plainData(), undefined, counts);
  // Opening is not part of the workload.
  const debug = {
    event(name: string) {
      events.set(name, (events.get(name) ?? 0) + 1);
    },
  };
  assertEquals(
    await subject.work(Object.assign(node, { debug }), data.node),
    0,
  );
  return { model, events, counts };
}

/** Many cases, all of which are tried; those that go wrong are listed. */
class Trials {
  readonly #wrong: string[] = [];
  #count = 0;

  async run(what: string, run: () => Promise<void>): Promise<void> {
    this.#count++;
    try {
      await run();
    } catch (error) {
      const text = (error as Error).stack?.slice(0, 600);
      this.#wrong.push(`${what}: ${text}`);
    }
  }

  end(): void {
    if (this.#wrong.length === 0) return;
    throw new Error(
      `${this.#wrong.length} of ${this.#count} cases went wrong:\n` +
        this.#wrong.slice(0, 10).join("\n"),
    );
  }
}

/** Rules that make requests fail at the `nth` occurrence of an event. */
function rulesFor(event: string, nth: number, fault: OptionValues) {
  const steps = Array.from({ length: nth - 1 }, (_, i) => ({
    event,
    state: i + 1,
    new_state: i + 2,
  }));
  return {
    "set-state": steps,
    "inject-error": [{ event, state: nth, ...fault }],
  };
}

/** Error numbers, and whether only one request fails. */
const FAULTS = [[5, true], [28, true], [28, false]] as const;

for (const [name, workload] of Object.entries(WORKLOADS)) {
  Deno.test(`qcow2 survives errors at each event: ${name}`, async () => {
    const { model, events } = await rehearse(workload);
    // Deriving keys takes time.
    const isSlow = workload.variant?.encryption === "luks";
    const faults = isSlow ? FAULTS.slice(2) : FAULTS;
    const trials = new Trials();
    for (const [event, count] of events) {
      const occurrences = workload.trials ? [1, count] : [1, 2, count];
      for (const nth of new Set(occurrences)) {
        if (nth > Math.min(count, 200)) continue;
        for (const [errno, once] of faults) {
          await trials.run(
            `${event} ${nth}, ${errno}, once ${once}`,
            async () => {
              const subject = await Subject.make(workload, model);
              const fault = { errno, once };
              const rules = rulesFor(event, nth, fault);
              await subject.work(await subject.blkdebug(rules));
            },
          );
        }
      }
    }
    trials.end();
  });
}

const KINDS: readonly FaultKind[] = ["readv", "writev", "flush"];

/** About `most` numbers below `count`, including the first ones. */
function sample(count: number, most: number): Set<number> {
  const step = Math.max(1, count / most);
  const numbers = new Set<number>();
  for (let at = 0; at < count; at += step) numbers.add(Math.floor(at));
  return numbers;
}

for (const [name, workload] of Object.entries(WORKLOADS)) {
  Deno.test(`qcow2 survives errors of each request: ${name}`, async () => {
    const { model, counts } = await rehearse(workload);
    const trials = new Trials();
    for (const kind of KINDS) {
      for (const after of sample(counts[kind], workload.trials ?? 80)) {
        for (const once of [true, false]) {
          const code: ErrorCode = after % 2 === 0 ? "EIO" : "ENOSPC";
          const fault: NthFault = { after, kind, once, code };
          await trials.run(JSON.stringify(fault), async () => {
            const subject = await Subject.make(workload, model);
            const file = await subject.plainFile();
            const { node, counts } = faultyNode(file, fault);
            const below = await subject.plainData();
            const { node: data } = faultyNode(below, fault, counts);
            const failures = await subject.work(node, data);
            // A data file that stays larger than the disk is not a failure.
            if (!workload.variant?.dataFile) assertNotEquals(failures, 0);
          });
        }
      }
    }
    trials.end();
  });
}

qemuTest("QEMU finds sound what errors leave of a qcow2 image", async () => {
  await using dir = new TempDir();
  const { events } = await rehearse(mixed);
  for (const event of events.keys()) {
    const subject = await Subject.make(mixed);
    const rules = rulesFor(event, 1, { errno: 28, once: event < "m" });
    await subject.work(await subject.blkdebug(rules));
    const path = dir.file(event);
    await Deno.writeFile(path, contentOf(subject.store));
    const { code, stdout } = await run(["qemu-img", "check", path]);
    // 3 means leaks only.
    assertEquals([0, 3].includes(code), true, `${event}: ${stdout}`);
  }
});

Deno.test("an image that cannot be closed tells which tables are not written", async () => {
  for (const kind of ["writev", "flush"] as const) {
    const [bytes] = await newFiles({}, { size: 64 * KIB, cluster_size: 512 });
    const store = new MemoryStore();
    store.write(0, bytes);
    const below = await openNode({ driver: "memory", store });
    const fault = { after: Infinity, kind, once: false, code: "ENOSPC" };
    const { node: file } = faultyNode(below, fault as NthFault);
    const image = await openImage({ driver: "qcow2", file });
    await image.write(0, pattern(1, 4 * KIB));
    fault.after = 0;
    const error = await assertRejects(() => image.close(), BlockError);
    assertEquals([error.code, error.message], [
      "ENOSPC",
      "Failed to flush the L2 table cache: No space left on device\n" +
      "Failed to flush the refcount block cache: No space left on device",
    ]);
  }
});
