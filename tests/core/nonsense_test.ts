/**
 * What the library answers to arguments that make no sense: one `BlockError`,
 * whose one-line message says what was wrong. @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  bench,
  type BlockDriver,
  BlockError,
  type BlockNode,
  changeBacking,
  commit,
  compare,
  convert,
  convertStream,
  createImage,
  getDriver,
  Image,
  insertFilter,
  listDrivers,
  measure,
  MemoryStore,
  openImage,
  parseKeyValueList,
  parseSize,
  parseStack,
  rebase,
  registerDriver,
  replaceChild,
  streamImage,
  ThrottleGroup,
} from "../../mod.ts";
import { mistake } from "../hostile.ts";
import { TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

/** Anything at all, in place of something else. */
// deno-lint-ignore no-explicit-any
type Anything = any;

/**
 * The longest message: names may be long, values are shortened, and a list may
 * contain all drivers, including those that tests register.
 */
const LINE = 2500;

/**
 * The failure of a call, which must be a `BlockError` with a one-line message.
 */
async function failure(act: () => unknown): Promise<BlockError> {
  let error: unknown;
  try {
    await act();
  } catch (thrown) {
    error = thrown;
  }
  assert(error instanceof BlockError, `${error} is not a BlockError`);
  assert(error.message !== "Input/output error", "It does not say what failed");
  assertEquals(error.message.split("\n").length, 1, error.message);
  assert(error.message.length < LINE, `${error.message.length} letters`);
  return error;
}

const big = new Uint8Array(3_000_000).fill(7);
const cyclic: Record<string, unknown> = { driver: "raw" };
cyclic.file = cyclic;
let deep: unknown = "disk";
for (let i = 0; i < 20_000; i++) deep = { driver: "raw", file: deep };
const trap = {
  get driver(): string {
    throw new Error("a trap");
  },
};
const revoked = Proxy.revocable({}, {});
revoked.revoke();

/** Neither a number nor the description of anything. */
const NONSENSE: Record<string, unknown> = {
  null: null,
  undefined: undefined,
  true: true,
  NaN: NaN,
  bigint: 10n,
  symbol: Symbol("disk"),
  function: () => {},
  bytes: big,
  buffer: new ArrayBuffer(3_000_000),
  shared: new Uint8Array(new SharedArrayBuffer(100)),
  list: [1, 2, 3],
  map: new Map(),
  date: new Date(),
  promise: Promise.resolve("disk"),
  proxy: revoked.proxy,
  store: new MemoryStore(),
};

// Bytes are a disk.
const { bytes: _, buffer: __, shared: ___, ...NO_SOURCES } = NONSENSE;

async function image(format = "qcow2", size = MIB): Promise<Image> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage(format, file, { size });
  return await openImage({ driver: format, file });
}

Deno.test("openImage() says what is not a source", async (t) => {
  const sources: Record<string, unknown> = {
    ...NO_SOURCES,
    number: 5,
    empty: {},
    cyclic,
    deep,
    trap,
    cyclicChild: { driver: "raw", file: cyclic },
    inside: { driver: "raw", file: new Map() },
    insideToo: { driver: "qcow2", file: { driver: "raw", file: 17 } },
    longName: "x".repeat(1_000_000),
    longDriver: { driver: "x".repeat(1_000_000) },
    longProtocol: `${"x".repeat(100_000)}:disk`,
    longOption: { driver: "memory", ["x".repeat(100_000)]: 1 },
    oddDriver: { driver: 5 },
    symbolDriver: { driver: Symbol("raw") },
    json: `json:${"[".repeat(100_000)}`,
    deepJson: `json:${'{"file":'.repeat(5000)}1${"}".repeat(5000)}`,
    badUrl: new URL("file:///%ff"),
  };
  for (const [name, source] of Object.entries(sources)) {
    await t.step(name, async () => {
      const { code } = await failure(() => openImage(source as Anything));
      assert(["EINVAL", "ENAMETOOLONG", "EIO"].includes(code), code);
    });
  }
  const { message } = await failure(() => openImage(new Map() as Anything));
  assertEquals(
    message,
    "Cannot open an object (Map): a file name or the description of a stack " +
      "is needed",
  );
  for (const url of ["data:,abc", "about:blank", "blob:abc"]) {
    const { message } = await failure(() => openImage(new URL(url)));
    assertEquals(
      message,
      `Could not open '${url}': Unknown protocol '${url.split(":")[0]}'`,
    );
  }
  assertEquals(
    (await failure(() => openImage(trap as Anything))).message.includes(
      "a trap",
    ),
    true,
  );
  await using disk = await image();
  assert((await failure(() => openImage(disk as Anything))).code === "EINVAL");
});

