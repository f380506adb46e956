import { assert, assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  type StackObject,
} from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { qemuTest, run, runOk, TempDir } from "../../qemu.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";

const MIB = 1024 * 1024;

async function newImage(options = {}): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("vdi", file, { size: 8 * MIB, ...options });
  return contentOf(store);
}

function stackOf(bytes: Uint8Array): StackObject {
  return { driver: "vdi", file: { driver: "memory", store: storeOf(bytes) } };
}

/** Numbers of the header are little-endian. */
function put(bytes: Uint8Array, at: number, value: number): void {
  new DataView(bytes.buffer).setUint32(at, value, true);
}

/** A damaged field of the header, and the message about it. */
const DAMAGES: [at: number, value: number, message: string][] = [
  [64, 0x12345678, "Image not in VDI format (bad signature 12345678)"],
  [68, 0x00020003, "unsupported VDI image (version 2.3)"],
  [340, 513, "unsupported VDI image (unaligned block map offset 0x201)"],
  [344, 1025, "unsupported VDI image (unaligned data offset 0x401)"],
  [360, 4096, "unsupported VDI image (sector size 4096 is not 512)"],
  [376, 65536, "unsupported VDI image (block size 65536 is not 1048576)"],
  [
    384,
    7,
    "unsupported VDI image (disk size 8388608, image bitmap has room for 7340032)",
  ],
  [424, 1, "unsupported VDI image (non-NULL link UUID)"],
  [440, 1, "unsupported VDI image (non-NULL parent UUID)"],
  [
    384,
    0x20000000,
    "unsupported VDI image (too many blocks 536870912, max is 536870784)",
  ],
  [76, 4, "unsupported VDI image (differencing image)"],
  [380, 512, "unsupported VDI image (512 bytes before each block)"],
  [
    372,
    0x00020000,
    "Unsupported VDI image size (size is 0x2000000800000, " +
    "max supported is 0x1fffff8000000)",
  ],
];

Deno.test("a header that makes no sense is refused in QEMU's words", async () => {
  for (const [at, value, message] of DAMAGES) {
    const bytes = await newImage();
    put(bytes, at, value);
    const opening = () => openImage(stackOf(bytes));
    await assertRejects(opening, BlockError, message);
  }
});

Deno.test("check() counts blocks, and finds those used twice", async () => {
  const bytes = await newImage({ static: true });
  put(bytes, 512 + 4, 0);
  put(bytes, 512 + 8, 1000);
  await using image = await openImage(stackOf(bytes));
  const lines: string[] = [];
  const report = (line: string) => lines.push(line);
  const { corruptions } = await image.check({ report });
  assertEquals(corruptions, 3);
  assertEquals(lines, [
    "ERROR: block index 0 also used by 0",
    "ERROR: block index 2 too large, is 1000",
    "ERROR: allocated blocks mismatch, is 7, should be 8",
  ]);
});

Deno.test("a block map that a small file merely claims is not walked", async () => {
  const whole = await newImage();
  for (const length of [512, whole.length - 1, whole.length]) {
    const bytes = whole.slice(0, length);
    put(bytes, 384, 0x1fffff80);
    for (const purpose of ["io", "check"] as const) {
      await assertRejects(
        () => openImage(stackOf(bytes), { purpose }),
        BlockError,
        "The block map of the VDI image ends at 2147483648, after the end of " +
          `the file (${length}). Image has probably been truncated.`,
      );
    }
    await using image = await openImage(stackOf(bytes), { purpose: "info" });
    assertEquals(image.size, 8 * MIB);
  }
});

