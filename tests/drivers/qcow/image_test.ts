import { assertEquals, assertRejects } from "@std/assert";
import { openProtocol } from "../../../core/open.ts";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../../qemu.ts";
import {
  exchange,
  newImage,
  stackOf,
  surviveCuts,
  surviveDamage,
} from "../format_tests.ts";
import { contentOf } from "../qcow2/bytes.ts";

const MIB = 1024 * 1024;

/** A damaged field of the header, and the message about it. */
const DAMAGES: [at: number, value: number[], message: string][] = [
  [0, [1], "Image not in qcow format"],
  [7, [3], "qcow (v1) does not support qcow version 3"],
  [
    24,
    [0, 0, 0, 0, 0, 0, 0, 1],
    "Image size is too small (must be at least 2 bytes)",
  ],
  [32, [8], "Cluster size must be between 512 and 64k"],
  [32, [17], "Cluster size must be between 512 and 64k"],
  [33, [5], "L2 table size must be between 512 and 64k"],
  [33, [14], "L2 table size must be between 512 and 64k"],
  [39, [2], "invalid encryption method in qcow header"],
  [24, [0x7f], "Image too large"],
  [8, [0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 4, 0], "Backing file name too long"],
  [40, [0, 0, 0, 0, 0, 0, 0, 0], "L1 table offset invalid"],
];

Deno.test("a header that makes no sense is refused in QEMU's words", async () => {
  for (const [at, value, message] of DAMAGES) {
    const bytes = await newImage("qcow", { size: 8 * MIB });
    bytes.set(value, at);
    const opening = () => openImage(stackOf("qcow", bytes));
    await assertRejects(opening, BlockError, message);
  }
});

Deno.test("options of new images that make no sense are refused", async () => {
  for (
    const [options, message] of [
      [{ size: 0 }, "Image size is too small, cannot be zero length"],
      [{ size: 2 ** 62 }, "Image too large"],
      [{}, "Image creation needs a size parameter"],
      [
        { size: MIB, "encrypt.format": "luks" },
        "Unsupported encryption format",
      ],
      [
        { size: MIB, "encrypt.key-secret": "x" },
        "Parameter 'encrypt.format' is missing",
      ],
      [
        { size: MIB, encryption: true },
        "Parameter 'encrypt.key-secret' is required for cipher",
      ],
      [
        { size: MIB, backing_file: "x".repeat(1024) },
        "Backing file name too long",
      ],
      [
        { size: MIB, preallocation: "metadata" },
        "Unsupported preallocation mode: metadata",
      ],
    ] as const
  ) {
    await assertRejects(() => newImage("qcow", options), BlockError, message);
  }
});

Deno.test("a new image is as large as QEMU's, and its clusters too", async () => {
  const plain = await newImage("qcow", { size: 100 * MIB });
  assertEquals([plain.length, plain[32], plain[33]], [560, 12, 9]);
  const over = await newImage("qcow", {
    size: 100 * MIB,
    backing_file: "base",
  });
  assertEquals([over.length, over[32], over[33]], [568, 9, 12]);
});

Deno.test("entries that point nowhere are errors, not data", async () => {
  const bytes = await newImage("qcow", { size: 8 * MIB });
  const view = new DataView(bytes.buffer);
  const cases: [low: number, high?: number][] = [
    [8], // over the header
    [56], // over the L1 table itself
    [4097], // not on a sector boundary
    [1 << 20], // past the end
    [0, 0x80000000],
  ];
  for (const [low, high = 0] of cases) {
    view.setUint32(48, high);
    view.setUint32(52, low);
    await using image = await openImage(stackOf("qcow", bytes));
    for (
      const use of [
        () => image.read(0, 512),
        () => image.write(0, new Uint8Array(512)),
      ]
    ) {
      const { code } = await assertRejects(use, BlockError);
      assertEquals(code, "EIO");
    }
    assertEquals(await image.read(2 * MIB, 512), new Uint8Array(512));
  }
});

