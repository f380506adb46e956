import { assert, assertEquals, assertRejects } from "@std/assert";
import { openProtocol } from "../../../core/open.ts";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  type Image,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { faultyNode } from "../../fault_disk.ts";
import { Random } from "../../model.ts";
import { TempDir } from "../../qemu.ts";
import { contentOf } from "../qcow2/bytes.ts";
import {
  cowdExtent,
  descriptor,
  GRAIN,
  newImage,
  put,
  putLong,
  SECTOR,
  seSparseExtent,
  stackOf,
} from "./make.ts";

const MIB = 1024 * 1024;

/** The offsets of a header's fields. */
const AT = {
  version: 4,
  flags: 8,
  capacity: 12,
  grain: 20,
  entries: 44,
  redundant: 48,
  directory: 56,
  overhead: 64,
};

/** A damaged 64-bit field, and the message about it. */
const DAMAGES: [at: number, value: bigint, message: string][] = [
  [AT.version, 0x300000004n, "Unsupported VMDK version 4"],
  [AT.version, 0x300000003n, "VMDK version 3 must be read only"],
  [AT.entries, 513n, "L2 table size too big"],
  [AT.entries, 0n, "L1 entry size is invalid"],
  [AT.grain, 0n, "L1 entry size is invalid"],
  [AT.grain, 0x200001n, "Invalid granularity, image may be corrupt"],
  [AT.overhead, 129n, "File truncated, expecting at least 66048 bytes"],
  [AT.capacity, 1n << 45n, "L1 size too big"],
  [AT.capacity, (1n << 64n) - 1n, "L1 size too big"],
  [AT.directory, (1n << 64n) - 1n, "Invalid footer"],
  [0, 0n, "invalid VMDK image descriptor"],
];

Deno.test("a header that makes no sense is refused in QEMU's words", async () => {
  for (const [at, value, message] of DAMAGES) {
    const bytes = await newImage();
    putLong(bytes, at, value);
    const opening = () => openImage(stackOf(bytes));
    await assertRejects(opening, BlockError, message);
  }
});

Deno.test("a descriptor that makes no sense is refused in QEMU's words", async () => {
  const flat = 'RW 8 FLAT "x" 0';
  const cases: [lines: string[], type: string, message: string][] = [
    [[flat], "custom", "Unsupported image type 'custom'"],
    [['RW 8 FLAT "x"'], "vmfs", 'Invalid extent line: RW 8 FLAT "x"'],
    [['RW 8 FLAT "x" -1'], "vmfs", 'Invalid extent line: RW 8 FLAT "x" -1'],
    [['RW 8 VMFS "x" 1'], "vmfs", 'Invalid extent line: RW 8 VMFS "x" 1'],
    [['RW 0 FLAT "x" 0'], "vmfs", 'Invalid extent line: RW 0 FLAT "x" 0'],
    [["RW 8 FLAT"], "vmfs", "Invalid extent line: RW 8 FLAT"],
    // QEMU skips these, which shifts everything that follows.
    [['RW 8 VMFSRDM "x"'], "vmfs", "Unsupported extent type 'VMFSRDM'"],
    [['NOACCESS 8 FLAT "x" 0'], "vmfs", "Unsupported extent access"],
    [['rw 8 flat "x"'], "vmfs", 'Invalid extent line: rw 8 flat "x"'],
    [['RW 8k FLAT "x" 0'], "vmfs", 'Invalid extent line: RW 8k FLAT "x" 0'],
    [["rdonly zero"], "vmfs", "Invalid extent line: rdonly zero"],
    [[flat, "RO 8 ZERO"], "vmfs", "Invalid extent line: RO 8 ZERO"],
    [[flat, "\tRW\t8"], "vmfs", "Invalid extent line: "],
    [['RW 99999999999999999999 FLAT "x" 0'], "vmfs", "Invalid extent line"],
  ];
  for (const [lines, type, message] of cases) {
    const bytes = new TextEncoder().encode(descriptor(lines, type));
    const opening = () => openImage(stackOf(bytes));
    await assertRejects(opening, BlockError, message);
  }
  for (
    const [text, message] of [
      ["version=1\nCID=1\nparentCID=1\n", "invalid VMDK image descriptor"],
      ['version=1\nCID=1\ncreateType="vmfs"\n', "Invalid argument"],
      ["vmd", "File is too small, not a valid image"],
    ]
  ) {
    const bytes = new TextEncoder().encode(text);
    const opening = () => openImage(stackOf(bytes));
    await assertRejects(opening, BlockError, message);
  }
});

