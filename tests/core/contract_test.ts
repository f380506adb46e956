/**
 * What the core does so that no driver has to: wrappers, absent verbs,
 * read-only nodes, types of options, and unexpected exceptions.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { filterNode, wrapNode } from "../../core/filter.ts";
import {
  type BlockDriver,
  BlockError,
  type BlockNode,
  createImage,
  findDriver,
  type Image,
  MemoryStore,
  openImage,
  type OpenOptions,
  type OptionTable,
  registerDriver,
  type StackObject,
  type WriteFlags,
} from "../../mod.ts";

const KIB = 1024;
const SIZE = 256 * KIB;

let count = 0;

/** Register a driver whose nodes are what `open` makes of their children. */
function register(
  open: (driver: BlockDriver, ...args: Parameters<BlockDriver["open"]>) =>
    | BlockNode
    | Promise<BlockNode>,
  more: Partial<BlockDriver> = {},
): string {
  const driver: BlockDriver = {
    name: `contract-${count++}`,
    role: "filter",
    // deno-lint-ignore require-await
    open: async (options, context) => open(driver, options, context),
    ...more,
  };
  registerDriver(driver);
  return driver.name;
}

/** A disk in memory with `changes`, and only the given `verbs`. */
function plainNode(
  driver: BlockDriver,
  store: MemoryStore,
  verbs: readonly (keyof BlockNode)[],
  changes: Partial<BlockNode> = {},
): BlockNode {
  const all: BlockNode = {
    driver,
    filename: "plain",
    get size() {
      return store.size;
    },
    readOnly: false,
    children: {},
    // deno-lint-ignore require-await
    async readv(offset, iov) {
      for (const part of iov) {
        store.read(offset, part);
        offset += part.length;
      }
    },
    // deno-lint-ignore require-await
    async writev(offset, iov) {
      for (const part of iov) {
        store.write(offset, part);
        offset += part.length;
      }
    },
    // deno-lint-ignore require-await
    async writeZeroes(offset, length) {
      store.write(offset, new Uint8Array(length));
    },
    discard: () => Promise.resolve(),
    flush: () => Promise.resolve(),
    truncate: () => Promise.resolve(),
    status: (_, length) =>
      Promise.resolve({ length, allocated: true, zero: false }),
    close: () => Promise.resolve(),
    ...changes,
  };
  for (
    const verb of ["writev", "writeZeroes", "discard", "flush", "truncate"]
  ) {
    if (!verbs.includes(verb as keyof BlockNode)) {
      delete all[verb as "writev"];
    }
  }
  return all;
}

const ALL = ["writev", "writeZeroes", "discard", "flush", "truncate"] as const;

/** A driver of plain nodes, and the last node it opened. */
function plainDriver(
  verbs: readonly (keyof BlockNode)[],
  changes: Partial<BlockNode> = {},
): { name: string; made: () => BlockNode } {
  let node: BlockNode | undefined;
  const name = register(
    (driver) => node = plainNode(driver, new MemoryStore(SIZE), verbs, changes),
    { role: "protocol" },
  );
  return { name, made: () => node! };
}

async function refused(
  act: () => Promise<unknown>,
  code: string,
  ...words: string[]
): Promise<void> {
  const error = await assertRejects(act, BlockError);
  assertEquals(error.code, code, error.message);
  for (const word of words) {
    assert(error.message.includes(word), `'${word}' in: ${error.message}`);
  }
}

const WRAPPED: [what: string, stack: object, limits: BlockNode["limits"]][] = [
  ["alignment", {}, { requestAlignment: 512 }],
  ["the largest request", {}, { maxTransfer: 4 * KIB }],
  ["the unit of zeroes", {}, { writeZeroesAlignment: 4 * KIB }],
  ["the largest discard", {}, { maxDiscard: 4 * KIB }],
  ["detect-zeroes", { "detect-zeroes": "unmap", discard: "unmap" }, undefined],
  ["discard=ignore", { discard: "ignore" }, undefined],
];

