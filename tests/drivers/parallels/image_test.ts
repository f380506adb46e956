import { assert, assertEquals, assertRejects } from "@std/assert";
import { createHash } from "node:crypto";
import {
  BlockError,
  type CheckResult,
  createImage,
  MemoryStore,
  openImage,
  type StackObject,
} from "../../../mod.ts";
import { isEqual } from "../../../core/runtime.ts";
import { seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
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
const KIB64 = 65536;
const SMALL = { size: 8 * MIB, cluster_size: KIB64 };
const OPEN = 0x746f6e59;
/** Bytes of the disk for each bit of a bitmap. */
const GRANULARITY = 4096;

/** A damaged field of the header, and the message about it. */
const DAMAGES: [at: number, value: number, message: string][] = [
  [0, 0, "Image not in Parallels format"],
  [16, 3, "Image not in Parallels format"],
  [28, 0, "Invalid image: Zero sectors per track"],
  [28, 5_000_000, "Invalid image: Too big cluster"],
  [32, 0x20000000, "Catalog too large"],
  [
    32,
    7,
    "Invalid image: Catalog size too small for advertised disk size",
  ],
];

function put(bytes: Uint8Array, at: number, value: number): void {
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(at, value, true);
}

function u32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}

Deno.test("a header that makes no sense is refused in QEMU's words", async () => {
  for (const [at, value, message] of DAMAGES) {
    const bytes = await newImage("parallels", SMALL);
    put(bytes, at, value);
    const opening = () => openImage(stackOf("parallels", bytes));
    await assertRejects(opening, BlockError, message);
  }
});

Deno.test("options of new images that make no sense are refused", async () => {
  for (
    const [options, message] of [
      [
        { size: MIB, cluster_size: 2 ** 32 },
        "Cluster size is too large",
      ],
      [
        { size: MIB, cluster_size: 0 },
        "Image size is too large for this cluster size",
      ],
      [
        { size: 2 ** 50, cluster_size: 512 },
        "Image size is too large for this cluster size",
      ],
      [{}, "Image creation needs a size parameter"],
      [
        { size: MIB, preallocation: "metadata" },
        "Unsupported preallocation mode: metadata",
      ],
    ] as const
  ) {
    await assertRejects(
      () => newImage("parallels", options),
      BlockError,
      message,
    );
  }
});

/** An image in memory, and its description. */
async function freshImage(options = {}) {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("parallels", file, { ...SMALL, ...options });
  return { store, stack: { driver: "parallels", file } };
}

Deno.test("an image is marked while it is open for writing", async () => {
  const { store, stack } = await freshImage();
  const mark = () => u32(contentOf(store), 44);
  {
    await using _ = await openImage(stack, { readOnly: true });
    assertEquals(mark(), 0);
  }
  let killed: StackObject;
  {
    await using image = await openImage(stack);
    assertEquals(mark(), OPEN);
    await image.write(0, new Uint8Array(10).fill(1));
    await image.flush();
    killed = stackOf("parallels", contentOf(store));
  }
  assertEquals(mark(), 0);
  await assertRejects(
    () => openImage(killed),
    BlockError,
    "parallels: Image was not closed correctly; cannot be opened read/write",
  );
  {
    await using image = await openImage(killed, { readOnly: true });
    assertEquals((await image.read(0, 1))[0], 1);
  }
  const repair = (leaks: boolean, corruptions: boolean) =>
    openImage(killed, { purpose: "check" }).then(async (image) => {
      await using _ = image;
      return findings(await image.check({ repair: { leaks, corruptions } }));
    });
  assertEquals(await repair(true, false), [1, 0, 0, 0]);
  await assertRejects(() => openImage(killed), BlockError);
  assertEquals(await repair(true, true), [1, 0, 1, 0]);
  await (await openImage(killed)).close();
});

/** The nonzero results of a check. */
function findings(result: CheckResult) {
  const { corruptions, leaks, corruptionsFixed, leaksFixed } = result;
  return [corruptions, leaks, corruptionsFixed, leaksFixed];
}