Deno.test("options that make no sense are refused in QEMU's words", async () => {
  for (
    const [options, message] of [
      [{ subformat: "x" }, "invalid parameter value: x"],
      [{ adapter_type: "x" }, "invalid parameter value: x"],
      [
        { compat6: true, hwversion: "7" },
        "compat6 cannot be enabled with hwversion set",
      ],
      [
        { subformat: "monolithicFlat", zeroed_grain: true },
        "Flat image can't enable zeroed grain",
      ],
      [
        { subformat: "twoGbMaxExtentFlat", backing_file: "x" },
        "Flat image can't have backing file",
      ],
      [{ backing_fmt: "qcow2" }, "backing_file must be a vmdk image"],
      [
        { preallocation: "metadata" },
        "Unsupported preallocation mode: metadata",
      ],
      [{ hwversion: '1"\nx=' }, "A VMDK descriptor cannot hold the text"],
      [{ size: 2 ** 51 }, "The disk is too large for a VMDK"],
      [
        { subformat: "monolithicFlat" },
        "Cannot generate a base directory for memory nodes",
      ],
    ] as const
  ) {
    await assertRejects(() => newImage(options), BlockError, message);
  }
});

/** Write at random, and check that everything is there. */
async function fillAndCompare(
  image: Image,
  random: Random,
  disk: Uint8Array = new Uint8Array(image.size),
): Promise<Uint8Array> {
  for (let i = 0; i < 25; i++) {
    const bytes = random.bytes(1 + random.below(60_000));
    const offset = random.below(Math.max(1, disk.length - bytes.length));
    await image.write(offset, bytes.subarray(0, disk.length - offset));
    disk.set(bytes.subarray(0, disk.length - offset), offset);
  }
  assertEquals(isEqual(await image.read(0, disk.length), disk), true);
  return disk;
}

Deno.test("both copies of a grain table point to the same grains", async () => {
  const stack = stackOf(await newImage({ size: 40 * MIB }));
  const { store } = stack.file as { store: Parameters<typeof contentOf>[0] };
  {
    await using image = await openImage(stack);
    await image.write(35 * MIB, new Uint8Array(3 * MIB).fill(1));
  }
  const bytes = contentOf(store);
  const view = new DataView(bytes.buffer);
  const [redundant, directory] = [AT.redundant, AT.directory].map((at) =>
    view.getUint32(at, true) * SECTOR
  );
  for (let table = 0; table < 2; table++) {
    const [one, other] = [redundant, directory].map((at) => {
      const start = view.getUint32(at + 4 * table, true) * SECTOR;
      return bytes.subarray(start, start + 2048);
    });
    assertEquals(one, other);
    assertEquals(one.some(Boolean), table === 1);
  }
});

Deno.test("a missing grain table is created, and nothing is overwritten", async () => {
  const bytes = await newImage({ size: 100 * MIB });
  const view = new DataView(bytes.buffer);
  // One writer leaves out both copies of a table, another only the second.
  const directory = view.getUint32(AT.directory, true) * SECTOR;
  const redundant = view.getUint32(AT.redundant, true) * SECTOR;
  put(bytes, directory, 0);
  put(bytes, redundant, 0);
  put(bytes, redundant + 4, 0);
  const stack = stackOf(bytes);
  const random = new Random(3);
  {
    await using image = await openImage(stack);
    const writes = Array.from(
      { length: 8 },
      (_, i) => image.write(i * 9 * MIB, new Uint8Array(GRAIN).fill(i + 1)),
    );
    await Promise.all(writes);
  }
  await using image = await openImage(stack);
  for (let i = 0; i < 8; i++) {
    const found = await image.read(i * 9 * MIB, GRAIN);
    assertEquals(found, new Uint8Array(GRAIN).fill(i + 1));
  }
  await image.check();
  await image.write(random.below(MIB), random.bytes(10));
});