Deno.test("an open image where a node or a description is wanted is refused, saying so", async (t) => {
  await using disk = await image();
  const file = { driver: "memory", store: new MemoryStore() };
  const pass = "pass the property 'node'";
  const cases: Record<string, [act: () => unknown, text: string]> = {
    "as a source": [() => openImage(disk as Anything), pass],
    "as a file": [() => openImage({ driver: "raw", file: disk }), pass],
    "as a file to probe": [() => openImage({ file: disk }), pass],
    "as the file of a new image": [
      () => createImage("raw", disk as Anything, { size: 1 }),
      "is open already",
    ],
    "its node as the file of a new image": [
      () => createImage("raw", disk.node as Anything, { size: 1 }),
      "is open already",
    ],
    "its node as a filter": [
      () => insertFilter(disk, disk.node as Anything),
      "is open already",
    ],
    "as the description of a file": [
      () => createImage("raw", { ...file, file: disk }, { size: 1 }),
      "'file'",
    ],
  };
  for (const [name, [act, text]] of Object.entries(cases)) {
    await t.step(name, async () => {
      const { message } = await failure(act);
      assert(message.includes(text), message);
      assert(!message.includes("''"), message);
    });
  }
});

Deno.test("errors of nodes without a file name make sense", async () => {
  const disk = await image();
  const other = await image("raw", 512);
  for (
    const act of [
      () => disk.read(0, 2 * MIB),
      () => replaceChild(disk, "toString", other),
      () => replaceChild(disk, "file", other),
      () => {
        const file = disk.node.children.file!;
        return openImage({ driver: "qcow2", file });
      },
      async () => {
        await other.close();
        await replaceChild(disk, "file", other);
      },
      () => openImage(other.node),
      () => insertFilter(disk, { driver: "raw" }),
      () => insertFilter(disk, { driver: "copy-on-read", file: "other" }),
      () => other.read(0, 1),
    ]
  ) {
    const { message } = await failure(act);
    assert(!message.includes("''"), message);
  }
  await disk.close();
});

Deno.test("openImage() refuses options that make no sense", async (t) => {
  const cases: Record<string, unknown>[] = [
    { readOnly: "yes" },
    { readOnly: 1 },
    { format: 5 },
    { format: "nosuch" },
    { purpose: "fun" },
    { cache: "always" },
    { maxChain: -1 },
    { maxChain: "many" },
    { maxChain: 1.5 },
    { gate: "open" },
    { gate: { below: 5 } },
    { gate: null },
    { secrets: "password" },
    { warn: "loudly" },
    { backing: null },
  ];
  const store = new MemoryStore(MIB);
  for (const options of cases) {
    const [name] = Object.keys(options);
    await t.step(JSON.stringify(options), async () => {
      const source = { file: { driver: "memory", store } };
      const error = await failure(() => openImage(source, options));
      assertEquals(error.code, "EINVAL");
      assert(error.message.includes(name) || name === "format");
    });
  }
  for (const options of [null, 5, "raw"]) {
    await failure(() => openImage({ driver: "memory" }, options as Anything));
  }
});

Deno.test("drivers refuse options that make no sense, each by name", async (t) => {
  const base = {
    raw: { file: { driver: "memory" } },
    qcow2: { file: { driver: "memory", store: await qcow2Store() } },
    memory: {},
    file: { filename: "disk" },
    blkdebug: { image: { driver: "memory" } },
    "null-co": {},
    preallocate: { file: { driver: "memory" } },
    quorum: { children: [{ driver: "memory" }] },
  };
  const options: Record<keyof typeof base, string[]> = {
    raw: ["offset", "size"],
    qcow2: ["cache-size", "l2-cache-size", "cache-clean-interval"],
    memory: ["size"],
    file: ["locking", "io", "aio"],
    blkdebug: ["align", "max-transfer"],
    "null-co": ["size", "latency-ns", "read-zeroes"],
    preallocate: ["prealloc-align", "prealloc-size"],
    quorum: ["vote-threshold", "blkverify"],
  };
  for (const [driver, names] of Object.entries(options)) {
    for (const name of names) {
      for (
        const value of [NaN, -1, 1.5, Infinity, null, {}, [], big, "1,5G", ""]
      ) {
        await t.step(
          `${driver} ${name}=${String(value).slice(0, 9)}`,
          async () => {
            const stack = {
              driver,
              ...base[driver as keyof typeof base],
              [name]: value,
            };
            const error = await failure(() => openImage(stack));
            assertEquals(error.code, "EINVAL", error.message);
          },
        );
      }
    }
  }
});