Deno.test("check() finds and repairs what is wrong with clusters", async () => {
  const { store, stack } = await freshImage();
  {
    await using image = await openImage(stack);
    for (const at of [0, 1, 2, 3]) {
      await image.write(at * KIB64, new Uint8Array(KIB64).fill(1 + at));
    }
  }
  const bytes = new Uint8Array(store.size + 100_000);
  bytes.set(contentOf(store));
  put(bytes, 64 + 4 * 2, u32(bytes, 64)); // the same as the first
  put(bytes, 64 + 4 * 9, 100_000); // past the end
  const image = stackOf("parallels", bytes);
  const check = async (
    purpose: "check" | "io",
    repair?: { leaks: boolean; corruptions: boolean },
  ) => {
    const lines: string[] = [];
    const report = (line: string) => lines.push(line);
    await using opened = await openImage(image, {
      purpose,
      readOnly: !repair,
    });
    return { ...await opened.check({ repair, report }), lines };
  };
  const before = await check("check");
  assertEquals(before.corruptions, 2);
  assertEquals(before.lines, [
    "ERROR duplicate offset in BAT entry 2",
    "ERROR cluster 9 is outside image",
  ]);
  const repaired = await check("check", { leaks: true, corruptions: true });
  assertEquals(findings(repaired).slice(0, 3), [2, 0, 2]);
  assertEquals(findings(await check("check")), [0, 0, 0, 0]);
  await using opened = await openImage(image);
  assertEquals(
    (await opened.read(0, 10 * KIB64)).filter((_, at) => at % KIB64 === 5)
      .join(),
    "1,2,1,4,0,0,0,0,0,0",
  );
  await opened.write(0, new Uint8Array(KIB64).fill(9));
  assertEquals((await opened.read(2 * KIB64, 1))[0], 1);
});

Deno.test("space behind the last cluster is a leak, and not taken for zeroes", async () => {
  const { store, stack } = await freshImage();
  const end = store.size;
  store.write(end, new Uint8Array(3 * KIB64).fill(0xee));
  {
    await using image = await openImage(stack, { readOnly: true });
    const lines: string[] = [];
    const result = await image.check({ report: (line) => lines.push(line) });
    assertEquals([result.leaks, result.imageEndOffset], [3, end]);
    assertEquals(lines, [
      "ERROR space leaked at the end of the image 196608",
    ]);
  }
  await using image = await openImage(stack);
  await image.write(100, new Uint8Array(10).fill(1));
  const expected = new Uint8Array(KIB64);
  expected.fill(1, 100, 110);
  assertEquals(await image.read(0, KIB64), expected);
  await image.close();
  assertEquals(store.size, end + KIB64);
});

/** The same image in the first version of the format. */
function asFirstVersion(bytes: Uint8Array): Uint8Array {
  const old = bytes.slice();
  old.set(new TextEncoder().encode("WithoutFreeSpace"));
  for (let at = 64; at < 64 + 4 * u32(bytes, 32); at += 4) {
    put(old, at, u32(bytes, at) * u32(bytes, 28));
  }
  put(old, 40, 0xdead); // Only the lower half of the size counts.
  return old;
}

Deno.test("images of the first version count in sectors", async () => {
  const { store, stack } = await freshImage();
  {
    await using image = await openImage(stack);
    await image.write(5 * KIB64, new Uint8Array(KIB64).fill(7));
  }
  const old = stackOf("parallels", asFirstVersion(contentOf(store)));
  await using image = await openImage(old);
  assertEquals(image.size, 8 * MIB);
  assertEquals((await image.read(5 * KIB64, 1))[0], 7);
  await image.write(MIB, new Uint8Array(KIB64).fill(8));
  await image.close();
  await using again = await openImage(old, { readOnly: true });
  assertEquals((await again.read(MIB, 1))[0], 8);
  assertEquals(findings(await again.check()), [0, 0, 0, 0]);
});