for (const [what, stack, limits] of WRAPPED) {
  Deno.test(`${what}: a driver's node is left as it is`, async () => {
    const name = register((driver) => {
      const store = new MemoryStore(SIZE);
      return Object.freeze(plainNode(driver, store, ALL, { limits }));
    }, { role: "protocol" });
    await using disk = await openImage({ driver: name, ...stack });
    assertEquals([disk.format, disk.size], [name, SIZE]);
    assertEquals(disk.node.driver, findDriver(name));
    assertEquals(disk.node.children, {});
    const bytes = new Uint8Array(20 * KIB).fill(7);
    await disk.write(1000, bytes);
    await disk.writeZeroes(3000, 10 * KIB, { unmap: true });
    await disk.write(50_000, new Uint8Array(2 * KIB));
    await disk.discard(100_000, 9000);
    await disk.flush();
    bytes.fill(0, 2000, 2000 + 10 * KIB);
    assertEquals(await disk.read(1000, 20 * KIB), bytes);
  });
}

Deno.test("a node that needs no wrapper has none", async () => {
  const { name, made } = plainDriver(ALL);
  await using disk = await openImage({ driver: name });
  assert(disk.node === made());
  await using over = await openImage({ driver: "raw", file: { driver: name } });
  assert(over.node.children.file === made());
});

Deno.test("a wrapper reflects changes of its node, and adds no verbs to it", () => {
  let size = 5;
  const driver: BlockDriver = {
    name: "none",
    role: "protocol",
    open: () => Promise.reject(new BlockError("EIO")),
  };
  const node = plainNode(driver, new MemoryStore(1), ["writev"]);
  Object.defineProperty(node, "size", { get: () => size });
  const wrapper = wrapNode(node, {
    discard: () => Promise.resolve(),
    truncate: () => Promise.resolve(),
    flush: () => Promise.resolve(),
    writev: undefined,
  });
  size = 7;
  assertEquals(wrapper.size, 7);
  assertEquals(
    [wrapper.writev, wrapper.discard, wrapper.truncate],
    [undefined, undefined, undefined],
  );
  assert(wrapper.flush);
});

Deno.test("a filter has an intercepted verb only if the node below has it", async () => {
  const intercept = (driver: BlockDriver, file: BlockNode) =>
    filterNode(driver, file, {
      writev: (...args) => file.writev!(...args),
      writeZeroes: (...args) => file.writeZeroes!(...args),
      discard: (...args) => file.discard!(...args),
      truncate: (...args) => file.truncate!(...args),
      writeCompressed: (...args) => file.writeCompressed!(...args),
    });
  const filter = register(async (driver, _options, context) =>
    intercept(driver, await context.openChild("file"))
  );
  for (const verbs of [[], ["writev"], ["writev", "discard"], ALL] as const) {
    const file = { driver: plainDriver(verbs).name };
    await using disk = await openImage({ driver: filter, file });
    const has = ALL.filter((verb) => disk.node[verb]);
    assertEquals(
      has,
      ALL.filter((verb) => (verbs as readonly string[]).includes(verb)),
    );
    assertEquals(disk.node.writeCompressed, undefined);
    assertEquals(disk.readOnly, verbs.length === 0);
  }
});

/** A filter that assumes its children can do everything. */
function carelessFilter(roles: readonly string[]): string {
  return register(async (driver, _options, context) => {
    const children: BlockNode[] = [];
    for (const role of roles) children.push(await context.openChild(role));
    const all = async (act: (node: BlockNode) => Promise<unknown>) => {
      for (const node of children) await act(node);
    };
    const [first] = children;
    return {
      driver,
      filename: first.filename,
      size: first.size,
      readOnly: false,
      children: Object.fromEntries(
        roles.map((role, index) => [role, children[index]]),
      ),
      readv: (offset, iov) => first.readv(offset, iov),
      writev: (offset, iov) => all((file) => file.writev!(offset, iov)),
      writeZeroes: (offset, length) =>
        all((file) => file.writeZeroes!(offset, length)),
      discard: (offset, length) => all((file) => file.discard!(offset, length)),
      truncate: (size) => all((file) => file.truncate!(size)),
      flush: () => all((file) => file.flush!()),
      writeCompressed: (offset, iov) =>
        all((copy) => copy.writeCompressed!(offset, iov)),
      info: async () => await first.info!(),
      status: (offset, length) => first.status(offset, length),
      close: () => all((file) => file.close()),
    };
  });
}