Deno.test("grains of any size are read and written", async () => {
  for (const sectors of [1, 3, 24, 4096]) {
    const bytes = await newImage({ size: 3 * MIB + 512 });
    put(bytes, AT.grain, sectors);
    // Tables with few entries: more are needed than exist, so they are created.
    const tables = Math.ceil((3 * MIB / 512 + 1) / sectors / 512);
    const directory = new DataView(bytes.buffer).getUint32(AT.directory, true);
    bytes.fill(0, directory * SECTOR, directory * SECTOR + 4 * tables);
    put(bytes, AT.flags, 1);
    const stack = stackOf(bytes);
    let disk: Uint8Array;
    {
      await using image = await openImage(stack);
      disk = await fillAndCompare(image, new Random(sectors));
    }
    await using image = await openImage(stack);
    assertEquals(isEqual(await image.read(0, disk.length), disk), true);
    await image.check();
  }
});

Deno.test("writes through entries that point into the metadata are refused", async () => {
  const bytes = await newImage();
  const view = new DataView(bytes.buffer);
  const directory = view.getUint32(AT.directory, true) * SECTOR;
  const table = view.getUint32(directory, true) * SECTOR;
  put(bytes, table, 1);
  const grain = bytes.slice();
  put(bytes, table, 0);
  put(bytes, directory, 1);
  const beyond = bytes.slice();
  put(beyond, directory, 0x7fffffff);
  for (
    const [damaged, offset] of [
      [grain, 0],
      // Behind the descriptor's text, its area would have room for entries.
      [bytes, 120 * GRAIN],
      [beyond, 0],
    ] as const
  ) {
    await using image = await openImage(stackOf(damaged));
    await image.read(0, image.size);
    const data = new Uint8Array(GRAIN).fill(7);
    await assertRejects(() => image.write(offset, data), BlockError);
  }
});

Deno.test("the metadata that waits for a flush is bounded", async () => {
  // A grain in each of more table sectors than may be dirty at once.
  const [stride, count] = [8 * MIB, 2100];
  const size = stride * count;
  const data = new Uint8Array(GRAIN).fill(1);
  const kinds: [options: object, change: (image: Image) => Promise<void>][] = [
    [{}, async (image) => {
      for (let i = 0; i < count; i++) {
        await image.write(i * stride, data.subarray(0, 512));
      }
    }],
    [{ zeroed_grain: true }, (image) => image.writeZeroes(0, size)],
    [{ subformat: "streamOptimized" }, async (image) => {
      for (let i = 0; i < count; i++) await image.write(i * stride, data);
    }],
  ];
  for (const [options, change] of kinds) {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("vmdk", file, { size, ...options });
    const { node, counts } = faultyNode(await openProtocol(file));
    await using image = await openImage({ driver: "vmdk", file: node });
    await change(image);
    assert(counts.flush > 0, Object.keys(options).join());
  }
});

Deno.test("check() reports the first grain past the end of its file", async () => {
  const bytes = await newImage();
  const view = new DataView(bytes.buffer);
  const directory = view.getUint32(AT.directory, true) * SECTOR;
  const table = view.getUint32(directory, true) * SECTOR;
  put(bytes, table + 4 * 5, 1000);
  put(bytes, table + 4 * 9, 1000);
  await using image = await openImage(stackOf(bytes));
  const lines: string[] = [];
  const report = (line: string) => lines.push(line);
  const error = await assertRejects(() => image.check({ report }), BlockError);
  assertEquals(error.code, "EINVAL");
  assertEquals(lines, [
    "ERROR: cluster offset for sector 640 points after EOF",
  ]);
});