/** An image of 2 MiB with clusters of 4 KiB, some of them compressed. */
async function compressedImage(): Promise<[MemoryStore, Uint8Array]> {
  const random = new Random(3);
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const disk = new Uint8Array(2 * MIB + 512);
  await createImage("qcow", file, { size: disk.length });
  await using image = await openImage({ driver: "qcow", file });
  for (const [at, length] of [[0, 400_000 - 400_000 % 4096], [2 * MIB, 512]]) {
    const bytes = random.dullBytes(length);
    if (length > 20_000) bytes.set(random.bytes(8192), 8192);
    disk.set(bytes, at);
    await image.writeCompressed(at, bytes);
  }
  return [store, disk];
}

Deno.test("compressed clusters are read, overwritten, and not compressed again", async () => {
  const [store, disk] = await compressedImage();
  await using image = await openImage({
    driver: "qcow",
    file: { driver: "memory", store },
  });
  assertEquals(isEqual(await image.read(0, disk.length), disk), true);
  for (const at of [1, 4095, 12_288, 300_000]) {
    assertEquals(await image.read(at, 5000), disk.slice(at, at + 5000));
  }
  const { value } = await image.extents()[Symbol.asyncIterator]().next();
  assertEquals(value.compressed, true);
  disk.fill(9, 4000, 5000);
  await image.write(4000, new Uint8Array(1000).fill(9));
  await image.flush();
  assertEquals(isEqual(await image.read(0, disk.length), disk), true);
  for (
    const [at, bytes, code] of [
      [0, 4096, "EIO"],
      [0, 100, "EINVAL"],
      [512, 4096, "EINVAL"],
    ] as const
  ) {
    const writing = () => image.writeCompressed(at, new Uint8Array(bytes));
    assertEquals((await assertRejects(writing, BlockError)).code, code);
  }
  // A compressed cluster may be replaced, unless that is not wanted.
  const again = new Uint8Array(4096).fill(4);
  await assertRejects(
    () => image.node.writeCompressed!(8 * 4096, [again], { onlyEmpty: true }),
    BlockError,
  );
  await image.writeCompressed(8 * 4096, again);
  disk.set(again, 8 * 4096);
  assertEquals(isEqual(await image.read(0, disk.length), disk), true);
});

Deno.test("flushed data survives power cuts", async () => {
  for (const seed of seedsToRun(4)) {
    const options = { size: 3 * MIB };
    await surviveCuts({ driver: "qcow", options }, seed);
    await surviveCuts({ driver: "qcow", options, isOverlay: true }, seed);
  }
});

Deno.test("compressed clusters survive power cuts", async () => {
  for (const seed of seedsToRun(3)) {
    let next = 0;
    await surviveCuts({
      driver: "qcow",
      options: { size: 3 * MIB },
      async change(image, disk, random) {
        const bytes = random.dullBytes(20 * 4096);
        disk.set(bytes, next);
        await image.writeCompressed(next, bytes);
        next += bytes.length;
      },
    }, seed);
  }
});

Deno.test("emptying an image exposes its backing file", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow", file, { size: MIB });
  const base = { driver: "memory", store: new MemoryStore(MIB) };
  base.store.write(0, new Uint8Array(MIB).fill(5));
  const backing = { driver: "raw", file: base };
  const protocol = await openProtocol(file);
  await using image = await openImage({
    driver: "qcow",
    file: protocol,
    backing,
  });
  await image.write(1000, new Uint8Array(200_000).fill(6));
  await image.flush();
  await image.node.image!.makeEmpty!();
  assertEquals(store.size, 56);
  assertEquals(await image.read(0, MIB), new Uint8Array(MIB).fill(5));
  await image.write(1000, new Uint8Array(10).fill(7));
  await image.flush();
  assertEquals((await image.read(999, 3)).join(), "5,7,7");
  await image.close();
  await protocol.close();
});

Deno.test("at any moment, an image being emptied is whole, or shows its backing file", async () => {
  const log = new PowerLog(await newImage("qcow", { size: MIB }));
  const base = { driver: "memory", store: new MemoryStore(MIB) };
  base.store.write(0, new Uint8Array(MIB).fill(5));
  const backing = { driver: "raw", file: base };
  const link = { driver: "qcow", backing };
  {
    await using image = await openImage({ ...link, file: log });
    await image.write(0, new Uint8Array(8192).fill(5));
    await image.flush();
    await image.node.image!.makeEmpty!();
  }
  for (const { what, file } of log.reordered()) {
    await using image = await openImage({ ...stackOf("qcow", file), ...link });
    const found = await image.read(0, MIB);
    assertEquals(found.every((byte) => byte === 5), true, what);
  }
});

