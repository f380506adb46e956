/** Requests and jobs that are aborted. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
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
  getDriver,
  Image,
  insertFilter,
  measure,
  MemoryStore,
  openImage,
  type StackObject,
  streamImage,
  ThrottleGroup,
} from "../../mod.ts";
import { unlessAborted } from "../../core/abort.ts";
import { filterNode } from "../../core/filter.ts";
import { RangeLock } from "../../core/lock.ts";
import { openProtocol } from "../../core/open.ts";

const SIZE = 1 << 20;

/** A file whose requests wait until they are released. */
class SlowFile implements BlockNode {
  readonly driver = { name: "slow", role: "protocol" } as const;
  readonly filename = "slow";
  readonly readOnly = false;
  readonly children = {};
  readonly store: MemoryStore;
  /** The waiting requests. */
  readonly waiting: (() => void)[] = [];
  isSlow = false;

  constructor(store: MemoryStore) {
    this.store = store;
  }

  get size(): number {
    return this.store.size;
  }

  async #turn(): Promise<void> {
    if (!this.isSlow) return;
    await new Promise<void>((go) => this.waiting.push(go));
  }

  /** Release all waiting requests, until no more arrive. */
  async release(): Promise<void> {
    for (let idle = 0; idle < 20; idle++) {
      if (this.waiting.length > 0) idle = 0;
      for (const go of this.waiting.splice(0)) go();
      await turns(5);
    }
  }

  async readv(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    await this.#turn();
    for (const part of iov) {
      this.store.read(offset, part);
      offset += part.length;
    }
  }

  async writev(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    await this.#turn();
    for (const part of iov) {
      this.store.write(offset, part);
      offset += part.length;
    }
  }

  truncate(size: number): Promise<void> {
    this.store.truncate(size);
    return Promise.resolve();
  }

  async status(_offset: number, length: number) {
    await this.#turn();
    return { length, allocated: true, zero: false };
  }

  async flush(): Promise<void> {
    await this.#turn();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await undefined;
}

const REASON = new Error("no longer wanted");

async function canceled(promise: Promise<unknown>): Promise<void> {
  const error = await assertRejects(() => promise, BlockError);
  assertEquals(error.code, "ECANCELED", error.message);
  let cause: unknown = error;
  while (cause instanceof BlockError) cause = cause.cause;
  assertEquals(cause, REASON);
}

