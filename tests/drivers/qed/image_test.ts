import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  type CheckResult,
  createImage,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { seedsToRun } from "../../model.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../../qemu.ts";
import {
  exchange,
  newImage,
  stackOf,
  surviveCuts,
  surviveDamage,
} from "../format_tests.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";

const MIB = 1024 * 1024;
const SMALL = { cluster_size: 4096, table_size: 1 };

/** A field of the header that is damaged, and what is said of it. */
const DAMAGES: [at: number, value: number[], message: string][] = [
  [0, [1], "Image not in QED format"],
  [16, [0x10], "Unsupported QED features: 10"],
  [23, [1], "Unsupported QED features: 100000000000000"],
  [4, [0, 8, 0, 0], "QED cluster size is invalid"],
  [4, [0, 0, 3, 0], "QED cluster size is invalid"],
  [8, [3], "QED table size is invalid"],
  [8, [32], "QED table size is invalid"],
  [48, [1], "QED image size is invalid"],
  [55, [1], "QED image size is invalid"],
  [40, [1], "QED table offset is invalid"],
  [40, [0, 0, 0], "QED table offset is invalid"],
  [40, [0, 0, 2], "QED table offset is invalid"],
  [12, [255, 255, 255, 255], "QED table offset is invalid"],
  [16, [1, 0, 0, 0], "QED backing filename offset is invalid"],
];

Deno.test("a header that makes no sense is refused in QEMU's words", async () => {
  for (const [at, value, message] of DAMAGES) {
    const bytes = await newImage("qed", { size: 8 * MIB });
    new DataView(bytes.buffer).setUint32(56, 2 ** 31, true);
    bytes.set(value, at);
    const opening = () => openImage(stackOf("qed", bytes));
    await assertRejects(opening, BlockError, message);
  }
});

Deno.test("options of new images that make no sense are refused", async () => {
  for (
    const [options, message] of [
      [
        { size: MIB, cluster_size: 2048 },
        "QED cluster size must be within range [4096, 67108864] and power of 2",
      ],
      [
        { size: MIB, table_size: 3 },
        "QED table size must be within range [1, 16] and power of 2",
      ],
      [
        { size: 2 ** 31, ...SMALL },
        "QED image size must be a non-zero multiple of cluster size and less " +
        "than 1073741824 bytes",
      ],
      // QEMU could not open it: tables map 2^64 bytes, or 0 in its arithmetic.
      [
        { size: MIB, cluster_size: 4 * MIB, table_size: 4 },
        "QED image size must be a non-zero multiple of cluster size and less " +
        "than 0 bytes",
      ],
      [{}, "Image creation needs a size parameter"],
      [
        { size: MIB, backing_file: "x".repeat(1024) },
        "Backing file name too long",
      ],
      [
        { size: MIB, backing_file: "x", backing_fmt: "garbage" },
        "Parameter 'backing-fmt' does not accept value 'garbage'",
      ],
      [
        { size: MIB, preallocation: "metadata" },
        "Unsupported preallocation mode: metadata",
      ],
    ] as const
  ) {
    await assertRejects(() => newImage("qed", options), BlockError, message);
  }
});

/** An image in memory, with what describes it. */
async function freshImage(options = {}) {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qed", file, { size: 8 * MIB, ...SMALL, ...options });
  return { store, stack: { driver: "qed", file } };
}

function features(store: MemoryStore): number {
  return contentOf(store)[16];
}

Deno.test("whoever is about to add clusters notes that, until it is closed", async () => {
  const { store, stack } = await freshImage();
  await using image = await openImage(stack);
  await image.read(0, 512);
  assertEquals(features(store), 0);
  await image.write(0, new Uint8Array(512).fill(1));
  assertEquals(features(store), 2);
  assertEquals((await image.info()).dirty, true);
  await image.flush();
  assertEquals(features(store), 2);
  const killed = contentOf(store);
  await image.close();
  assertEquals(features(store), 0);

  // A reader leaves the note; who writes checks first.
  const left = stackOf("qed", killed);
  {
    await using image = await openImage(left, { readOnly: true });
    assertEquals((await image.info()).dirty, true);
    assertEquals(await image.read(0, 1), Uint8Array.of(1));
  }
  await using image2 = await openImage(left);
  assertEquals((await image2.info()).dirty, false);
});

Deno.test("with a backing file nothing is noted", async () => {
  const { store, stack } = await freshImage();
  const file = { driver: "memory", store: new MemoryStore(MIB) };
  const backing = { driver: "raw", file };
  await using image = await openImage({ ...stack, backing });
  await image.write(0, new Uint8Array(512).fill(1));
  assertEquals(features(store), 0);
});