Deno.test("a damaged qcow image causes BlockErrors at worst", async () => {
  const [store] = await compressedImage();
  const images = [contentOf(store)];
  for (const backing_file of [undefined, "/etc/hostname"]) {
    const file = { driver: "memory", store: new MemoryStore() };
    const options = { size: 9 * MIB, ...(backing_file && { backing_file }) };
    await createImage("qcow", file, options);
    const stack = {
      driver: "qcow",
      file,
      ...(backing_file && { backing: null }),
    };
    await using image = await openImage(stack);
    await image.write(3 * MIB - 5000, new Uint8Array(MIB).fill(1));
    await image.close();
    images.push(contentOf(file.store));
  }
  await surviveDamage({
    driver: "qcow",
    images,
    fields: [[4, 4], [8, 8], [16, 4], [24, 8], [32, 1], [33, 1], [36, 4], [
      40,
      8,
    ]],
    tables: [[48, 512], [560, 4096], [4096, 4096]],
    isLittleEndian: false,
  }, seedsToRun(250));
});

qemuTest("QEMU reads our images, and we read QEMU's", async () => {
  await using folder = new TempDir();
  await exchange("qcow", [[], ["-c"]], folder, BDRV);
});

qemuTest("encrypted images and overlays work in both directions", async () => {
  await using folder = new TempDir();
  const cwd = { cwd: folder.path };
  const key = ["--object", "secret,id=key,data=a secret"];
  const ours = [...BDRV, "qemu-img"];
  const create = (tool: readonly string[], name: string) =>
    runOk([
      ...tool,
      ...["create", ...key, "-f", "qcow"],
      ...["-o", "encrypt.format=aes,encrypt.key-secret=key", name, "2M"],
    ], cwd);
  await create(["qemu-img"], "theirs");
  await create(ours, "ours");
  assertEquals(
    await Deno.readFile(folder.file("theirs")),
    await Deno.readFile(folder.file("ours")),
  );
  const stack = (filename: string) => ({
    driver: "qcow",
    file: { driver: "file", filename: folder.file(filename) },
    "encrypt.key-secret": "key",
  });
  const options = { secrets: { key: "a secret" } };
  for (const name of ["theirs", "ours"]) {
    await using image = await openImage(stack(name), options);
    await image.write(70_000, new Uint8Array(3000).fill(3));
    await image.close();
    const command = "read -P 3 70000 3000";
    const { stdout } = await run([
      ...["qemu-io", ...key, "-c", command, "-c", "write -P 4 100 600"],
      "--image-opts",
      `driver=qcow,file.filename=${name},encrypt.key-secret=key`,
    ], cwd);
    assertEquals(stdout.includes("failed"), false, stdout);
    await using again = await openImage(stack(name), options);
    assertEquals(await again.read(100, 600), new Uint8Array(600).fill(4));
  }
  await runOk([...ours, "create", "-f", "raw", "base", "3M"], cwd);
  await runOk(
    [...ours, "create", "-f", "qcow", "-b", "base", "-F", "raw", "over"],
    cwd,
  );
  await using over = await openImage(folder.file("over"));
  assertEquals([over.format, over.size], ["qcow", 3 * MIB]);
  await over.write(MIB, new Uint8Array(5).fill(8));
  await over.close();
  await runOk(["qemu-img", "commit", "over"], cwd);
  // Committing does not report a format that the image does not name.
  await runOk(["qemu-io", "-c", "write -P 9 2M 512", "over"], cwd);
  const { stderr } = await run([...ours, "commit", "over"], cwd);
  assertEquals(stderr, "");
  const base = await Deno.readFile(folder.file("base"));
  assertEquals(base.slice(MIB, MIB + 6).join(), "8,8,8,8,8,0");
}, ["qemu-img", "qemu-io"]);