/** Whether a promise has settled by now. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  promise.then(() => settled = true, () => settled = true);
  await turns(100);
  return settled;
}

async function image(driver: string, memory = new MemoryStore()) {
  const file = new SlowFile(memory);
  await createImage(driver, { driver: "memory", store: memory }, {
    size: SIZE,
    ...(driver === "qcow2" && { cluster_size: 4096 }),
  });
  return { file, disk: await openImage({ driver, file }) };
}

const aborted = () => AbortSignal.abort(REASON);

Deno.test("a request aborted before it began does nothing", async () => {
  for (const driver of ["raw", "qcow2", "vdi"]) {
    const { disk } = await image(driver);
    const bytes = new Uint8Array(512).fill(1);
    const flags = { signal: aborted() };
    await canceled(disk.write(0, bytes, flags));
    await canceled(disk.read(0, 512, flags));
    await canceled(disk.writeZeroes(0, 512, flags));
    await canceled(disk.discard(0, 4096, flags));
    if (driver !== "vdi") await canceled(disk.resize(SIZE, flags));
    if (driver === "qcow2") {
      await canceled(disk.writeCompressed(0, new Uint8Array(4096), flags));
      await canceled(disk.check(flags));
    }
    assertEquals(await disk.read(0, 512), new Uint8Array(512));
    await disk.close();
  }
});

Deno.test("a request settles once nobody touches its buffers any more", async () => {
  for (const driver of ["raw", "qcow2", "vdi"]) {
    const { file, disk } = await image(driver);
    await disk.write(0, new Uint8Array(SIZE).fill(7));
    await disk.flush();
    file.isSlow = true;
    const controller = new AbortController();
    const buffer = new Uint8Array(SIZE);
    const reading = disk.read(0, buffer, { signal: controller.signal });
    await turns(50);
    controller.abort(REASON);
    assertEquals(await isSettled(reading), false, driver);
    file.release();
    await canceled(reading);
    buffer.fill(9);
    await file.release();
    assert(buffer.every((byte) => byte === 9), driver);
    file.isSlow = false;
    assertEquals((await disk.read(SIZE - 1, 1))[0], 7);
    await disk.close();
  }
});

Deno.test("an aborted query settles at once, and a drain still waits for it", async () => {
  const queries: readonly ((
    disk: Image,
    signal: AbortSignal,
  ) => Promise<unknown>)[] = [
    (disk, signal) => disk.status(0, 4096, { signal }),
    (disk, signal) => Array.fromAsync(disk.extents(0, SIZE, { signal })),
    (disk, signal) => disk.flush({ signal }),
  ];
  for (const query of queries) {
    const { file, disk } = await image("raw");
    for (const isDrained of [true, false]) {
      file.isSlow = true;
      const cancel = new AbortController();
      const held = isDrained ? await drain(disk) : undefined;
      const asked = query(disk, cancel.signal);
      assert(!await isSettled(asked));
      cancel.abort(REASON);
      await canceled(asked);
      const drained = held ?? drain(disk);
      if (!isDrained) assert(!await isSettled(Promise.resolve(drained)));
      await file.release();
      (await drained)[Symbol.dispose]();
      // A query aborted beforehand does not even begin.
      await canceled(query(disk, cancel.signal));
      assertEquals(file.waiting.length, 0);
    }
    file.isSlow = false;
    await query(disk, new AbortController().signal);
    await disk.close();
  }
});

Deno.test("an aborted read of many runs begins no more of them", async () => {
  const { file, disk } = await image("qcow2");
  // Every other cluster, last to first: each is a run of its own in the file.
  for (let at = SIZE - 8192; at >= 0; at -= 8192) {
    await disk.write(at, new Uint8Array(4096).fill(1));
  }
  file.isSlow = true;
  const controller = new AbortController();
  const reading = disk.read(0, SIZE, { signal: controller.signal });
  await turns(200);
  const begun = file.waiting.length;
  assert(begun > 0 && begun < 128, `${begun}`);
  controller.abort(REASON);
  for (const go of file.waiting.splice(0)) go();
  await canceled(reading);
  assertEquals(file.waiting.length, 0);
  file.isSlow = false;
  await disk.close();
});

/** How to make and open an image, and whether its clusters are compressed. */
interface Kind {
  readonly format: string;
  readonly create?: Record<string, unknown>;
  readonly open?: StackObject;
  readonly isCompressed?: boolean;
}

const SECRETS = { key: "open sesame" };
const AES = { "encrypt.key-secret": "key" };
const LUKS = { "encrypt.format": "luks", "encrypt.iter-time": 0, ...AES };
const KINDS: { readonly [name: string]: Kind } = {
  raw: { format: "raw" },
  vdi: { format: "vdi" },
  vmdk: { format: "vmdk" },
  "vmdk, compressed": {
    format: "vmdk",
    create: { subformat: "streamOptimized" },
    isCompressed: true,
  },
  vpc: { format: "vpc" },
  vhdx: { format: "vhdx" },
  qcow: { format: "qcow" },
  qed: { format: "qed" },
  parallels: { format: "parallels" },
  qcow2: { format: "qcow2" },
  "qcow2, extended": { format: "qcow2", create: { extended_l2: true } },
  "qcow2, compressed": { format: "qcow2", isCompressed: true },
  "qcow2 with AES": {
    format: "qcow2",
    create: { "encrypt.format": "aes", ...AES },
    open: AES,
  },
  "qcow2 with LUKS": { format: "qcow2", create: LUKS, open: AES },
  luks: {
    format: "luks",
    create: { "key-secret": "key", "iter-time": 0 },
    open: { "key-secret": "key" },
  },
};

/** A file that records the signals of requests. */
async function watchedFile(memory: StackObject) {
  const below = await openProtocol(memory);
  const signals: unknown[] = [];
  const file = filterNode(getDriver("throttle"), below, {
    readv(offset, iov, flags) {
      signals.push(flags?.signal);
      return below.readv(offset, iov, flags);
    },
    writev(offset, iov, flags) {
      signals.push(flags?.signal);
      return below.writev!(offset, iov, flags);
    },
    status(offset, length, flags) {
      signals.push(flags?.signal);
      return below.status(offset, length, flags);
    },
    flush(flags) {
      signals.push(flags?.signal);
      return below.flush!(flags);
    },
  });
  return { file, signals, below };
}

/** An image, and the signals that its requests pass down to the file. */
async function watched({ format, create, open, isCompressed }: Kind) {
  const memory = { driver: "memory", store: new MemoryStore() };
  const how = { secrets: SECRETS };
  await createImage(format, memory, { size: SIZE, ...create }, how);
  const { file, signals, below } = await watchedFile(memory);
  const image = await openImage({ driver: format, ...open, file }, how);
  const bytes = new Uint8Array(65536).fill(1);
  if (isCompressed) await image.writeCompressed(0, bytes);
  else await image.write(0, bytes);
  const close = async () => {
    await image.close();
    await below.close();
  };
  return { image, signals, close };
}