Deno.test("a backing file that makes no sense is not ignored", async (t) => {
  const store = await qcow2Store();
  const nonsense = [5, true, Symbol("x"), 5n, () => 1, [], new Date(), ["a"]];
  for (const backing of nonsense) {
    await t.step(typeof backing, async () => {
      const file = { driver: "memory", store };
      const { code, message } = await failure(() =>
        openImage({ driver: "qcow2", file, backing } as Anything)
      );
      assertEquals(code, "EINVAL", message);
      assert(message.includes("a file name or the description"), message);
    });
  }
});

Deno.test("createImage() refuses to make an image its own backing file", async (t) => {
  await using dir = new TempDir();
  const name = dir.file("disk");
  const link = dir.file("link");
  await createImage("qcow2", name, { size: MIB });
  await Deno.symlink("disk", link);
  const before = await Deno.readFile(name);
  const backing_fmt = "qcow2";
  const others = ["disk", "./disk", "link", `file:${name}`, `${link}`, "a\0b"];
  for (const backing_file of others) {
    await t.step(backing_file, async () => {
      const options = { size: MIB, backing_file, backing_fmt };
      const { code, message } = await failure(() =>
        createImage("qcow2", name, options)
      );
      assertEquals(code, "EINVAL", message);
      assertEquals(await Deno.readFile(name), before);
    });
  }
});

async function qcow2Store(): Promise<MemoryStore> {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, { size: MIB });
  return store;
}

Deno.test("createImage() says what makes no sense", async (t) => {
  const file = { driver: "memory", store: new MemoryStore() };
  const cases: Record<string, () => unknown> = {
    "no format": () => createImage(undefined as Anything, file, { size: 1 }),
    "long format": () => createImage("x".repeat(1e6), file, { size: 1 }),
    "symbol": () => createImage(Symbol("x") as Anything, file, { size: 1 }),
    "options": () => createImage("qcow2", file, null as Anything),
    "more": () => createImage("qcow2", file, { size: 1 }, null as Anything),
    "unknown": () =>
      createImage("qcow2", file, { size: 1, ["x".repeat(1e6)]: 1 }),
  };
  for (
    const size of [
      NaN,
      -1,
      1.5,
      Infinity,
      null,
      {},
      "10GB",
      "1,5G",
      "10Gi",
      big,
    ]
  ) {
    cases[`size ${String(size).slice(0, 9)}`] = () =>
      createImage("qcow2", file, { size: size as Anything });
  }
  for (const [name, target] of Object.entries(NONSENSE)) {
    cases[`target ${name}`] = () =>
      createImage("qcow2", target as Anything, { size: MIB });
  }
  for (const [name, act] of Object.entries(cases)) {
    await t.step(name, async () => void await failure(act));
  }
  for (const size of ["10GB", "1,5G", "10Gi"]) {
    const { message } = await failure(() => createImage("raw", file, { size }));
    assert(message.includes(`'${size}'`), message);
  }
  const { message } = await failure(() =>
    createImage("qcow2", file, { size: 1, preallocation: "ful" as Anything })
  );
  assert(message.endsWith("one of off, metadata, falloc, full"), message);
});

