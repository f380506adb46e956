/**
 * Persistent bitmaps of qcow2: what they record, what is stored when, and what
 * happens to damaged ones.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  type Image,
  MemoryStore,
  openImage,
  type OptionValues,
} from "../../../mod.ts";
import { faultyNode } from "../../fault_disk.ts";
import { qemuTest, run, TempDir } from "../../qemu.ts";
import { openNode } from "../../../core/open.ts";
import { goldenStack } from "./golden.ts";
import { contentOf, put32, put64, storeOf } from "./bytes.ts";

const MIB = 1 << 20;

async function newStore(options: OptionValues = {}): Promise<MemoryStore> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, {
    size: MIB,
    cluster_size: 4096,
    ...options,
  });
  return store;
}

function open(store: MemoryStore, readOnly = false): Promise<Image> {
  const file = { driver: "memory", store };
  return openImage({ driver: "qcow2", file, backing: null }, { readOnly });
}

/** Open, use and close. */
async function using<T>(
  store: MemoryStore,
  use: (image: Image) => Promise<T>,
  readOnly = false,
): Promise<T> {
  await using image = await open(store, readOnly);
  const result = await use(image);
  await image.close();
  return result;
}

function dirtyOf(image: Image, name: string): Promise<number[][]> {
  return Array.fromAsync(
    image.bitmaps.dirty(name),
    ({ offset, length }) => [offset, length],
  );
}

async function assertClean(store: MemoryStore): Promise<void> {
  await using image = await open(store, true);
  const { leaks, corruptions, checkErrors } = await image.check();
  assertEquals([leaks, corruptions, checkErrors], [0, 0, 0]);
}

Deno.test("bitmaps record writes, zeroes and discards, in whole units", async () => {
  const store = await newStore();
  await using(store, async (image) => {
    await image.bitmaps.add("a", { granularity: 512 });
    await image.bitmaps.add("b");
    await image.bitmaps.add("off", { enabled: false });
    await image.write(1000, new Uint8Array(25));
    await image.writeZeroes(10_000, 1);
    await image.discard(20_480, 8192);
    await image.write(MIB - 1, new Uint8Array(1));
    await image.writeCompressed(40_960, new Uint8Array(4096).fill(7));
    await image.read(500_000, 100);
    await image.write(300_000, new Uint8Array(0));
  });
  await using image = await open(store, true);
  assertEquals(await dirtyOf(image, "a"), [
    [512, 1024],
    [9728, 512],
    [20_480, 8192],
    [40_960, 4096],
    [MIB - 512, 512],
  ]);
  assertEquals(await dirtyOf(image, "b"), [
    [0, 4096],
    [8192, 4096],
    [20_480, 8192],
    [40_960, 4096],
    [MIB - 4096, 4096],
  ]);
  assertEquals(await dirtyOf(image, "off"), []);
  const part = await Array.fromAsync(image.bitmaps.dirty("a", 600, 21_000));
  assertEquals(part[0], { offset: 600, length: 936 });
  assertEquals(part.at(-1), { offset: 20_480, length: 1120 });
  await assertClean(store);
});

Deno.test("bitmaps stored by QEMU read as QEMU says", async () => {
  const stack = await goldenStack("bitmaps.qcow2");
  await using image = await openImage(stack, { readOnly: true });
  const list = await image.bitmaps.list();
  assertEquals(
    list.map(({ name, flags, granularity }) => [name, granularity, ...flags]),
    [
      ["old", 4096, "in-use", "auto"],
      ["fine", 512, "auto"],
      ["coarse", 2 ** 31, "auto"],
      ["off", 65536],
    ],
  );
  assertEquals(await dirtyOf(image, "fine"), [
    [4608, 512],
    [102_400, 524_288],
    [716_800, 5120],
    [1_047_552, 1024],
  ]);
  assertEquals(await dirtyOf(image, "coarse"), [[0, MIB]]);
  assertEquals(await dirtyOf(image, "off"), [
    [0, 12 * 65536],
    [15 * 65536, 65536],
  ]);
});