for (const [name, kind] of Object.entries(KINDS)) {
  Deno.test(`${name}: a request passes its signal down to the file`, async () => {
    const { image, signals, close } = await watched(kind);
    const { signal } = new AbortController();
    signals.length = 0;
    await image.readv(0, [new Uint8Array(65536)], { signal });
    assert(signals.includes(signal), "a read");
    if (!kind.isCompressed) {
      signals.length = 0;
      await image.write(512, new Uint8Array(1024), { signal });
      assert(signals.includes(signal), "a write in place");
      signals.length = 0;
      await image.write(700, new Uint8Array(1), { signal });
      assert(signals.every((given) => given === signal), "a part of a sector");
    }
    await close();
  });
}

Deno.test("luks: an aborted resize ends soon, and leaves the size as it was", async () => {
  const memory = { driver: "memory", store: new MemoryStore() };
  const how = { secrets: SECRETS };
  const { create, open } = KINDS.luks;
  await createImage("luks", memory, { size: SIZE, ...create }, how);
  const below = await openProtocol(memory);
  const controller = new AbortController();
  let writes = 0;
  const file = filterNode(getDriver("throttle"), below, {
    writev(offset, iov, flags) {
      if (++writes === 2) controller.abort();
      return below.writev!(offset, iov, flags);
    },
  });
  const image = await openImage({ driver: "luks", ...open, file }, how);
  const { signal } = controller;
  const grown = image.resize(SIZE + 64 * 2 ** 20, { signal });
  const error = await assertRejects(() => grown, BlockError);
  assertEquals(error.code, "ECANCELED");
  assertEquals([writes, image.size], [2, SIZE]);
  await image.close();
  await below.close();
});

Deno.test("an aborted openImage() fails at once, and leaves nothing open", async () => {
  const { file, disk } = await image("qcow2");
  await disk.close();
  const stack = { driver: "qcow2", file };
  await canceled(openImage(stack, { signal: aborted() }));
  file.isSlow = true;
  const cancel = new AbortController();
  const opening = openImage(stack, { signal: cancel.signal });
  assert(!await isSettled(opening));
  cancel.abort(REASON);
  await canceled(opening);
  await file.release();
  file.isSlow = false;
  // Nobody claims it any more.
  await using again = await openImage(stack);
  await again.write(0, new Uint8Array(512));
});

// Those of vhdx and of small VMDK files are read when the image is opened.
for (const format of ["qcow2", "vdi", "vpc", "qed", "parallels"]) {
  Deno.test(`${format}: an aborted reader does not wait for a table`, async () => {
    const { file, disk } = await image(format);
    await disk.write(0, new Uint8Array(4096).fill(1));
    await disk.close();
    await using cold = await openImage({ driver: format, file });
    file.isSlow = true;
    const cancel = new AbortController();
    const { signal } = cancel;
    const aborted = cold.read(0, 4096, { signal });
    const other = cold.read(0, 4096);
    other.catch(() => {});
    await turns(100);
    assertEquals(file.waiting.length, 1, "one load of the table");
    cancel.abort(REASON);
    await canceled(aborted);
    assertEquals(file.waiting.length, 1);
    await file.release();
    assertEquals((await other)[0], 1);
    file.isSlow = false;
  });
}

for (const format of ["qcow2", "vdi", "vhdx", "qed", "parallels"]) {
  Deno.test(`${format}: an aborted check settles at once, and ends`, async () => {
    const { file, disk } = await image(format);
    await disk.write(0, new Uint8Array(4096).fill(1));
    await disk.flush();
    file.isSlow = true;
    const cancel = new AbortController();
    const check = disk.check({ signal: cancel.signal });
    assert(!await isSettled(check));
    cancel.abort(REASON);
    await canceled(check);
    await file.release();
    assertEquals(file.waiting.length, 0);
    file.isSlow = false;
    assertEquals((await disk.check()).corruptions, 0);
    await disk.close();
  });
}