Deno.test("flushed data survives power cuts", async () => {
  for (const seed of seedsToRun(4)) {
    await surviveCuts({
      driver: "parallels",
      options: { size: 3 * MIB, cluster_size: KIB64 },
      async examine(file) {
        await using image = await openImage(stackOf("parallels", file), {
          purpose: "check",
          readOnly: true,
        });
        const lines: string[] = [];
        await image.check({ report: (line) => lines.push(line) });
        const wrong = lines.filter((line) => /cluster|duplicate/.test(line));
        assertEquals(wrong, []);
        // Make it usable again, as `check -r all` does.
        put(file, 44, 0);
      },
    }, seed);
  }
});

/** An image with a bitmap, one of whose clusters is allocated. */
async function imageWithBitmap(change = (_: DataView) => {}) {
  const size = 48 * MIB;
  const { store } = await freshImage({ size, cluster_size: 512 });
  const bytes = new Uint8Array(store.size + 2 * 512);
  bytes.set(contentOf(store));
  const at = store.size;
  const bits = at + 512;
  put(bytes, 56, at / 512);
  const view = new DataView(bytes.buffer, at, 512);
  view.setBigUint64(0, 0xab234cef23dcea87n, true);
  view.setBigUint64(24, 0x20385fae252cb34an, true);
  view.setUint32(40, 32 + 8 * 3, true);
  view.setBigUint64(48, BigInt(size / 512), true);
  for (let i = 0; i < 16; i++) view.setUint8(56 + i, i * 17);
  view.setUint32(72, 8, true); // sectors per bit
  view.setUint32(76, 3, true); // clusters in the bitmap
  view.setBigUint64(80 + 8, 1n, true);
  view.setBigUint64(80 + 16, BigInt(bits / 512), true);
  bytes[bits] = 0b11000001;
  bytes[bits + 1] = 1;
  bytes[bits + 511] = 0x80;
  change(view);
  const data = new Uint8Array(bytes.buffer, at + 24, 512 - 24);
  bytes.set(createHash("md5").update(data).digest(), at + 8);
  return bytes;
}

Deno.test("bitmaps are read, and dropped by a write", async () => {
  const bytes = await imageWithBitmap();
  const stack = stackOf("parallels", bytes);
  const covered = 512 * 8 * GRANULARITY; // bytes of the disk per bitmap cluster
  const name = "00112233-4455-6677-8899-aabbccddeeff";
  {
    await using image = await openImage(stack, { readOnly: true });
    const all = await image.bitmaps.list();
    assertEquals(all, [{ name, granularity: GRANULARITY, flags: [] }]);
    const extents = (offset?: number, length?: number) =>
      Array.fromAsync(image.bitmaps.dirty(name, offset, length));
    assertEquals(await extents(), [
      { offset: covered, length: covered + GRANULARITY },
      { offset: 2 * covered + 6 * GRANULARITY, length: 3 * GRANULARITY },
      { offset: 3 * covered - GRANULARITY, length: GRANULARITY },
    ]);
    assertEquals(
      await extents(2 * covered + 7 * GRANULARITY + 5, GRANULARITY),
      [
        { offset: 2 * covered + 7 * GRANULARITY + 5, length: GRANULARITY },
      ],
    );
    await assertRejects(
      () => Array.fromAsync(image.bitmaps.dirty("other")),
      BlockError,
    );
  }
  const warnings: string[] = [];
  const warn = (message: string) => warnings.push(message);
  {
    await using image = await openImage(stack, { warn });
    assertEquals(warnings, ["Format Extension ignored in RW mode"]);
    await image.close();
  }
  {
    await using image = await openImage(stack, { readOnly: true });
    assertEquals((await image.bitmaps.list()).length, 1);
  }
  {
    await using image = await openImage(stack, { warn });
    await image.write(0, new Uint8Array(1));
  }
  await using image = await openImage(stack, { readOnly: true });
  await assertRejects(() => image.bitmaps.list(), BlockError);
});