Deno.test("bitmaps are listed in their current state", async () => {
  const store = await newStore();
  await using(store, async (image) => {
    const { bitmaps } = image;
    await bitmaps.add("a");
    await bitmaps.add("b", { enabled: false, granularity: 1024 });
    const list = [
      { name: "a", granularity: 4096, flags: ["auto" as const] },
      { name: "b", granularity: 1024, flags: [] },
    ];
    assertEquals(await bitmaps.list(), list);
    assertEquals((await image.info()).bitmaps, list);
    await bitmaps.disable("a");
    await bitmaps.enable("b");
    assertEquals((await bitmaps.list()).map(({ flags }) => flags), [[], [
      "auto",
    ]]);
    await bitmaps.remove("a");
    await bitmaps.add("a");
  });
  await using image = await open(store, true);
  const names = (await image.bitmaps.list()).map(({ name }) => name);
  assertEquals(names, ["b", "a"]);
});

Deno.test("a bitmap is merged into one of another granularity", async () => {
  const [one, two] = [await newStore(), await newStore()];
  await using(one, async (image) => {
    await image.bitmaps.add("fine", { granularity: 512 });
    await image.write(100_000, new Uint8Array(1000));
    await image.bitmaps.add("coarse", { granularity: 65536, enabled: false });
    await image.bitmaps.merge("coarse", "fine");
    assertEquals(await dirtyOf(image, "coarse"), [[65536, 65536]]);
  });
  await using source = await open(one, true);
  await using(two, async (image) => {
    await image.bitmaps.add("x", { granularity: 4096 });
    await image.bitmaps.merge("x", "fine", source);
    await image.bitmaps.merge("x", "x");
    assertEquals(await dirtyOf(image, "x"), [[98304, 4096]]);
    await image.resize(2 * MIB);
    const error = await assertRejects(
      () => image.bitmaps.merge("x", "fine", source),
      BlockError,
    );
    assertEquals(
      error.message,
      `Bitmaps are of different sizes (destination size is ${2 * MIB}, ` +
        `source size is ${MIB}) and can't be merged`,
    );
  });
  await assertClean(two);
});

Deno.test("bits past the end do not come back when the disk grows again", async () => {
  const store = await newStore({ cluster_size: 512 });
  await using(store, async (image) => {
    await image.bitmaps.add("a", { granularity: 512 });
    await image.write(0, new Uint8Array(MIB));
  });
  await using(store, (image) => image.resize(5120));
  await using(store, (image) => image.resize(MIB));
  await using image = await open(store, true);
  assertEquals(await dirtyOf(image, "a"), [[0, 5120]]);
  await assertClean(store);
});

Deno.test("an image open for writing marks its bitmaps as in use", async () => {
  const store = await newStore();
  await using(store, async (image) => {
    await image.bitmaps.add("on");
    await image.bitmaps.add("off", { enabled: false });
    await image.write(0, new Uint8Array(10));
  });
  const stored = contentOf(store);
  const inUse = async () => {
    await using other = await open(storeOf(contentOf(store)), true);
    return (await other.bitmaps.list())
      .filter(({ flags }) => flags.includes("in-use"))
      .map(({ name }) => name);
  };
  await using(store, async (image) => {
    await image.read(0, 100);
    assertEquals(contentOf(store), stored);
  }, true);
  await using(store, async (image) => {
    assertEquals(await inUse(), ["on", "off"]);
    assertEquals((await image.bitmaps.list()).map(({ flags }) => flags), [
      ["auto"],
      [],
    ]);
    await image.read(0, 100);
    await image.write(5, new Uint8Array(10));
    await image.write(4096, new Uint8Array(0));
  });
  assertEquals(contentOf(store), stored, "all of that was recorded before");
  for (
    const change of [
      (image: Image) => image.write(4096, new Uint8Array(10)),
      (image: Image) => image.bitmaps.clear("off"),
      (image: Image) => image.bitmaps.disable("on"),
      (image: Image) => image.bitmaps.remove("off"),
    ]
  ) {
    await using(store, async (image) => {
      await change(image);
      assertEquals(await inUse(), ["on", "off"]);
    });
    assertEquals(await inUse(), []);
    await assertClean(store);
  }
});