Deno.test("an aborted reader of a compressed cluster leaves it to the others", async () => {
  const { file, disk } = await image("qcow2");
  await disk.writeCompressed(0, new Uint8Array(4096).fill(5));
  file.isSlow = true;
  const controller = new AbortController();
  const first = disk.read(0, 10, { signal: controller.signal });
  const second = disk.read(0, 20);
  first.catch(() => {});
  await turns(100);
  controller.abort(REASON);
  await file.release();
  assertEquals(await second, new Uint8Array(20).fill(5));
  file.isSlow = false;
  await disk.close();
});

for (
  const stack of [
    { driver: "raw" },
    { driver: "throttle", "throttle-group": new ThrottleGroup({}) },
    { driver: "preallocate" },
    { driver: "quorum", "vote-threshold": 1 },
  ]
) {
  Deno.test(`${stack.driver}: queries pass their signal down`, async () => {
    const store = new MemoryStore(SIZE);
    const { file, signals, below } = await watchedFile({
      driver: "memory",
      store,
    });
    const isQuorum = stack.driver === "quorum";
    const image = await openImage({
      ...stack,
      ...(isQuorum ? { children: [file] } : { file }),
    } as StackObject);
    await image.write(0, new Uint8Array(512));
    const { signal } = new AbortController();
    signals.length = 0;
    await image.status(0, SIZE, { signal });
    assertEquals(signals, [signal]);
    await image.flush({ signal });
    assertEquals(signals, [signal, signal]);
    await image.close();
    await below.close();
  });
}

Deno.test("copy-on-read passes a signal down", async () => {
  const memory = () => ({ driver: "memory", store: new MemoryStore(SIZE) });
  const { file, signals, below } = await watchedFile(memory());
  const overlay = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", overlay, { size: SIZE });
  const backing = { driver: "raw", file };
  const image = await openImage({
    driver: "copy-on-read",
    file: { driver: "qcow2", file: overlay, backing },
  });
  const { signal } = new AbortController();
  signals.length = 0;
  await image.readv(0, [new Uint8Array(65536)], { signal });
  assert(signals.includes(signal));
  await image.close();
  await below.close();
});

Deno.test("an aborted write leaves a sound image", async () => {
  const { file, disk } = await image("qcow2");
  file.isSlow = true;
  for (let turn = 0; turn < 40; turn++) {
    const controller = new AbortController();
    // Across many L2 tables: more than is allocated in one go.
    const data = new Uint8Array(SIZE - 1000).fill(turn + 1);
    const writing = disk.write(500, data, { signal: controller.signal });
    const outcome = writing.then(() => "done", (error) => error.code);
    for (let step = 0; step < turn; step++) {
      await turns(20);
      file.waiting.shift()?.();
    }
    controller.abort(REASON);
    file.release();
    assert(["done", "ECANCELED"].includes(await outcome));
    await file.release();
  }
  file.isSlow = false;
  const { corruptions, leaks } = await disk.check();
  assertEquals([corruptions, leaks], [0, 0]);
  await disk.close();
});

Deno.test("an aborted waiter leaves the queue at once", async () => {
  const { file, disk } = await image("qcow2");
  await disk.write(0, new Uint8Array(4096).fill(1));
  file.isSlow = true;
  // Waiting for clusters that another request is allocating.
  const first = disk.write(8192, new Uint8Array(4096).fill(2));
  await turns(50);
  const controller = new AbortController();
  const { signal } = controller;
  const second = disk.write(8192, new Uint8Array(10).fill(3), { signal });
  const third = disk.read(8192, 10, { signal });
  await turns(50);
  const waits = file.waiting.length;
  controller.abort(REASON);
  await canceled(second);
  await canceled(third);
  assertEquals(file.waiting.length, waits);
  file.isSlow = false;
  await file.release();
  await first;
  assertEquals(await disk.read(8192, 10), new Uint8Array(10).fill(2));
  // Waiting at a drained node.
  const late = new AbortController();
  using drained = await drain(disk.node);
  const held = disk.read(0, 1, { signal: late.signal });
  const behind = disk.read(0, 1);
  await turns(20);
  late.abort(REASON);
  await canceled(held);
  drained[Symbol.dispose]();
  assertEquals(await behind, new Uint8Array([1]));
  await disk.close();
});

Deno.test("RangeLock: an aborted waiter leaves the queue at once", async () => {
  const lock = new RangeLock();
  const held = await lock.acquire(0, 10, true);
  const controller = new AbortController();
  const waits = lock.acquire(0, 10, true, controller.signal);
  const behind = lock.acquire(5, 20, false);
  controller.abort(REASON);
  await canceled(Promise.resolve(waits));
  held[Symbol.dispose]();
  (await behind)[Symbol.dispose]();
  const again = lock.acquire(0, 20, true);
  assert(!(again instanceof Promise));
});