Deno.test("tables that a small file merely claims take no memory", async () => {
  const bytes = (await newImage()).slice();
  putLong(bytes, AT.capacity, 2n ** 41n);
  await using image = await openImage(stackOf(bytes));
  assertEquals(image.size, 2 ** 50);
  assertEquals(await image.read(image.size - 512, 512), new Uint8Array(512));
});

Deno.test("the first write of a session changes the content ID", async () => {
  const stack = stackOf(await newImage());
  const { store } = stack.file as { store: Parameters<typeof contentOf>[0] };
  const cidOf = async () => {
    await using image = await openImage(stack, { readOnly: true });
    const { specific } = await image.node.info!();
    return specific!.data.cid;
  };
  const before = await cidOf();
  const old = contentOf(store);
  {
    await using image = await openImage(stack);
    await image.read(0, 512);
  }
  assertEquals(await cidOf(), before);
  {
    await using image = await openImage(stack);
    await image.write(0, new Uint8Array(512));
  }
  assertEquals(await cidOf() === before, false);
  // The rest of the descriptor is unchanged.
  const text = (bytes: Uint8Array) =>
    new TextDecoder().decode(bytes.subarray(512, 21 * 512))
      .replace(/^CID=\w+/m, "");
  assertEquals(text(contentOf(store)), text(old));
});

/** Grains at odd indices, at the borders of tables. */
const GRAINS = new Map([[0, 1], [2, 2], [3, 3], [4095, 4], [4096, 5]]);

Deno.test("extents of ESX are read, and not written to", async () => {
  await using folder = new TempDir();
  const size = 3 * MIB;
  const seSize = 20 * MIB;
  const seGrains = new Map([...GRAINS, [1, 0], [4097, 6]]);
  await Deno.writeFile(folder.file("cowd"), cowdExtent(size, GRAINS));
  await Deno.writeFile(folder.file("se"), seSparseExtent(seSize, seGrains));
  const write = (name: string, line: string, type: string) =>
    Deno.writeTextFile(folder.file(name), descriptor([line], type));
  await write("a.vmdk", `RW ${size / 512} VMFSSPARSE "cowd"`, "vmfsSparse");
  await write("b.vmdk", `RW ${seSize / 512} SESPARSE "se"`, "seSparse");
  for (
    const [name, bytes, grains, grainSize] of [
      ["a.vmdk", size, GRAINS, 512],
      ["b.vmdk", seSize, seGrains, 4096],
    ] as const
  ) {
    const disk = new Uint8Array(bytes);
    for (const [grain, filler] of grains) {
      disk.fill(filler, grain * grainSize, (grain + 1) * grainSize);
    }
    await using image = await openImage(folder.file(name), { readOnly: true });
    assertEquals(image.size, bytes);
    assertEquals(isEqual(await image.read(0, bytes), disk), true);
    await image.check();
  }
  await using cowd = await openImage(folder.file("a.vmdk"));
  assertEquals(cowd.readOnly, true);
  await assertRejects(() => cowd.write(0, new Uint8Array(512)), BlockError);
  await assertRejects(
    () => openImage(folder.file("b.vmdk")),
    BlockError,
    "No write support for seSparse images available",
  );
});