Deno.test("the open mark, and the removal of bitmaps, are durable before a write", async () => {
  const log = new PowerLog(await imageWithBitmap());
  await using image = await openImage({ driver: "parallels", file: log }, {
    warn: () => {},
  });
  const [inUse, extension] = [44, 56];
  assertEquals(u32(log.durable, inUse), OPEN);
  assert(u32(log.durable, extension) !== 0);
  log.writev = (offset, iov) => {
    if (offset > 0) assertEquals(u32(log.durable, extension), 0);
    return PowerLog.prototype.writev.call(log, offset, iov);
  };
  await image.write(0, new Uint8Array(512).fill(1));
  assertEquals(u32(log.durable, extension), 0);
});

Deno.test("check() sees what is not written yet, and closing is durable", async () => {
  const log = new PowerLog(await newImage("parallels", SMALL));
  {
    await using image = await openImage({ driver: "parallels", file: log });
    await image.write(0, new Uint8Array(512).fill(1));
    const { leaks, allocatedClusters } = await image.check();
    assertEquals([leaks, allocatedClusters], [0, 1]);
  }
  assert(u32(log.durable, 44) !== OPEN);
});

Deno.test("an image is marked as closed only once all that was written can be found", async () => {
  const start = await newImage("parallels", SMALL);
  const log = new PowerLog(start);
  {
    await using image = await openImage({ driver: "parallels", file: log });
    await image.write(0, new Uint8Array(512).fill(1));
  }
  for (const { what, file } of log.reordered()) {
    if (u32(file, 44) === OPEN || isEqual(file, start)) continue;
    await using left = await openImage(stackOf("parallels", file));
    assertEquals([what, ...await left.read(0, 1)], [what, 1]);
  }
});

Deno.test("after any power cut, the table points only to clusters in the file", async () => {
  const log = new PowerLog(await newImage("parallels", SMALL));
  {
    await using image = await openImage({ driver: "parallels", file: log });
    for (const start of [3, 0]) {
      for (let i = start; i < start + 3; i++) {
        await image.write(i * KIB64, new Uint8Array(KIB64).fill(1 + i));
      }
      await image.flush();
    }
  }
  for (const { what, file } of log.reordered()) assertInFile(file, what);
  assertInFile(log.durable, "the end");
});

Deno.test("after a power cut during a repair, no cluster has two users", async () => {
  const bytes = await newImage("parallels", SMALL);
  const table = 64;
  const sharing = [0, 1, 2, 120, 121];
  const store = storeOf(bytes);
  const file = { driver: "memory", store };
  const image = await openImage({ driver: "parallels", file });
  await image.write(0, new Uint8Array(KIB64).fill(1));
  await image.close();
  const shared = contentOf(store);
  for (const at of sharing) {
    put(shared, table + 4 * at, u32(shared, table));
  }
  const log = new PowerLog(shared);
  await using damaged = await openImage({ driver: "parallels", file: log });
  await damaged.check({ repair: { leaks: true, corruptions: true } });
  for (const { what, file } of log.reordered()) assertInFile(file, what);
  // A repair that has reported success is durable.
  const places = sharing.map((at) => u32(log.durable, table + 4 * at));
  assertEquals(new Set(places).size, places.length);
});

/** Assert that all entries of the table point to whole clusters of the file. */
function assertInFile(file: Uint8Array, what: string): void {
  const [unit, entries] = [u32(file, 28) * 512, u32(file, 32)];
  for (let i = 0; i < entries; i++) {
    const end = (u32(file, 64 + 4 * i) + u32(file, 28)) * 512;
    if (end === unit) continue;
    assert(end <= file.length, `${what}: entry ${i}, ${end} ${file.length}`);
  }
}