Deno.test("flushed data survives power cuts", async () => {
  for (const seed of seedsToRun(5)) {
    const random = new Random(seed);
    const log = new PowerLog(await newImage({ size: 3 * MIB }));
    const disk = new Uint8Array(3 * MIB);
    const flushed: { moment: number; disk: Uint8Array }[] = [];
    {
      await using image = await openImage({ driver: "vdi", file: log });
      for (let i = 0; i < 12; i++) {
        const bytes = random.bytes(1 + random.below(3000));
        const offset = random.below(disk.length - bytes.length);
        disk.set(bytes, offset);
        await image.write(offset, bytes);
        await image.flush();
        flushed.push({ moment: log.now, disk: disk.slice() });
      }
    }
    const moments = Array.from({ length: 15 }, () => random.below(log.now + 1))
      .sort((a, b) => a - b);
    for (const { moment, file } of log.cuts(moments, random)) {
      const done = flushed.filter((one) => one.moment <= moment);
      const [before, after] = [
        done.at(-1)?.disk ?? new Uint8Array(disk.length),
        flushed[done.length]?.disk ?? disk,
      ];
      await using image = await openImage(stackOf(file));
      const found = await image.read(0, disk.length);
      for (let at = 0; at < found.length; at++) {
        if (found[at] === before[at] || found[at] === after[at]) continue;
        throw new Error(`seed ${seed}, cut at ${moment}: byte ${at}`);
      }
      // The next write does not overwrite anything else.
      const fresh = random.bytes(100);
      const offset = random.below(disk.length - 100);
      await image.write(offset, fresh);
      found.set(fresh, offset);
      assertEquals(isEqual(await image.read(0, disk.length), found), true);
    }
  }
});

Deno.test("after any power cut, the header counts all blocks of the map", async () => {
  const log = new PowerLog(await newImage({ size: 6 * MIB }));
  {
    await using image = await openImage({ driver: "vdi", file: log });
    for (const start of [3, 0]) {
      // Others allocate the next block by the header, and must not use one
      // twice.
      for (let i = start; i < start + 3; i++) {
        await image.write(i * MIB, new Uint8Array(512).fill(1 + i));
      }
      await image.flush();
    }
  }
  for (const { what, file } of log.reordered()) {
    const view = new DataView(file.buffer, file.byteOffset);
    const [map, allocated] = [340, 388].map((at) => view.getUint32(at, true));
    for (let i = 0; i < 6; i++) {
      const block = view.getUint32(map + 4 * i, true);
      assert(block >= 0xfffffffe || block < allocated, what);
    }
  }
});

Deno.test("check() counts blocks that are not flushed yet", async () => {
  await using image = await openImage(stackOf(await newImage()));
  await image.write(MIB, new Uint8Array([1]));
  assertEquals((await image.check()).corruptions, 0);
});

qemuTest("QEMU reads our images, and we read QEMU's", async () => {
  await using folder = new TempDir();
  const random = new Random(1);
  const plain = new Uint8Array(5 * MIB + 512);
  for (const offset of [100, 3 * MIB - 50]) {
    plain.set(random.bytes(70_000), offset);
  }
  const [raw, ours, theirs] = ["raw", "ours.vdi", "theirs.vdi"].map((name) =>
    folder.file(name)
  );
  await Deno.writeFile(raw, plain);
  for (const options of [[], ["-o", "static=on"]]) {
    await runOk(
      [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "vdi",
        ...options,
        raw,
        theirs,
      ],
    );
    await using image = await openImage(theirs);
    assertEquals(image.format, "vdi");
    assertEquals(isEqual(await image.read(0, plain.length), plain), true);
    await image.write(MIB - 10, new Uint8Array(20).fill(9));
    await image.close();
    plain.fill(9, MIB - 10, MIB + 10);
    await Deno.writeFile(raw, plain);
    await runOk(["qemu-img", "compare", "-f", "raw", raw, theirs]);
    const isStatic = options.length > 0;
    await createImage("vdi", ours, { size: plain.length, static: isStatic });
    await using made = await openImage(ours);
    await made.write(0, plain);
    await made.close();
    await runOk(["qemu-img", "compare", "-f", "raw", raw, ours]);
    for (const file of [ours, theirs]) {
      const { code, stderr } = await run(["qemu-img", "check", file]);
      assertEquals([code, stderr], [0, ""]);
    }
  }
});