Deno.test("an aborted request that is throttled settles at once", async () => {
  const { disk } = await image("raw");
  const group = new ThrottleGroup({ "iops-total": 1e-3 });
  await insertFilter(disk.node, {
    driver: "throttle",
    "throttle-group": group,
  });
  await disk.read(0, 1);
  const controller = new AbortController();
  const { signal } = controller;
  const requests = [1, 2, 3].map(() => disk.read(0, 1, { signal }));
  await turns(50);
  controller.abort(REASON);
  for (const request of requests) await canceled(request);
  await disk.close();
});

Deno.test("aborted jobs end, and say so", async () => {
  const { file, disk: source } = await image("raw");
  const { disk: target } = await image("qcow2");
  const { disk: other } = await image("raw");
  const nodes = [source.node, target.node] as const;
  const jobs = (signal: AbortSignal): (() => Promise<unknown>)[] => [
    () => convert([nodes[0]], nodes[1], { signal }),
    () => convert([nodes[0]], nodes[1], { signal, compressed: true }),
    () => convert([nodes[0]], nodes[1], { signal, salvage: true }),
    () => compare(nodes[0], other.node, { signal }),
    () => measure("qcow2", {}, nodes[0], { signal }),
    () => bench(nodes[0], { count: 1000, length: 512, signal }),
    () => Array.fromAsync(streamImage("raw", [nodes[0]], { signal })),
  ];
  for (const job of jobs(aborted())) await canceled(job());
  for (const index of [0, 1, 2, 3, 5]) {
    file.isSlow = true;
    const controller = new AbortController();
    const running = jobs(controller.signal)[index]();
    running.catch(() => {});
    await turns(300);
    assert(file.waiting.length > 0, `job ${index} has not begun`);
    controller.abort(REASON);
    assertEquals(await isSettled(running), false);
    file.release();
    await canceled(running);
    await file.release();
    file.isSlow = false;
  }
  const { corruptions } = await target.check();
  assertEquals(corruptions, 0);
  for (const disk of [source, target, other]) await disk.close();
});

Deno.test("an aborted commit ends, and loses nothing", async () => {
  const base = { driver: "memory", store: new MemoryStore(SIZE) };
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: SIZE });
  await using overlay = await openImage({
    driver: "qcow2",
    file,
    backing: { driver: "raw", "read-only": false, file: base },
  });
  await overlay.write(0, new Uint8Array(512).fill(1));
  await canceled(commit(overlay.node, { signal: aborted() }));
  assertEquals((await overlay.read(511, 1))[0], 1);
});

Deno.test("an aborted convertStream() ends, and says so", async () => {
  const { disk } = await image("raw");
  const wrapped = new Image(disk.node);
  const chunks = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(new Uint8Array(1000));
      controller.close();
    },
  });
  await canceled(
    convertStream(chunks, wrapped.node, { signal: aborted() }),
  );
  await wrapped.close();
  await disk.close();
});

Deno.test("unlessAborted() handles the rejection of a promise it no longer awaits", async () => {
  const signal = AbortSignal.abort();
  for (const delay of [0, 5]) {
    const turn = new Promise<void>((_, reject) => {
      setTimeout(() => reject(new Error("nobody awaits this")), delay);
    });
    const { code } = await assertRejects(
      () => unlessAborted(turn, signal),
      BlockError,
    );
    assertEquals(code, "ECANCELED");
    await assertRejects(() => turn, Error, "nobody");
  }
  // A promise that rejected beforehand must not go unhandled either.
  await assertRejects(
    () => unlessAborted(Promise.reject(new Error("before")), signal),
    BlockError,
  );
  await new Promise((done) => setTimeout(done, 10));
});

Deno.test("waiting for a silent server can be aborted", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  const accepted: Deno.Conn[] = [];
  const accepting = (async () => {
    for await (const connection of listener) accepted.push(connection);
  })();
  const sources = [0, 30].map((timeout) => ({
    driver: "nbd",
    host: "127.0.0.1",
    port: String(port),
    "open-timeout": timeout,
  }));
  const refused = { ...sources[1], port: "1" };
  for (const source of [...sources, refused]) {
    const controller = new AbortController();
    const { signal } = controller;
    const opening = openImage(source, { signal });
    setTimeout(() => controller.abort(), 50);
    const { code } = await assertRejects(() => opening, BlockError);
    assertEquals(code, "ECANCELED");
  }
  listener.close();
  await accepting.catch(() => {});
  for (const connection of accepted) connection.close();
});