Deno.test("an extension that makes no sense is refused in QEMU's words", async () => {
  const cases: [change: (view: DataView) => void, message: string][] = [
    [
      (view) => view.setUint8(0, 1),
      "Wrong parallels Format Extension magic: 0xab234cef23dcea01, " +
      "expected: 0xab234cef23dcea87",
    ],
    [
      (view) => view.setUint8(32, 1),
      "Flags for extension feature are unsupported",
    ],
    [
      (view) => view.setUint32(40, 5000, true),
      "Feature data_size exceedes Format Extension cluster",
    ],
    [(view) => view.setUint32(40, 456, true), "Can not read feature header"],
    [(view) => view.setUint8(24, 1), "Unknown feature: 0x20385fae252cb301"],
    [(view) => view.setUint32(40, 8, true), "Too small Bitmap Feature area"],
    [
      (view) => view.setUint8(48, 1),
      "Bitmap size (in sectors) 98305 differs",
    ],
    [(view) => view.setUint8(72, 3), "Bitmap granularity 1536 is invalid"],
    [(view) => view.setUint8(76, 2), "Bitmap table size 2 does not"],
    [(view) => view.setUint8(76, 200), "l1 table exceeds extension data_size"],
  ];
  for (const [change, message] of cases) {
    const bytes = await imageWithBitmap(change);
    await assertRejects(
      () => openImage(stackOf("parallels", bytes), { readOnly: true }),
      BlockError,
      message,
    );
  }
  const bytes = await imageWithBitmap();
  bytes[bytes.length - 1024 + 100] ^= 1;
  await assertRejects(
    () => openImage(stackOf("parallels", bytes), { readOnly: true }),
    BlockError,
    "Wrong checksum in Format Extension header",
  );
});

Deno.test("a damaged Parallels image causes BlockErrors at worst", async () => {
  const { store, stack } = await freshImage();
  {
    await using image = await openImage(stack);
    await image.write(3 * MIB - 5000, new Uint8Array(MIB).fill(1));
  }
  const bytes = contentOf(store);
  await surviveDamage({
    driver: "parallels",
    images: [bytes, asFirstVersion(bytes), await imageWithBitmap()],
    fields: [[0, 4], [16, 4], [28, 4], [32, 4], [36, 8], [44, 4], [48, 4], [
      56,
      8,
    ]],
    tables: [[64, 512]],
    isLittleEndian: true,
  }, seedsToRun(250));
});

qemuTest("QEMU reads our images, and we read QEMU's", async () => {
  await using folder = new TempDir();
  const ways = [[], ["-o", "cluster_size=31k"]];
  await exchange("parallels", ways, folder, BDRV);
});

qemuTest(
  "QEMU finds the same damage, and repairs it the same way",
  async () => {
    await using folder = new TempDir();
    const cwd = { cwd: folder.path };
    await runOk(["qemu-img", "create", "-f", "parallels", "a", "10M"], cwd);
    await runOk(
      ["qemu-io", "-c", "write 0 64k", "-c", "write 8M 64k", "a"],
      cwd,
    );
    const bytes = new Uint8Array(5 * MIB);
    bytes.set(await Deno.readFile(folder.file("a")));
    put(bytes, 64 + 4 * 3, 9999);
    put(bytes, 44, OPEN);
    for (const name of ["theirs", "ours"]) {
      await Deno.writeFile(folder.file(name), bytes);
    }
    for (
      const command of [
        ["check"],
        ["check", "--output=json"],
        ["info"],
        ["check", "-r", "all"],
        // Any other repair would differ: closing the image, QEMU makes the file
        // as long as the wrong entry demanded.
      ]
    ) {
      const [theirs, ours] = [
        await run(["qemu-img", ...command, "theirs"], cwd),
        await run([...BDRV, "qemu-img", ...command, "ours"], cwd),
      ];
      assertEquals(
        [ours.code, ours.stderr, ours.stdout],
        [
          theirs.code,
          theirs.stderr,
          theirs.stdout.replaceAll("theirs", "ours"),
        ],
      );
    }
  },
  ["qemu-img", "qemu-io"],
);