Deno.test("unknown autoclear features are kept until something changes", async () => {
  const store = await newStore();
  await using(store, (image) => image.bitmaps.add("on"));
  const bytes = contentOf(store);
  bytes[88] |= 0x80; // An autoclear feature.
  const odd = storeOf(bytes);
  await using(odd, async (image) => {
    await image.read(0, 100);
    assertEquals(contentOf(odd), bytes);
    await image.write(0, new Uint8Array(10));
    assertEquals(contentOf(odd)[88], 0);
    await using other = await open(storeOf(contentOf(odd)), true);
    assertEquals((await other.bitmaps.list())[0].flags, ["in-use", "auto"]);
  });
  await assertClean(odd);
});

Deno.test("a bitmap in use can only be removed", async () => {
  const store = await newStore();
  await using(store, async (image) => {
    await image.bitmaps.add("a");
    await image.bitmaps.add("b");
  });
  let left: MemoryStore;
  {
    await using _image = await open(store);
    left = storeOf(contentOf(store));
  }
  await using(left, async ({ bitmaps }) => {
    await bitmaps.remove("b");
    await bitmaps.add("b");
  });
  await using image = await open(left);
  const { bitmaps } = image;
  assertEquals((await bitmaps.list())[0].flags, ["in-use", "auto"]);
  const uses = [
    () => bitmaps.clear("a"),
    () => bitmaps.enable("a"),
    () => bitmaps.merge("a", "b"),
    () => bitmaps.merge("b", "a"),
    () => dirtyOf(image, "a"),
    () => image.resize(2 * MIB),
  ];
  for (const use of uses) {
    const error = await assertRejects<BlockError>(use, BlockError);
    assertEquals(error.code, "EINVAL");
    assertEquals(
      error.message,
      "Bitmap 'a' is inconsistent and cannot be used",
    );
  }
  // Whatever else is done, it stays as it is.
  await image.write(0, new Uint8Array(10));
  await image.close();
  await using again = await open(left);
  assertEquals((await again.bitmaps.list())[0].flags, ["in-use", "auto"]);
  await again.bitmaps.remove("a");
  await again.close();
  await assertClean(left);
});

Deno.test("bitmaps that make no sense are refused", async () => {
  const store = await newStore();
  await using image = await open(store);
  const { bitmaps } = image;
  await bitmaps.add("a");
  const cases: [() => Promise<unknown>, string, RegExp][] = [
    [() => bitmaps.add("a"), "EINVAL", /^Bitmap already exists: a$/],
    [() => bitmaps.add(""), "EINVAL", /^Bitmap name cannot be empty$/],
    [() => bitmaps.add("x".repeat(1024)), "EINVAL", /Name length exceeds/],
    [() => bitmaps.add("ü".repeat(512)), "EINVAL", /Name length exceeds/],
    [() => bitmaps.remove("b"), "ENOENT", /^Dirty bitmap 'b' not found$/],
    [() => bitmaps.enable("b"), "ENOENT", /^Dirty bitmap 'b' not found$/],
    [() => dirtyOf(image, "b"), "ENOENT", /^Dirty bitmap 'b' not found$/],
    ...[256, 1000, 2 ** 32, 1].map((granularity) =>
      [
        () => bitmaps.add("b", { granularity }),
        "EINVAL",
        /^Granularity must be power of 2 and at least 512$/,
      ] as [() => Promise<unknown>, string, RegExp]
    ),
    // deno-lint-ignore no-explicit-any
    [() => bitmaps.add("b", { granularity: "x" as any }), "EINVAL", /Cannot/],
    // deno-lint-ignore no-explicit-any
    [() => bitmaps.merge("a", "a", {} as any), "EINVAL", /merged from/],
    // deno-lint-ignore no-explicit-any
    [() => bitmaps.add(7 as any), "EINVAL", /name of a bitmap/],
  ];
  for (const [act, code, message] of cases) {
    const error = await assertRejects<BlockError>(act, BlockError);
    assertEquals(error.code, code);
    assert(message.test(error.message), error.message);
  }
  assertEquals((await bitmaps.list()).length, 1);
});