Deno.test("an image refuses ranges and buffers that make no sense", async () => {
  await using disk = await image();
  const bytes = new Uint8Array(512);
  const numbers: Anything[] = [
    NaN,
    -1,
    0.5,
    Infinity,
    2 ** 60,
    "0",
    null,
    5n,
    {},
  ];
  for (const bad of numbers) {
    for (
      const act of [
        () => disk.read(bad, 512),
        () => disk.readv(bad, [bytes]),
        () => disk.write(bad, bytes),
        () => disk.writeZeroes(bad, 512),
        () => disk.writeZeroes(0, bad),
        () => disk.discard(bad, 512),
        () => disk.discard(0, bad),
        () => disk.writeCompressed(bad, bytes),
        () => disk.read(0, bad),
        () => Array.fromAsync(disk.extents(bad)),
        () => Array.fromAsync(disk.extents(0, bad)),
        () => disk.readable({ offset: bad }),
        () => disk.readable({ length: bad }),
        () => disk.readable({ chunkSize: bad }),
        () => disk.writable({ offset: bad }),
      ]
    ) {
      const isDefault = bad === 2 ** 60 && String(act).includes("chunkSize") ||
        bad === null && String(act).includes("writable");
      if (!isDefault) assertEquals((await failure(act)).code, "EINVAL");
    }
    if (bad === 2 ** 60) continue;
    assertEquals((await failure(() => disk.resize(bad))).code, "EINVAL");
  }
  const others = { ...NONSENSE, bytes: 1, shared: 1, proxy: 1 };
  for (const bad of Object.values(others)) {
    await failure(() => disk.write(0, bad as Anything));
    await failure(() => disk.writev(0, [bytes, bad as Anything]));
    if (Array.isArray(bad)) continue;
    await failure(() => disk.readv(0, bad as Anything));
  }
  await failure(() => disk.writev(0, [new Uint16Array(5) as Anything]));
  await failure(() => disk.resize(MIB, { preallocation: "some" as Anything }));
  await failure(() => disk.check({ repair: "all" as Anything }));
  await failure(() =>
    disk.check({ repair: { leaks: "yes" as Anything, corruptions: true } })
  );
  await disk.write(0, new Uint8Array(new SharedArrayBuffer(512)).fill(3));
  assertEquals((await disk.read(0, 1))[0], 3);
  // Reading all of it would take more memory than there is.
  await using large = await openImage({
    driver: "memory",
    store: new MemoryStore(2 ** 50),
  });
  assertEquals((await failure(() => large.read(0, 2 ** 49))).code, "ENOMEM");
  await disk.close();
  assertEquals((await failure(() => disk.read(0, 1))).code, "EBADF");
});