Deno.test("calling a verb that a child lacks is an error that names both the driver and the child", async () => {
  const { name } = plainDriver(["writev"]);
  for (const over of [undefined, "raw"]) {
    const careless = carelessFilter(["file"]);
    const stack = { driver: careless, file: { driver: name } };
    await using disk = await openImage(
      over ? { driver: over, file: stack } : stack,
    );
    await disk.write(0, new Uint8Array(10));
    const names = [`'${careless}'`, `'${name}'`, "'plain'"];
    await refused(() => disk.resize(KIB), "ENOTSUP", "truncate", ...names);
    await refused(() => disk.flush(), "ENOTSUP", "flush", ...names);
    // What can be emulated works.
    await disk.writeZeroes(0, 10);
    await disk.discard(0, 10);
    if (over) continue;
    await refused(() => disk.info(), "ENOTSUP", "info", ...names);
    await refused(
      () => disk.writeCompressed(0, new Uint8Array(10)),
      "ENOTSUP",
      "writeCompressed",
      ...names,
    );
  }
});

Deno.test("a child without write access makes its parent read-only, or is refused", async () => {
  const { name } = plainDriver([]);
  const careless = carelessFilter(["file"]);
  {
    await using disk = await openImage({
      driver: careless,
      file: { driver: name },
    });
    assertEquals(disk.readOnly, true);
    for (
      const act of [
        () => disk.write(0, new Uint8Array(1)),
        () => disk.writeZeroes(0, 1),
        () => disk.discard(0, 1),
        () => disk.resize(1),
      ]
    ) await refused(act, "ENOTSUP", `'${name}'`);
  }
  const both = carelessFilter(["file", "copy"]);
  const file = { driver: plainDriver(ALL).name };
  const readOnlyCopies: [copy: unknown, by: string][] = [
    [{ driver: name }, name],
    [{ driver: "memory", size: SIZE, "read-only": true }, "memory"],
    [(await openImage({ driver: name })).node, name],
  ];
  for (const [copy, by] of readOnlyCopies) {
    const stack = { driver: both, file, copy } as StackObject;
    await refused(() => openImage(stack), "EACCES", "read-only", by);
    await using disk = await openImage(stack, { readOnly: true });
    await disk.read(0, 1);
  }
});

Deno.test("a node opened read-only stays so, whatever its driver says", async () => {
  const { name, made } = plainDriver(ALL);
  const ways: [stack: StackObject, options: OpenOptions][] = [
    [{ driver: name }, { readOnly: true }],
    [{ driver: name, "read-only": true }, {}],
    [{ driver: carelessFilter(["file"]), file: { driver: name } }, {
      readOnly: true,
    }],
  ];
  for (const [stack, options] of ways) {
    await using disk = await openImage(stack, options);
    assertEquals(disk.readOnly, true);
    await refused(() => disk.write(0, new Uint8Array(1)), "EACCES");
    await refused(() => disk.resize(1), "EACCES");
    assertEquals(made().readOnly, false);
  }
});

const OPTIONS: OptionTable = {
  size: { type: "size", help: "Bytes" },
  count: { type: "number", help: "Copies" },
  fast: { type: "boolean", help: "Be fast" },
  mode: { type: "enum", values: ["a", "b"], help: "How" },
  title: { type: "string", help: "What it is called" },
};

Deno.test("options that do not fit a driver's table are refused, naming it", async () => {
  const name = register(
    // A driver that trusts its options.
    (driver, options) =>
      plainNode(driver, new MemoryStore(SIZE), ALL, {
        filename: (options.title as string | undefined ?? "it").toLowerCase(),
      }),
    { role: "protocol", openOptions: OPTIONS },
  );
  const wrong: [option: string, values: unknown[]][] = [
    ["size", ["big", -1, 0.5, NaN, {}, [], null, () => {}]],
    ["count", ["many", -1, 1.5, {}, null]],
    ["fast", ["maybe", 1, {}, null]],
    ["mode", ["c", 5, {}]],
    ["title", [{}, [], null, Symbol("title")]],
  ];
  for (const [option, values] of wrong) {
    for (const value of values) {
      await refused(
        () => openImage({ driver: name, [option]: value }),
        "EINVAL",
        `'${option}'`,
        `'${name}'`,
      );
    }
  }
  const right = { size: "1M", count: 3, fast: "on", mode: "b", title: "X" };
  await using disk = await openImage({ driver: name, ...right });
  assertEquals(disk.filename, "x");
});