Deno.test("images without bitmaps, or read-only ones, refuse changes of bitmaps", async () => {
  const file = { driver: "memory", store: new MemoryStore(MIB) };
  await using raw = await openImage({ driver: "raw", file });
  await assertRejects(
    () => raw.bitmaps.add("a"),
    BlockError,
    "Operation not supported",
  );
  const old = await newStore({ compat: "0.10" });
  await using(old, async (image) => {
    assertEquals(await image.bitmaps.list(), []);
    await assertRejects(
      () => image.bitmaps.add("a"),
      BlockError,
      "Cannot store dirty bitmaps in qcow2 v2 files",
    );
  });
  await using image = await open(await newStore(), true);
  const error = await assertRejects(() => image.bitmaps.add("a"), BlockError);
  assertEquals(error.code, "EACCES");
});

Deno.test("a huge disk takes no memory for what has not been written", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const size = 2 ** 41;
  await createImage("qcow2", file, { size, cluster_size: 2 * MIB });
  await using(store, async (image) => {
    await image.bitmaps.add("fine", { granularity: 512 });
    await image.bitmaps.add("coarse", { granularity: 2 ** 31 });
    await image.write(size / 2, new Uint8Array(1));
    // The whole disk, in pages that need no memory.
    await image.writeZeroes(0, 2 ** 30);
    assertEquals(await dirtyOf(image, "fine"), [[0, 2 ** 30], [
      size / 2,
      512,
    ]]);
    assertEquals(await dirtyOf(image, "coarse"), [[0, 2 ** 31], [
      size / 2,
      2 ** 31,
    ]]);
    // Double the size would take more than 512 MiB.
    await assertRejects(
      () => image.resize(2 * size + 512),
      BlockError,
      "bitmap 'fine' cannot have that size",
    );
  });
  assert(store.allocated < 20 * MIB);
  await assertClean(store);
});

Deno.test("bitmaps that cannot be stored are reported as lost", async () => {
  const store = await newStore();
  await using(store, async (image) => {
    await image.bitmaps.add("a");
    await image.bitmaps.add("off", { enabled: false });
  });
  const raw = await openNode({
    driver: "raw",
    file: { driver: "memory", store },
  });
  let isFull = false;
  const { node } = faultyNode(raw);
  const { writev } = node;
  const full = Object.assign(node, {
    writev(...args: Parameters<NonNullable<typeof writev>>) {
      const isNew = isFull && args[0] >= raw.size;
      return isNew
        ? Promise.reject(new BlockError("ENOSPC"))
        : writev!(...args);
    },
  });
  const image = await openImage({ driver: "qcow2", file: full, backing: null });
  await image.write(0, new Uint8Array(10));
  await image.flush();
  isFull = true;
  const error = await assertRejects(() => image.close(), BlockError);
  assertEquals(error.code, "ENOSPC");
  assert(
    error.message.startsWith("Lost persistent bitmaps during inactivation"),
  );
  await using left = await open(store, true);
  const list = await left.bitmaps.list();
  assertEquals(list.map(({ flags }) => flags), [["in-use", "auto"], []]);
  await assertClean(store);
});