Deno.test("jobs say what makes no sense", async (t) => {
  await using a = await image();
  await using b = await image();
  const cases: Record<string, () => unknown> = {
    "new Image()": () => new Image({} as Anything),
    "compare options": () => compare(a.node, b.node, null as Anything),
    "compare something without a node": () =>
      compare({ node: 5 } as Anything, b),
    "convert no list": () => convert({ 0: a } as Anything, b),
    "convert to none": () => convert(a, 5 as Anything),
    "convert to two": () => convert([a], [b] as Anything),
    "commit": () => commit(a.node),
    "commit base": () => commit(a.node, { base: {} as Anything }),
    "commit rate": () => commit(a.node, { rateLimit: NaN }),
    "rebase": () => rebase(a.node, {} as Anything),
    "rebase to a file without a name": () =>
      rebase(a.node, { node: b.node } as Anything),
    "change to a backing file without a name": () =>
      changeBacking(a.node, {} as Anything),
    "rebase node": () =>
      rebase(a.node, { name: "x", format: "raw", node: [b] as Anything }),
    "measure": () => measure("nosuch"),
    "measure options": () => measure("qcow2", null as Anything),
    "measure source": () => measure("qcow2", {}, [a] as Anything),
    "stream": () => new Response(streamImage("qcow2", 5 as Anything)).bytes(),
    "stream format": () =>
      new Response(streamImage(null as Anything, a.node)).bytes(),
    "stream options": () =>
      new Response(streamImage("raw", a.node, { rateLimit: "1M" as Anything }))
        .bytes(),
    "convertStream": () => convertStream(5 as Anything, b.node),
    "convertStream of text": () => convertStream(["text"] as Anything, b.node),
    "convertStream of text, async": () =>
      convertStream(ReadableStream.from(["text"]) as Anything, b.node),
    "bench": () => bench(a.node, { depth: NaN }),
    "bench length": () => bench(a.node, { length: -1 }),
    "parseStack": () => parseStack(null as Anything),
    "parseStack of much": () => parseStack("a.b=1,a=2"),
    "parseKeyValueList": () => parseKeyValueList(5 as Anything),
    "getDriver": () => getDriver(Symbol("x") as Anything),
    "MemoryStore": () => new MemoryStore(NaN),
    "MemoryStore.write": () => new MemoryStore().write(NaN, new Uint8Array(1)),
    "MemoryStore.write text": () =>
      new MemoryStore().write(0, "text" as Anything),
    "MemoryStore.read": () => new MemoryStore().read(-1, new Uint8Array(1)),
    "MemoryStore.zero": () => new MemoryStore().zero(0, NaN),
    "MemoryStore.truncate": () => new MemoryStore().truncate("5" as Anything),
    "ThrottleGroup": () => new ThrottleGroup({ "bps-total": NaN }),
    "ThrottleGroup, wrong": () => new ThrottleGroup({ bps: 5 } as Anything),
    "ThrottleGroup, none": () => new ThrottleGroup(null as Anything),
    "secrets": () => openImage({ driver: "qcow2" }, { secrets: 5 as Anything }),
  };
  for (
    const options of [
      { parallel: 1.5 },
      { parallel: 17 },
      { sparseSize: 1000 },
      { sparseSize: "4k" },
      { rateLimit: -1 },
      { compressionLevel: 1.5 },
      { progressBy: "time" },
      { progress: 5 },
      { signal: "stop" },
    ]
  ) {
    cases[JSON.stringify(options)] = () =>
      convert([a.node], b.node, options as Anything);
  }
  for (const [name, value] of Object.entries(NONSENSE)) {
    if (value === undefined) continue;
    cases[`compare with ${name}`] = () => compare(a.node, value as Anything);
    cases[`change the backing file of ${name}`] = () =>
      changeBacking(value as Anything, undefined);
    cases[`change the backing file to ${name}`] = () =>
      changeBacking(a.node, value as Anything);
    cases[`convert ${name}`] = () => convert([value as Anything], b.node);
    cases[`commit to ${name}`] = () =>
      commit(a.node, { base: value as Anything });
    cases[`register ${name}`] = () => registerDriver(value as Anything);
  }
  for (const [name, act] of Object.entries(cases)) {
    await t.step(name, async () => void await failure(act));
  }
  assertEquals(parseSize(5 as Anything), undefined);
});

let drivers = 0;

/** Register a driver that returns `node`, or throws what it throws. */
function driverOf(
  node: (driver: BlockDriver) => unknown,
  more: Partial<BlockDriver> = {},
): string {
  const name = `nonsense-${++drivers}`;
  const driver: BlockDriver = {
    name,
    role: "protocol",
    open: async () => await node(driver) as BlockNode,
    ...more,
  };
  registerDriver(driver);
  return name;
}

const DATA = { allocated: true, zero: false };

/** A sound read-only node of 1 MiB, apart from `changes`. */
function nodeOf(driver: BlockDriver, changes: Anything = {}): BlockNode {
  return {
    driver,
    filename: "made up",
    size: MIB,
    readOnly: false,
    children: {},
    readv: () => Promise.resolve(),
    status: (_offset, length) => Promise.resolve({ ...DATA, length }),
    close: () => Promise.resolve(),
    ...changes,
  };
}

