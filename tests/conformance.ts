/**
 * The tests that every driver must pass. Call {@linkcode conformance} with a
 * way to make a fresh disk to register them:
 *
 * ```ts ignore
 * conformance("my-driver", {
 *   async open(size) {
 *     const file = { driver: "memory", store: new MemoryStore(size) };
 *     return { node: await openNode({ driver: "my-driver", file }) };
 *   },
 * });
 * ```
 *
 * Verbs that a node lacks are not tested.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { allocate, type IoVector, roundUp } from "../core/bytes.ts";
import { BlockError } from "../core/errors.ts";
import { Image } from "../core/image.ts";
import type { BlockNode, RequestFlags } from "../core/node.ts";
import { writeZeroes } from "../core/requests.ts";
import { kindOf } from "./extents.ts";

/** A disk for one test. */
export interface TestDisk {
  /** The disk, open for writing and reading as zeroes. */
  node: BlockNode;
  /** Open the same disk again, after `node` has been closed. */
  reopen?(): Promise<BlockNode>;
  /** Clean up after closing. */
  dispose?(): void | Promise<void>;
}

/** How to make disks of the driver under test. */
export interface Subject {
  /** Create a disk of `size` bytes, a multiple of 64 KiB. */
  open(size: number): Promise<TestDisk>;
  /** Whether its disks have a fixed size, although the driver is a protocol. */
  fixedSize?: boolean;
  /**
   * Whether its nodes complete requests that were aborted before they began.
   */
  completesCancelled?: boolean;
  /** Whether its disks cannot become smaller. */
  onlyGrows?: boolean;
  /** Skip these tests; the reason goes into their names. */
  ignore?: boolean;
}

const KIB = 1024;
const SIZE = 1024 * KIB;

/** Offsets and lengths on and off all kinds of boundaries. */
const RANGES: readonly (readonly [offset: number, length: number])[] = [
  [0, 1],
  [1, 511],
  [511, 2],
  [4095, 4098],
  [65535, 2],
  [65536, 65536],
  [100_001, 200_003],
  [SIZE - 1, 1],
  [SIZE - 70_000, 70_000],
  [0, SIZE],
];

/** A test, as runners take it. */
export interface ConformanceTest {
  readonly name: string;
  readonly ignore?: boolean;
  fn(): Promise<void>;
}

/**
 * Register the tests that every driver must pass, with Deno's runner or another
 * runtime's.
 */