/** What a check finds that is not 0. */
function findings(result: CheckResult) {
  const { corruptions, leaks, corruptionsFixed, checkErrors } = result;
  return [corruptions, leaks, corruptionsFixed, checkErrors];
}

Deno.test("check() finds and repairs entries that lead nowhere", async () => {
  const { store, stack } = await freshImage();
  {
    await using image = await openImage(stack);
    for (const at of [0, 3, 6]) {
      await image.write(at * MIB, new Uint8Array(8192).fill(1 + at));
    }
  }
  const bytes = contentOf(store);
  const view = new DataView(bytes.buffer);
  const l2 = (entry: number) => view.getUint32(4096 + 8 * entry, true);
  view.setUint32(l2(0), 12345, true); // at no cluster's start
  view.setUint32(l2(0) + 8, 2 ** 30, true); // past the end
  view.setUint32(l2(1) + 4 * 512, view.getUint32(l2(3), true), true);
  view.setUint32(4096 + 8 * 7, 4096 * 1000, true); // of the L1 table
  const image = {
    driver: "qed",
    file: { driver: "memory", store: storeOf(bytes) },
  };
  const checking = { purpose: "check" } as const;
  {
    await using damaged = await openImage(image, {
      ...checking,
      readOnly: true,
    });
    const { code } = await assertRejects(
      () => damaged.read(0, 512),
      BlockError,
    );
    assertEquals(code, "EINVAL");
    assertEquals(findings(await damaged.check()), [4, 3, 0, 0]);
  }
  await using damaged = await openImage(image, checking);
  const repair = { leaks: true, corruptions: true };
  // Who owns what is used twice, nobody knows.
  assertEquals(findings(await damaged.check({ repair })), [1, 3, 3, 0]);
  assertEquals(findings(await damaged.check()), [1, 3, 0, 0]);
  assertEquals(await damaged.read(0, 8192), new Uint8Array(8192));
  assertEquals(await damaged.read(6 * MIB, 1), Uint8Array.of(7));
});

Deno.test("zeroes of whole clusters take no space, and hide the backing file", async () => {
  const { store, stack } = await freshImage();
  const base = new MemoryStore(8 * MIB);
  base.write(0, new Uint8Array(8 * MIB).fill(9));
  const file = { driver: "memory", store: base };
  const backing = { driver: "raw", file };
  await using image = await openImage({ ...stack, backing });
  await image.writeZeroes(1000, 4 * MIB);
  assert(store.size < 64 * 1024, `${store.size} bytes`);
  assertEquals(
    await image.read(996, 8),
    Uint8Array.of(9, 9, 9, 9, 0, 0, 0, 0),
  );
  const extent = await image.node.status(MIB, MIB);
  assertEquals([extent.zero, extent.allocated, extent.length], [
    true,
    true,
    MIB,
  ]);
  await image.write(2 * MIB, new Uint8Array(10).fill(3));
  assertEquals((await image.read(2 * MIB + 8, 4)).join(), "3,3,0,0");
});

Deno.test("a disk grows, and does not shrink", async () => {
  const { stack } = await freshImage({ size: 3 * MIB + 512 });
  {
    await using image = await openImage(stack);
    await image.write(3 * MIB, new Uint8Array(512).fill(1));
    await image.resize(6 * MIB);
    for (
      const [size, message] of [
        [4 * MIB, "Shrinking images is currently not supported"],
        [2 ** 31, "Invalid image size specified"],
      ] as const
    ) {
      await assertRejects(() => image.resize(size), BlockError, message);
    }
  }
  await using image = await openImage(stack);
  assertEquals(image.size, 6 * MIB);
  assertEquals(await image.read(3 * MIB + 511, 2), Uint8Array.of(1, 0));
  const file = { driver: "memory", store: new MemoryStore(8 * MIB) };
  await using over = await openImage({
    ...(await freshImage({ size: MIB })).stack,
    backing: { driver: "raw", file },
  });
  // The part of the longer backing file would show up.
  await assertRejects(() => over.resize(2 * MIB), BlockError);
});

Deno.test("another backing file is recorded", async () => {
  const { store, stack } = await freshImage({ backing_file: "one" });
  await using image = await openImage({ ...stack, backing: null });
  const changes = [
    ["a longer name", "raw"],
    ["two", undefined],
    ["x".repeat(1023), "qcow2"],
    [undefined, undefined],
    ["three", "raw"],
  ] as const;
  for (const [name, format] of changes) {
    await image.node.image!.changeBacking!(name, format);
    await using again = await openImage(
      stackOf("qed", contentOf(store)),
      { purpose: "info", readOnly: true },
    );
    const { backingFile, backingFormat } = await again.node.info!();
    assertEquals(backingFile, name);
    assertEquals(backingFormat, format === "raw" ? "raw" : undefined);
  }
  const bytes = contentOf(store);
  bytes[24] = 1; // What this feature keeps behind the header is unknown.
  await using other = await openImage({
    ...stackOf("qed", bytes),
    backing: null,
  });
  await assertRejects(() => other.node.image!.changeBacking!("x"), BlockError);
});