Deno.test("nodes that a driver opens are validated", async (t) => {
  const odd: Record<string, Anything> = {
    "no size": { size: undefined },
    "a size that is no number": { size: NaN },
    "a negative size": { size: -5 },
    "a fractional size": { size: 0.5 },
    "a text for a size": { size: "1M" },
    "no children": { children: undefined },
    "null for children": { children: null },
    "a child that is none": { children: { file: 5 } },
    "no readv": { readv: undefined },
    "no status": { status: null },
    "no close": { close: 5 },
    "a writev that is none": { writev: true },
    "no driver": { driver: undefined },
    "no filename": { filename: undefined },
    "a readOnly that is none": { readOnly: "no" },
    "an alignment of 0": { limits: { requestAlignment: 0 } },
    "an alignment that is none": { limits: { requestAlignment: NaN } },
    "an alignment of 3": { limits: { requestAlignment: 3 } },
    "an alignment of 1 TiB": { limits: { requestAlignment: 2 ** 40 } },
    "an alignment that is a text": { limits: { requestAlignment: "512" } },
    "limits that are none": { limits: 5 },
    "a negative limit": { limits: { maxTransfer: -1 } },
    "a fractional limit": { limits: { maxDiscard: 0.5 } },
    "an unaligned transfer": {
      limits: { requestAlignment: 512, maxTransfer: 1000 },
    },
    "a transfer shorter than a unit": {
      limits: { requestAlignment: 512, maxTransfer: 100 },
    },
    "unaligned writes of zeroes": {
      limits: { requestAlignment: 512, writeZeroesAlignment: 1000 },
    },
    "unaligned discards": {
      limits: { requestAlignment: 512, discardAlignment: 1000 },
    },
    "zeroes shorter than their unit": {
      limits: { writeZeroesAlignment: 4096, maxWriteZeroes: 1000 },
    },
    "discards shorter than a unit": {
      limits: { requestAlignment: 512, maxDiscard: 100 },
    },
  };
  for (const [what, changes] of Object.entries(odd)) {
    await t.step(what, async () => {
      const driver = driverOf((driver) => nodeOf(driver, changes));
      for (const stack of [{ driver }, { driver: "raw", file: { driver } }]) {
        const error = await failure(() => openImage(stack));
        assertEquals(error.code, "EINVAL");
        assert(error.message.includes(`'${driver}'`), error.message);
      }
    });
  }
  for (const [name, value] of Object.entries(NONSENSE)) {
    // Merely awaiting such a proxy fails.
    if (name === "proxy") continue;
    await t.step(name, async () => {
      const driver = driverOf(() => value);
      const { message } = await failure(() => openImage({ driver }));
      assert(message.includes(`'${driver}'`), message);
    });
  }
  await t.step("a getter that throws", async () => {
    const driver = driverOf((driver) =>
      Object.defineProperty(nodeOf(driver), "size", {
        get: () => {
          throw new Error("a trap");
        },
      })
    );
    const { message } = await failure(() => openImage({ driver }));
    assert(message.includes("a trap"), message);
  });
});

Deno.test("the name of a backing file that a driver reports must be a string", async () => {
  const driver = `nonsense-${crypto.randomUUID()}`;
  registerDriver({
    name: driver,
    role: "format",
    open: (_options, context) =>
      context.openImplicit("backing", 5 as Anything, undefined) as Promise<
        BlockNode
      >,
  });
  const { code, message } = await failure(() => openImage({ driver }));
  assertEquals(code, "EINVAL");
  assert(message.endsWith("name of a backing file cannot be 5"), message);
});

Deno.test("whatever a driver throws becomes a BlockError with its message", async (t) => {
  const thrown: [what: unknown, message: string][] = [
    [new TypeError("x is not a function"), "x is not a function"],
    [new Error("the server is on fire"), "the server is on fire"],
    ["just text", "just text"],
    [undefined, "undefined was thrown"],
    [null, "null was thrown"],
    [5, "5 was thrown"],
    [Symbol("s"), "Symbol(s) was thrown"],
    [{ reason: 5 }, "an object was thrown"],
    [new Error(""), "Error"],
    [new Error("one\ntwo"), "one two"],
  ];
  for (const [what, message] of thrown) {
    await t.step(String(message), async () => {
      const fail = () => Promise.reject(what);
      const opening = driverOf(fail);
      const check = (error: BlockError) => {
        assert(error.message.includes(message), error.message);
        let cause: unknown = error;
        while (cause instanceof BlockError) cause = cause.cause;
        assert(cause === what);
      };
      check(await failure(() => openImage({ driver: opening })));
      const using = driverOf((driver) =>
        nodeOf(driver, {
          readv: fail,
          writev: fail,
          flush: fail,
          status: fail,
          truncate: fail,
          image: { check: fail },
          info: fail,
          discard: fail,
        })
      );
      await using disk = await openImage({ driver: using });
      for (
        const act of [
          () => disk.read(0, 1),
          () => disk.write(0, new Uint8Array(1)),
          () => disk.writeZeroes(0, 1),
          () => disk.discard(0, 1),
          () => disk.flush(),
          () => disk.resize(5),
          () => disk.check(),
          () => disk.info(),
          () => Array.fromAsync(disk.extents()),
        ]
      ) {
        check(await assertRejects(act, BlockError));
      }
    });
  }
  await t.step("a code of the system is kept", async () => {
    const full = Object.assign(new Error("disk full"), { code: "ENOSPC" });
    const driver = driverOf(() => Promise.reject(full));
    assertEquals((await failure(() => openImage({ driver }))).code, "ENOSPC");
  });
});