export function conformance(
  name: string,
  subject: Subject,
  register: (test: ConformanceTest) => void = Deno.test,
): void {
  const test = (
    what: string,
    run: (disk: Disk) => Promise<void>,
    size = SIZE,
  ) =>
    register({
      name: `${name}: ${what}`,
      ignore: subject.ignore,
      fn: async () => {
        const disk = await Disk.make(subject, size);
        try {
          await run(disk);
        } finally {
          await disk.dispose();
        }
      },
    });

  test("has the size it was made with, and reads as zeroes", async (disk) => {
    assertEquals(disk.image.size, SIZE);
    await disk.verify();
  });

  test("reads back what was written at any offset", async (disk) => {
    for (const [offset, length] of RANGES) {
      await disk.write(offset, length);
      await disk.verifyRange(Math.max(0, offset - 10), length + 20);
    }
    await disk.verify();
  });

  test("reads any part of what was written", async (disk) => {
    await disk.write(0, SIZE);
    for (const [offset, length] of RANGES) {
      await disk.verifyRange(offset, length);
    }
  });

  test("takes vectors of many parts", async (disk) => {
    for (const parts of [2, 3, 40, 1500]) {
      const lengths = Array.from({ length: parts }, (_, i) => (i * 37) % 611);
      const iov = lengths.map((length) => randomBytes(length));
      await disk.writev(12_345, iov);
      const back = lengths.map((length) => allocate(length).fill(0xee));
      await disk.image.readv(12_345, back);
      assertEquals(back, iov.map((part) => part));
    }
    await disk.verify();
  });

  test("does not modify or keep the buffers it is lent", async (disk) => {
    const { node } = disk.image;
    for (const [offset, length] of [[0, 4096], [100_001, 70_003]]) {
      const bytes = randomBytes(length);
      const original = bytes.slice();
      const iov = Object.freeze([bytes.subarray(0, 9), bytes.subarray(9)]);
      await node.writev!(offset, iov as IoVector);
      assertEquals(bytes, original, "what is written is not changed");
      disk.model.set(original, offset);
      bytes.fill(0xcc);
      await disk.verifyRange(offset, length);
      const target = allocate(length);
      const parts = Object.freeze([target.subarray(0, 7), target.subarray(7)]);
      await node.readv(offset, parts as IoVector);
      target.fill(0xdd);
      await disk.verifyRange(offset, length);
      await node.flush?.();
      assert(
        target.every((byte) => byte === 0xdd),
        "read into after the request settled",
      );
    }
    await disk.verify();
  });

  test("does nothing for empty requests", async (disk) => {
    await disk.write(0, 4096);
    for (const offset of [0, 77, SIZE]) {
      assertEquals((await disk.image.read(offset, 0)).length, 0);
      await disk.image.write(offset, new Uint8Array(0));
      await disk.image.writeZeroes(offset, 0);
      await disk.image.discard(offset, 0);
    }
    assertEquals(disk.image.size, SIZE);
    await disk.verify();
  });

  test("refuses requests past the end of the disk", async (disk) => {
    const { image } = disk;
    const requests = [
      () => image.read(SIZE, 1),
      () => image.read(SIZE - 1, 2),
      () => image.read(-1, 2),
      () => image.write(SIZE - 1, new Uint8Array(2)),
      () => image.writeZeroes(SIZE, 1),
      () => image.discard(SIZE - 10, 11),
    ];
    for (const request of requests) {
      const error = await assertRejects(request, BlockError);
      assertEquals(error.code, "EINVAL");
    }
    await disk.verify();
  });

  test("as a protocol, reads zeroes past its end, and grows", async (disk) => {
    const { node } = disk.image;
    if (node.driver.role !== "protocol" || subject.fixedSize) return;
    await disk.write(SIZE - 100, 100);
    const tail = allocate(300).fill(0xee);
    await node.readv(SIZE - 100, [tail.subarray(0, 50), tail.subarray(50)]);
    assertEquals(tail.subarray(0, 100), disk.model.subarray(SIZE - 100));
    assertEquals(tail.subarray(100), new Uint8Array(200));
    const far = allocate(10).fill(0xee);
    await node.readv(SIZE * 3, [far]);
    assertEquals(far, new Uint8Array(10));

    // A node that works in units grows to a whole number of them.
    const { requestAlignment = 1 } = node.limits ?? {};
    const end = (offset: number) => roundUp(offset, requestAlignment);
    disk.grow(end(SIZE + 1000));
    const bytes = randomBytes(100);
    await node.writev!(SIZE + 900, [bytes]);
    disk.model.set(bytes, SIZE + 900);
    assertEquals(node.size, end(SIZE + 1000));
    await disk.verify();
    disk.grow(end(SIZE + 5000));
    await writeZeroes(node, SIZE + 950, 4050);
    disk.model.fill(0, SIZE + 950);
    assertEquals(node.size, end(SIZE + 5000));
    await disk.verify();
  });

  test("writes zeroes, with and without unmapping", async (disk) => {
    for (const unmap of [false, true]) {
      await disk.write(0, SIZE);
      for (const [offset, length] of RANGES) {
        await disk.image.writeZeroes(offset, length, { unmap });
        disk.model.fill(0, offset, offset + length);
        await disk.verify();
        await disk.checkStatus();
        await disk.write(offset, Math.min(length, 777));
      }
    }
  });

  test("discards what it is asked to, and nothing else", async (disk) => {
    for (const [offset, length] of RANGES) {
      await disk.write(0, SIZE);
      await disk.image.discard(offset, length);
      const now = await disk.image.read(offset, length);
      const before = disk.model.subarray(offset, offset + length);
      assert(
        now.every((byte, i) => byte === 0 || byte === before[i]),
        `discarding ${length} bytes at ${offset} made up data`,
      );
      before.set(now);
      await disk.verify();
      await disk.checkStatus();
    }
  });

  test("reports what its ranges hold", async (disk) => {
    await disk.checkStatus();
    await disk.write(70_000, 1);
    await disk.write(300_000, 150_000);
    await disk.checkStatus();
    for (const [offset, length] of RANGES) {
      const extent = await disk.image.node.status(offset, length);
      assert(extent.length >= 1, `an extent of ${extent.length} bytes`);
    }
    const written = await disk.image.node.status(300_001, 1000);
    assert(written.allocated && !written.zero, kindOf(written));
    let next = 0;
    for await (const extent of disk.image.extents()) {
      assertEquals(extent.offset, next);
      next += extent.length;
    }
    assertEquals(next, SIZE);
  });

  test("grows with zeroes, and shrinks", async (disk) => {
    if (!disk.image.node.truncate || subject.fixedSize) return;
    await disk.write(0, SIZE);
    for (const size of [SIZE - 66_048, SIZE, 512, 2 * SIZE, 2 * SIZE + 512]) {
      if (subject.onlyGrows && size < disk.image.size) {
        await assertRejects(() => disk.image.resize(size), BlockError);
        continue;
      }
      await disk.image.resize(size);
      disk.grow(size);
      assertEquals(disk.image.size, size);
      await disk.verify();
      await disk.checkStatus();
      await disk.write(size - 300, 300);
    }
    await disk.verify();
  });

  test("keeps concurrent requests apart", async (disk) => {
    const step = 3001;
    const count = Math.floor(SIZE / step);
    await Promise.all(
      Array.from({ length: count }, (_, i) => disk.write(i * step, step)),
    );
    await disk.verify();
    const reads = Array.from(
      { length: count },
      (_, i) => disk.verifyRange(i * step, step),
    );
    await Promise.all(reads);
    // Each writes its own bytes, but they share clusters and sectors.
    await Promise.all(Array.from({ length: 200 }, async (_, i) => {
      const offset = i * 100;
      if (i % 3 === 0) {
        await disk.image.writeZeroes(offset, 100);
        disk.model.fill(0, offset, offset + 100);
      } else {
        await disk.write(offset, 100);
      }
      await disk.verifyRange(offset, 100);
    }));
    await disk.verify();
  });

  test("streams", async (disk) => {
    const bytes = randomBytes(SIZE - 1000);
    await new Blob([bytes]).stream().pipeTo(disk.image.writable({
      offset: 500,
    }));
    disk.model.set(bytes, 500);
    const back = await new Response(
      disk.image.readable({ chunkSize: 10_007 }) as ReadableStream,
    ).bytes();
    assertEquals(sameBytes(back, disk.model), true);
    const part = await new Response(
      disk.image.readable({ offset: 499, length: 3 }) as ReadableStream,
    ).bytes();
    assertEquals(sameBytes(part, disk.model.subarray(499, 502)), true);
  });

  test("survives a random mix of requests", async (disk) => {
    const random = generator(42);
    for (let round = 0; round < 300; round++) {
      const offset = random(SIZE);
      const length = random(Math.min(SIZE - offset, 100_000)) + 1;
      switch (random(6)) {
        case 0:
          await disk.image.writeZeroes(offset, length, {
            unmap: random(2) === 0,
          });
          disk.model.fill(0, offset, offset + length);
          break;
        case 1:
          await disk.verifyRange(offset, length);
          break;
        case 2:
          if (random(10) === 0) await disk.image.flush();
          break;
        default:
          await disk.write(offset, length);
      }
    }
    await disk.verify();
    await disk.checkStatus();
  });

  test("keeps everything when closed and opened again", async (disk) => {
    await disk.write(33_333, 123_456);
    await disk.image.flush();
    await disk.image.writeZeroes(50_000, 20_000);
    disk.model.fill(0, 50_000, 70_000);
    await disk.write(SIZE - 5, 5);
    if (!await disk.reopen()) return;
    assertEquals(disk.image.size, SIZE);
    await disk.verify();
    await disk.checkStatus();
  });

  test("does not begin an aborted query, and goes on working", async (disk) => {
    await disk.write(100_001, 70_003);
    const { image } = disk;
    const reason = new Error("no longer wanted");
    const flags = { signal: AbortSignal.abort(reason) };
    const queries: ((flags: RequestFlags) => Promise<unknown> | undefined)[] = [
      (flags) => image.status(0, SIZE, flags),
      (flags) => image.flush(flags),
    ];
    if (!subject.completesCancelled) {
      queries.push(
        (flags) => image.node.status(0, SIZE, flags),
        (flags) => image.node.flush?.(flags),
      );
    }
    const canceled = (thrown: unknown) => {
      let cause = thrown;
      assertEquals((cause as BlockError).code, "ECANCELED");
      while (cause instanceof BlockError) cause = cause.cause;
      assertEquals(cause, reason);
    };
    for (const query of queries) {
      const asked = query(flags);
      if (asked) {
        canceled(await asked.then(() => "completed", (error) => error));
      }
    }
    for (const turns of [0, 1, 5]) {
      const cancel = new AbortController();
      const asked = queries.map((query) => query({ signal: cancel.signal }));
      for (let turn = 0; turn < turns; turn++) await undefined;
      cancel.abort(reason);
      for (const outcome of await Promise.allSettled(asked)) {
        if (outcome.status === "rejected") canceled(outcome.reason);
      }
    }
    await disk.write(200_001, 10);
    await image.node.flush?.();
    await disk.verify();
    await disk.checkStatus();
  });

  test("can be closed twice, the second time without effect", async (disk) => {
    const { image } = disk;
    await image.close();
    await image.close();
    const error = await assertRejects(() => image.read(0, 1), BlockError);
    assertEquals(error.code, "EBADF");
  });
}