Deno.test("unknown features that a write would make wrong are cleared", async () => {
  const { store } = await freshImage();
  const bytes = contentOf(store);
  bytes[32] = 5;
  const file = { driver: "memory", store: storeOf(bytes) };
  const stack = { driver: "qed", file };
  await (await openImage(stack, { readOnly: true })).close();
  assertEquals(contentOf(file.store)[32], 5);
  await (await openImage(stack)).close();
  assertEquals(contentOf(file.store)[32], 0);
});

Deno.test("an image survives power cuts with all that was flushed", async () => {
  for (const seed of seedsToRun(2)) {
    for (const isOverlay of [false, true]) {
      await surviveCuts({
        driver: "qed",
        options: { size: 3 * MIB, ...SMALL },
        isOverlay,
        async change(image, disk, random) {
          const length = 4096 * (1 + random.below(20));
          const offset = 4096 * random.below((disk.length - length) / 4096);
          if (random.oneIn(4)) {
            disk.fill(0, offset, offset + length);
            return await image.writeZeroes(offset, length);
          }
          const bytes = random.bytes(length - random.below(500));
          disk.set(bytes, offset + 100);
          await image.write(offset + 100, bytes);
        },
        async examine(file, backing) {
          const link = backing && { backing };
          await using image = await openImage(
            { ...stackOf("qed", file), ...link },
            { purpose: "check", readOnly: true },
          );
          const { corruptions, checkErrors } = await image.check();
          assertEquals([corruptions, checkErrors], [0, 0]);
        },
      }, seed);
    }
  }
});

Deno.test("whatever a QED image holds, nothing worse than an error happens", async () => {
  const images: Uint8Array[] = [];
  for (const backing_file of [undefined, "/etc/hostname"]) {
    const { store, stack } = await freshImage({ backing_file });
    const link = backing_file && { backing: null };
    await using image = await openImage({ ...stack, ...link });
    await image.write(3 * MIB - 5000, new Uint8Array(MIB).fill(1));
    await image.writeZeroes(0, 16384);
    await image.close();
    images.push(contentOf(store));
  }
  await surviveDamage({
    driver: "qed",
    images,
    fields: [
      [4, 4],
      [8, 4],
      [12, 4],
      [16, 8],
      [24, 8],
      [32, 8],
      [40, 8],
      [
        48,
        8,
      ],
      [56, 4],
      [60, 4],
    ],
    tables: [[4096, 64], [8192, 4096], [12288, 4096]],
    isLittleEndian: true,
  }, seedsToRun(250));
});

qemuTest("images go both ways between QEMU and here", async () => {
  await using folder = new TempDir();
  const ways = [[], ["-o", "cluster_size=4k,table_size=16"]];
  await exchange("qed", ways, folder, BDRV);
});

qemuTest(
  "QEMU finds what we find in damaged images, and repairs the same",
  async () => {
    await using folder = new TempDir();
    const cwd = { cwd: folder.path };
    const options = "cluster_size=4k,table_size=2";
    await runOk(
      ["qemu-img", "create", "-f", "qed", "-o", options, "a", "10M"],
      cwd,
    );
    await runOk(
      ["qemu-io", "-c", "write 0 64k", "-c", "write 8M 64k", "a"],
      cwd,
    );
    const bytes = await Deno.readFile(folder.file("a"));
    const view = new DataView(bytes.buffer);
    const l2 = view.getUint32(4096, true);
    view.setUint32(l2 + 8, view.getUint32(l2, true), true);
    view.setUint32(l2 + 16, 12345, true);
    view.setUint32(4096 + 80, 2 ** 30, true);
    bytes[16] |= 2;
    for (const name of ["theirs", "ours"]) {
      await Deno.writeFile(folder.file(name), bytes);
    }
    for (
      const command of [
        ["check"],
        ["check", "--output=json"],
        ["check", "-r", "all"],
        ["check"],
        ["info"],
      ]
    ) {
      const [theirs, ours] = [
        await run(["qemu-img", ...command, "theirs"], cwd),
        await run([...BDRV, "qemu-img", ...command, "ours"], cwd),
      ];
      assertEquals(
        [ours.code, ours.stdout, ours.stderr],
        [
          theirs.code,
          theirs.stdout.replaceAll("theirs", "ours"),
          theirs.stderr,
        ],
      );
    }
  },
  ["qemu-img", "qemu-io"],
);