Deno.test("a node without writev is read-only, and the error of a write names its driver", async (t) => {
  const store = await qcow2Store();
  const changes: Anything = {
    size: store.size,
    readv: (offset: number, iov: Uint8Array[]) => {
      for (const part of iov) {
        store.read(offset, part);
        offset += part.length;
      }
      return Promise.resolve();
    },
  };
  const kinds = [
    {},
    { readOnly: undefined },
    { readOnly: true },
    { writeZeroes: () => Promise.resolve() },
    { discard: () => Promise.resolve(), truncate: () => Promise.resolve() },
  ];
  for (const kind of kinds) {
    const driver = driverOf((driver) =>
      nodeOf(driver, { ...changes, ...kind })
    );
    const stacks: Anything[] = [
      { driver },
      { driver: "raw", file: { driver } },
      { driver: "qcow2", file: { driver } },
      { file: { driver } },
      {
        driver: "throttle",
        "throttle-group": new ThrottleGroup({}),
        file: { driver },
      },
      { driver: "blkdebug", image: { driver } },
    ];
    for (const stack of stacks) {
      await t.step(`${stack.driver} ${Object.keys(kind)}`, async () => {
        await using disk = await openImage(stack);
        assertEquals(disk.readOnly, true);
        await disk.read(0, 512);
        for (
          const act of [
            () => disk.write(0, new Uint8Array(512)),
            () => disk.writeZeroes(0, 512),
            () => disk.discard(0, 512),
            () => disk.writeCompressed(0, new Uint8Array(65536)),
            () => disk.resize(2 * MIB),
            () => convert([disk.node], disk.node),
            () => bench(disk.node, { write: true, count: 1 }),
          ]
        ) {
          const error = await failure(act);
          assertEquals(error.code, "ENOTSUP");
          assert(error.message.includes(`'${driver}'`), error.message);
        }
      });
    }
  }
});

Deno.test("a node that is read-only is not written to from above", async () => {
  const store = await qcow2Store();
  const file = { driver: "memory", store, "read-only": true };
  for (const driver of ["raw", "qcow2"]) {
    const error = await failure(() => openImage({ driver, file }));
    assertEquals(error.code, "EACCES");
    assert(error.message.includes("Block node is read-only"), error.message);
    await using _ = await openImage({ driver, file }, { readOnly: true });
  }
});

Deno.test("an extent without length or content causes an error, not an endless loop", async (t) => {
  const extents: Anything[] = [
    { ...DATA, length: 0 },
    { ...DATA, length: NaN },
    { ...DATA, length: -5 },
    DATA,
    { ...DATA, length: "512" },
    { ...DATA, length: 0.5 },
    { length: 512, allocated: true },
    { length: 512, zero: false },
    { length: 512, allocated: "yes", zero: false },
    { length: 512, allocated: true, zero: 0 },
    { length: 512, allocated: true, zero: false, compressed: 1 },
    { length: 5 },
    undefined,
    null,
    5,
  ];
  for (const extent of extents) {
    await t.step(JSON.stringify(extent) ?? "undefined", async () => {
      const driver = driverOf((driver) =>
        nodeOf(driver, { status: () => Promise.resolve(extent) })
      );
      await using target = await image("raw");
      for (const stack of [{ driver }, { driver: "raw", file: { driver } }]) {
        await using disk = await openImage(stack, { readOnly: true });
        for (
          const act of [
            () => Array.fromAsync(disk.extents()),
            () => convert([disk.node], target.node),
            () => compare(disk.node, target.node),
          ]
        ) {
          const { message } = await assertRejects(act, BlockError);
          assert(message.includes(`'${driver}'`), message);
        }
      }
    });
  }
  await t.step("one that is too long is cut", async () => {
    const driver = driverOf((driver) =>
      nodeOf(driver, {
        status: () => Promise.resolve({ ...DATA, length: 2 ** 60 }),
      })
    );
    await using disk = await openImage({ driver });
    const [only, ...others] = await Array.fromAsync(disk.extents());
    assertEquals([only.length, others.length], [MIB, 0]);
  });
});