Deno.test("an SESPARSE extent with anything unknown is refused", async () => {
  await using folder = new TempDir();
  const good = seSparseExtent(MIB, new Map([[0, 1]]));
  await Deno.writeTextFile(
    folder.file("d"),
    descriptor(['RW 2048 SESPARSE "se"'], "seSparse"),
  );
  const hex = (digits: string) => `0x${digits.padStart(16, "0")}`;
  for (
    const [at, message] of [
      [0, `Bad const header magic: ${hex("99")}`],
      [8, `Unsupported version: ${hex("99")}`],
      [24, "Unsupported grain size: 153"],
      [32, "Unsupported grain table size: 153"],
      [40, `Unsupported flags: ${hex("99")}`],
      [
        56,
        `Unsupported reserved bits: ${hex("0")} ${hex("99")} ${hex("0")} ${
          hex("0")
        }`,
      ],
      [400, "Unsupported non-zero const header padding"],
      [512, `Bad volatile header magic: ${hex("99")}`],
      [536, "Image is dirty, Replaying journal not supported"],
      [800, "Unsupported non-zero volatile header padding"],
    ] as const
  ) {
    const bytes = good.slice();
    putLong(bytes, at, 0x99);
    await Deno.writeFile(folder.file("se"), bytes);
    await assertRejects(
      () => openImage(folder.file("d"), { readOnly: true }),
      BlockError,
      message,
    );
  }
  const bytes = good.slice();
  putLong(bytes, 16 * SECTOR + 8, 0x4000000000000000n);
  await Deno.writeFile(folder.file("se"), bytes);
  await using image = await openImage(folder.file("d"), { readOnly: true });
  assertEquals((await image.read(0, 1))[0], 1);
  const error = await assertRejects(() => image.read(4096, 1), BlockError);
  assertEquals(error.code, "EIO");
});

Deno.test("extents of zeroes, and read-only ones, are read", async () => {
  await using folder = new TempDir();
  await Deno.writeFile(folder.file("x"), new Uint8Array(4096).fill(3));
  await Deno.writeTextFile(
    folder.file("d"),
    descriptor([
      'RW 2 FLAT "x" 0',
      "rw 3 Zero",
      'RdOnly 4 flat "x" 4',
      // Past the end of the extent's file it reads as zeroes.
      'RW 6 FLAT "x" 6',
    ]),
  );
  const disk = new Uint8Array(15 * 512);
  disk.fill(3, 0, 1024);
  disk.fill(3, 5 * 512, 11 * 512);
  await using image = await openImage(folder.file("d"));
  assertEquals([image.size, image.readOnly], [disk.length, true]);
  assertEquals(await image.read(0, disk.length), disk);
});

Deno.test("extents of different kinds and grain sizes form one disk", async () => {
  await using folder = new TempDir();
  const odd = await newImage({ size: 5 * GRAIN + 512 });
  await Deno.writeFile(folder.file("odd"), odd);
  await Deno.writeFile(folder.file("flat"), new Uint8Array(8192));
  const fine = await newImage({ size: MIB, zeroed_grain: true });
  put(fine, AT.grain, 16);
  await Deno.writeFile(folder.file("fine"), fine);
  await Deno.writeTextFile(
    folder.file("d"),
    descriptor([
      `RW ${odd.length / 512} SPARSE "odd"`,
      'RW 5 FLAT "flat" 3',
      'RW 2048 SPARSE "fine"',
    ], "twoGbMaxExtentSparse"),
  );
  let disk: Uint8Array;
  {
    await using image = await openImage(folder.file("d"));
    assertEquals(image.size, 5 * GRAIN + 6 * 512 + MIB);
    disk = await fillAndCompare(image, new Random(5));
    const zeroes: [number, number][] = [[0, image.size - 8192], [100, 70_000]];
    for (const [offset, length] of zeroes) {
      await image.writeZeroes(offset, length);
      disk.fill(0, offset, offset + length);
    }
    await fillAndCompare(image, new Random(6), disk);
  }
  await using image = await openImage(folder.file("d"));
  assertEquals(isEqual(await image.read(0, disk.length), disk), true);
  const { specific, clusterSize } = await image.node.info!();
  assertEquals(clusterSize, undefined);
  const extents = specific!.data.extents as { "cluster-size"?: number }[];
  assertEquals(
    extents.map((extent) => extent["cluster-size"]),
    [GRAIN, undefined, 8192],
  );
});