/** A disk, and its expected content. */
class Disk {
  image: Image;
  model: Uint8Array;
  readonly #made: TestDisk;

  private constructor(made: TestDisk, size: number) {
    this.#made = made;
    this.image = new Image(made.node);
    this.model = new Uint8Array(size);
  }

  static async make(subject: Subject, size: number): Promise<Disk> {
    return new Disk(await subject.open(size), size);
  }

  async reopen(): Promise<boolean> {
    await this.image.close();
    if (!this.#made.reopen) return false;
    this.image = new Image(await this.#made.reopen());
    return true;
  }

  async dispose(): Promise<void> {
    await this.image.close();
    await this.#made.dispose?.();
  }

  async write(offset: number, length: number): Promise<void> {
    await this.writev(offset, [randomBytes(length)]);
  }

  async writev(offset: number, iov: IoVector): Promise<void> {
    await this.image.writev(offset, iov);
    for (const part of iov) {
      this.model.set(part, offset);
      offset += part.length;
    }
  }

  /** Resize the model. */
  grow(size: number): void {
    const old = this.model;
    this.model = new Uint8Array(size);
    this.model.set(old.subarray(0, size));
  }

  verify(): Promise<void> {
    return this.verifyRange(0, this.model.length);
  }

  async verifyRange(offset: number, length: number): Promise<void> {
    length = Math.min(length, this.model.length - offset);
    const target = allocate(length).fill(0xee);
    await this.image.node.readv(offset, [target]);
    const expected = this.model.subarray(offset, offset + length);
    if (sameBytes(target, expected)) return;
    const at = target.findIndex((byte, i) => byte !== expected[i]);
    throw new Error(
      `byte ${offset + at} of ${this.model.length} is ${target[at]} and ` +
        `should be ${expected[at]} (read ${length} bytes at ${offset})`,
    );
  }

  /** Compare the extents with the content as read. */
  async checkStatus(): Promise<void> {
    const { node } = this.image;
    const { size } = node;
    for (let offset = 0; offset < size;) {
      const extent = await node.status(offset, size - offset);
      assert(extent.length >= 1, `an extent of ${extent.length} at ${offset}`);
      const { allocated, zero, compressed = false } = extent;
      assertEquals(typeof allocated, "boolean");
      assertEquals(typeof zero, "boolean");
      assertEquals(typeof compressed, "boolean");
      const length = Math.min(extent.length, size - offset);
      const bytes = allocate(length).fill(0xee);
      await node.readv(offset, [bytes]);
      const empty = extent.zero ||
        (!extent.allocated && !node.children.backing);
      if (empty) {
        assert(
          bytes.every((byte) => byte === 0),
          `what is ${
            kindOf(extent)
          } at ${offset} (${length} bytes) is not zero`,
        );
      }
      const { file, hostOffset } = extent;
      if (
        kindOf(extent) === "data" && file && file !== node &&
        hostOffset !== undefined
      ) {
        const below = allocate(length).fill(0xdd);
        await file.readv(hostOffset, [below]);
        assert(
          sameBytes(below, bytes),
          `the data at ${offset} does not lie at ${hostOffset} of its file`,
        );
      }
      offset += length;
    }
  }
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

let seed = 1;

/** Random nonzero bytes, so that lost ones show. */
function randomBytes(length: number): Uint8Array<ArrayBuffer> {
  const bytes = allocate(length);
  const random = generator(seed++);
  for (let i = 0; i < length; i++) bytes[i] = 1 + random(255);
  return bytes;
}

/**
 * Repeatable pseudo-random integers from 0 up to, but not including, a limit.
 */
export function generator(start: number): (limit: number) => number {
  let state = start | 0;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor(((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32 * limit);
  };
}