Deno.test("registerDriver() refuses anything but a driver", async () => {
  const open = () => Promise.reject(new BlockError("EIO"));
  for (
    const driver of [
      {},
      { name: "", role: "protocol", open },
      { name: 5, role: "protocol", open },
      { name: "nonsense", open },
      { name: "nonsense", role: "king", open },
      { name: "nonsense", role: "format" },
      { name: "nonsense", role: "format", open: 5 },
      { name: "nonsense", role: "format", open, create: 5 },
      { name: "nonsense", role: "format", open, schemes: "x" },
      { name: "nonsense", role: "format", open, openOptions: 5 },
      { name: "nonsense", role: "format", open, createOptions: ["size"] },
    ]
  ) {
    const error = await failure(() => registerDriver(driver as Anything));
    assertEquals(error.code, "EINVAL");
  }
  assertEquals(
    (await failure(() => registerDriver({ name: "raw", role: "format", open })))
      .code,
    "EEXIST",
  );
});

/** What every driver has, and what only some have. */
const OPTION_NAMES = [
  ...["node-name", "read-only", "discard", "detect-zeroes", "cache"],
  ...["file", "backing", "image", "store", "children", "throttle-group"],
  ...["encrypt", "overlap-check", "inject-error", "debugger", "filename"],
  ...["", "__proto__", "constructor", "a.b", "driver"],
];

Deno.test("every nonsense value of any driver's option gives a one-line error", async (t) => {
  const disk = () => ({ driver: "memory", store: new MemoryStore(MIB) });
  const qcow2 = {
    driver: "qcow2",
    file: { driver: "memory", store: await qcow2Store() },
  };
  const values: Anything[] = [
    ...[null, 5, -1, 1.5, NaN, 2 ** 60, "", "x", true, [], {}, { a: 1 }],
    ...[{ driver: 5 }, big, new Map(), () => 1, Symbol("q"), 10n],
    ...["x".repeat(100_000), trap, Object.create(null)],
  ];
  const children = { file: qcow2, image: disk(), children: [disk()] };
  // Some values are as good as file names, so files of these names get created.
  await using folder = new TempDir();
  const before = Deno.cwd();
  using _ = { [Symbol.dispose]: () => Deno.chdir(before) };
  Deno.chdir(folder.path);
  for (const driver of listDrivers()) {
    if (driver.name.startsWith("nonsense-")) continue;
    await t.step(driver.name, async () => {
      const { openOptions = {}, createOptions = {} } = driver;
      const names = new Set([...Object.keys(openOptions), ...OPTION_NAMES]);
      for (const [name, value] of product([...names], values)) {
        const child = ["file", "image", "children"].filter((role) =>
          driver.role !== "protocol" && role !== name
        );
        const stack = Object.fromEntries([
          ["driver", driver.name],
          ...child.slice(0, 1).map((
            role,
          ) => [role, children[role as keyof typeof children]]),
          [name, value],
        ]);
        await succeedsOrExplains(async () => {
          await using opened = await openImage(stack);
          // Some values mean to wait for years.
          const signal = AbortSignal.timeout(1000);
          await opened.read(0, Math.min(opened.size, 1), { signal });
        });
      }
      for (
        const [name, value] of product(
          [...Object.keys(createOptions), "bogus"],
          values,
        )
      ) {
        const options = { size: MIB, [name]: value };
        await succeedsOrExplains(() =>
          createImage(driver.name, disk(), options)
        );
        await succeedsOrExplains(() => measure(driver.name, options));
      }
    });
  }
});

function product<A, B>(first: A[], second: B[]): [A, B][] {
  return first.flatMap((a) => second.map((b): [A, B] => [a, b]));
}

/**
 * A call that succeeds, or fails with a one-line message that is no internal
 * error.
 */
async function succeedsOrExplains(act: () => Promise<unknown>): Promise<void> {
  let wrong: string | undefined;
  try {
    await act();
  } catch (error) {
    assert(error instanceof BlockError, String(error));
    wrong = mistake(error);
    assert(
      error.message.length < LINE && !error.message.includes("\n"),
      error.message,
    );
  }
  assertEquals(wrong, undefined);
}