/** An image of 64 KiB with one bitmap, and the offsets of its parts. */
async function imageWithBitmap() {
  const store = await newStore({ size: 65536 });
  await using(store, async (image) => {
    await image.bitmaps.add("b0", { granularity: 512 });
    await image.write(0, new Uint8Array(1000).fill(1));
  });
  const bytes = contentOf(store);
  const view = new DataView(bytes.buffer);
  let extension = 112;
  while (view.getUint32(extension) !== 0x23852875) {
    extension += 8 + view.getUint32(extension + 4);
  }
  const directory = Number(view.getBigUint64(extension + 24));
  const table = Number(view.getBigUint64(directory));
  return { bytes, extension, directory, table };
}

type Damage = (image: Awaited<ReturnType<typeof imageWithBitmap>>) => void;

const UNFIT = "Bitmap 'b0' doesn't satisfy the constraints";
const at =
  (offset: number, ...values: number[]): Damage => ({ bytes, directory }) =>
    bytes.set(values, directory + offset);

/** Damage to the directory or a table, and the message about it. */
const DAMAGED: { readonly [what: string]: readonly [Damage, string] } = {
  "too many bitmaps": [
    ({ bytes, extension }) => put32(bytes, extension + 8, 2),
    "Less bitmaps found than specified in header extension",
  ],
  "a long directory": [
    ({ bytes, extension }) => put64(bytes, extension + 16, 40),
    "Broken bitmap directory",
  ],
  "an empty directory": [
    ({ bytes, extension }) => put64(bytes, extension + 16, 0),
    "Requested bitmap directory size is zero",
  ],
  "another type": [at(16, 2), UNFIT],
  "a granularity of 256": [at(17, 8), UNFIT],
  "a granularity of 4 GiB": [at(17, 32), UNFIT],
  "a granularity of 2^63": [at(17, 63), UNFIT],
  "an unknown flag": [at(15, 8), UNFIT],
  "extra data that may be ignored": [at(15, 4), UNFIT],
  "a name of 1024 bytes": [at(18, 4, 0), "Broken bitmap directory"],
  "extra data": [
    ({ bytes, directory, extension }) => {
      bytes[directory + 23] = 8;
      put64(bytes, extension + 16, 40);
    },
    "Bitmap extra data is not supported",
  ],
  "no table": [at(0, 0, 0, 0, 0, 0, 0, 0, 0), UNFIT],
  "an unaligned table": [at(6, 2), UNFIT],
  "a table without entries": [at(8, 0, 0, 0, 0), UNFIT],
  "a table that is too large": [at(8, 8, 0, 0, 1), UNFIT],
  "a table of two entries": [
    at(11, 2),
    "Could not read bitmap 'b0' from image: Invalid argument",
  ],
  "reserved bits in the table": [
    ({ bytes, table }) => bytes[table] = 0x80,
    "Could not read bitmap_table table from image for bitmap 'b0': Invalid argument",
  ],
  "an unaligned cluster in the table": [
    ({ bytes, table }) => bytes[table + 6] |= 2,
    "Could not read bitmap_table table from image for bitmap 'b0': Invalid argument",
  ],
  "the same name twice": [
    ({ bytes, directory, extension }) => {
      bytes.copyWithin(directory + 32, directory, directory + 32);
      put64(bytes, extension + 16, 64);
      put32(bytes, extension + 8, 2);
    },
    "Bitmap already exists: b0",
  ],
};

for (const [what, [damage, message]] of Object.entries(DAMAGED)) {
  Deno.test(`an image with ${what} is not written to before it is repaired`, async () => {
    const image = await imageWithBitmap();
    damage(image);
    const store = storeOf(image.bytes);
    const error = await assertRejects(() => open(store), BlockError);
    assertEquals(
      error.message.replace(/^Could not open '[^']*': /, ""),
      message,
    );
    // Its data is not damaged.
    const byte = await using(store, (image) => image.read(999, 1), true);
    assertEquals(byte[0], 1);
    const file = { driver: "memory", store };
    await using broken = await openImage(
      { driver: "qcow2", file },
      { purpose: "check" },
    );
    const repair = { leaks: true, corruptions: true };
    await broken.check({ repair });
    await broken.close();
    await assertClean(store);
    await using(store, async (image) => {
      assertEquals(await image.bitmaps.list(), []);
      await image.bitmaps.add("b0");
    });
    await assertClean(store);
  });
}