Deno.test("an exception thrown while opening names the driver, and keeps its message", async () => {
  const broken = new TypeError("x is not iterable");
  const name = register(() => Promise.reject(broken));
  const error = await assertRejects(
    () => openImage({ driver: name, file: { driver: "null-co" } }),
    BlockError,
    `Driver '${name}': x is not iterable`,
  );
  let cause: unknown = error;
  while (cause instanceof BlockError) cause = cause.cause;
  assert(cause === broken);
});

Deno.test("an exception thrown while creating an image names the driver", async () => {
  const target = { driver: "memory", store: new MemoryStore() };
  const fail = (error: unknown) =>
    register(() => Promise.reject(error), {
      role: "format",
      createOptions: OPTIONS,
      create: () => Promise.reject(error),
    });
  const broken = fail(new TypeError("x is not iterable"));
  await refused(
    () => createImage(broken, target),
    "EIO",
    `Driver '${broken}': x is not iterable`,
  );
  const full = fail(new BlockError("ENOSPC", "no room"));
  await refused(() => createImage(full, target), "ENOSPC", "no room");
});

Deno.test("flags of a request must be of the right type", async () => {
  await using disk = await openImage({ driver: plainDriver(ALL).name });
  const wrong: [flags: unknown, name: string][] = [
    [{ fua: "yes" }, "'fua'"],
    [{ placed: 5 }, "'placed'"],
    ["fua", "an object"],
  ];
  for (const [flags, name] of wrong) {
    await refused(
      () => disk.write(0, new Uint8Array(1), flags as WriteFlags),
      "EINVAL",
      name,
    );
  }
  await refused(
    () => disk.writeZeroes(0, 1, { unmap: 1 as unknown as boolean }),
    "EINVAL",
    "'unmap'",
  );
});

Deno.test("qcow2 keeps the message of an exception thrown by its file", async () => {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, { size: SIZE });
  let broken = false;
  const fail = () => {
    if (broken) throw new Error("the server is on fire");
  };
  const name = register(async (driver, _options, context) => {
    const file = await context.openChild("file");
    return filterNode(driver, file, {
      async readv(offset, iov) {
        fail();
        await file.readv(offset, iov);
      },
      async writev(offset, iov) {
        fail();
        await file.writev!(offset, iov);
      },
    });
  });
  const file = { driver: name, file: { driver: "memory", store } };
  const acts: ((disk: Image) => Promise<unknown>)[] = [
    (disk) => disk.write(0, new Uint8Array(1)),
    (disk) => disk.resize(4 * SIZE),
    (disk) => disk.check(),
    (disk) => disk.node.image!.amend!({ compat: "0.10" }),
    (disk) => disk.node.snapshots!.create({ name: "x" }),
    async (disk) => {
      broken = false;
      await disk.write(0, new Uint8Array(1).fill(1));
      broken = true;
      await disk.flush();
    },
  ];
  for (const act of acts) {
    broken = false;
    const disk = await openImage({ driver: "qcow2", file });
    broken = true;
    const error = await assertRejects(() => act(disk), Error, "", String(act));
    assert(error instanceof Error);
    assert(error.message.includes("the server is on fire"), error.message);
    await disk.close().catch(() => {});
  }
});

Deno.test("groups of verbs are validated", async () => {
  const odd: [group: string, value: unknown][] = [
    ["image", 5],
    ["image", { check: true }],
    ["image", null],
    ["vmState", {}],
    ["vmState", { save: () => Promise.resolve() }],
    ["snapshots", { list: () => Promise.resolve([]) }],
    ["debug", {}],
    ["debug", { event: "flush" }],
  ];
  for (const [group, value] of odd) {
    const { name } = plainDriver(ALL, { [group]: value });
    await refused(
      () => openImage({ driver: name }),
      "EINVAL",
      `'${name}'`,
      `'${group}`,
    );
  }
});