Deno.test("a repair drops bitmaps whose table is damaged, and keeps others", async () => {
  const store = await newStore();
  await using(store, async (image) => {
    for (const name of ["a", "b", "c"]) await image.bitmaps.add(name);
    await image.write(50_000, new Uint8Array(10));
  });
  const bytes = contentOf(store);
  const view = new DataView(bytes.buffer);
  let extension = 112;
  while (view.getUint32(extension) !== 0x23852875) {
    extension += 8 + view.getUint32(extension + 4);
  }
  const directory = Number(view.getBigUint64(extension + 24));
  bytes[Number(view.getBigUint64(directory + 32)) + 7] |= 2;
  const damaged = storeOf(bytes);
  const file = { driver: "memory", store: damaged };
  const lines: string[] = [];
  await using image = await openImage({ driver: "qcow2", file }, {
    purpose: "check",
  });
  await assertRejects(
    () => image.check({ report: (line) => lines.push(line) }),
    BlockError,
  );
  assertEquals(lines, ["ERROR The table of bitmap 'b' is damaged"]);
  const { corruptionsFixed, leaksFixed } = await image.check({
    repair: { leaks: true, corruptions: true },
  });
  // Its table and its data.
  assertEquals([corruptionsFixed, leaksFixed], [1, 2]);
  await image.close();
  await assertClean(damaged);
  await using again = await open(damaged);
  const names = (await again.bitmaps.list()).map(({ name }) => name);
  assertEquals(names, ["a", "c"]);
  assertEquals(await dirtyOf(again, "c"), [[49152, 4096]]);
});

Deno.test("bitmaps stay correct, whatever an image was opened for", async () => {
  for (const purpose of ["io", "check", "info"] as const) {
    for (const isListed of [false, true]) {
      const store = await newStore();
      await using(store, (image) => image.bitmaps.add("b"));
      const before = contentOf(store);
      const file = { driver: "memory", store };
      const image = await openImage({ driver: "qcow2", file }, { purpose });
      if (isListed) await image.bitmaps.list();
      if (purpose === "info") {
        assertEquals(image.readOnly, true);
        const message = "was opened read-only";
        for (
          const change of [
            () => image.write(0, new Uint8Array(512)),
            () => image.writeZeroes(0, 512),
            () => image.discard(0, 65536),
          ]
        ) await assertRejects(change, BlockError, message);
        await image.close();
        assertEquals(contentOf(store), before);
        continue;
      }
      await Promise.all(
        [0, 1, 2].map((i) => image.write(i << 16, new Uint8Array([1]))),
      );
      // What would be in the file if the process were killed now.
      const killed = storeOf(contentOf(store).slice());
      await image.close();
      await assertClean(store);
      await using again = await open(store);
      const dirty = [0, 1, 2].map((i) => [i << 16, 4096]);
      assertEquals(await dirtyOf(again, "b"), dirty);
      const [{ flags }] = await using(
        killed,
        (image) => image.bitmaps.list(),
        true,
      );
      assertEquals(flags, ["in-use", "auto"]);
    }
  }
});

qemuTest("QEMU says the same about damaged bitmaps", async (t) => {
  await using dir = new TempDir();
  for (const [what, [damage, message]] of Object.entries(DAMAGED)) {
    await t.step(what, async () => {
      const image = await imageWithBitmap();
      damage(image);
      await Deno.writeFile(dir.file("X"), image.bytes);
      const command = ["qemu-img", "bitmap", "--clear", "X", "b0"];
      const { stderr } = await run(command, { cwd: dir.path });
      assertEquals(stderr, `qemu-img: Could not open 'X': ${message}\n`);
    });
  }
});
