/** Damaged and malicious archives and compressed files. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import { BlockError, openImage, type StackObject } from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { mustSkip } from "../../qemu.ts";
import { storeOf } from "../qcow2/bytes.ts";
import {
  bgzf,
  disk,
  gzip,
  seekableZstd,
  tar,
  unpackAll,
  xz,
  zip,
  zstd,
} from "./make.ts";

/** Mutations of each sample; BDRV_SEED chooses others. */
const ROUNDS = 150;

function mutated(random: Random, sample: Uint8Array): Uint8Array {
  const bytes = sample.slice();
  for (let i = random.below(4); i >= 0; i--) {
    // The structures are at both ends.
    const near = random.pick([64, 600, bytes.length]);
    const from = random.below(Math.min(near, bytes.length));
    const at = random.oneIn(2) ? from : bytes.length - 1 - from;
    bytes[at] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.below(256)]);
  }
  return random.oneIn(8) ? bytes.slice(0, random.below(bytes.length)) : bytes;
}

/** All bytes of everything that can be unpacked. */
async function readAll(driver: string, bytes: Uint8Array): Promise<Uint8Array> {
  const file: StackObject = { driver: "memory", store: storeOf(bytes) };
  await using image = await openImage({
    driver: "raw",
    file: { driver, file },
  }, { readOnly: true });
  assert(image.size < 2 ** 46, `size ${image.size}`);
  return await image.read(0, Math.min(image.size, disk.length + 512));
}

type Sample = readonly [
  name: string,
  make: () => Promise<Uint8Array> | Uint8Array,
  read: (bytes: Uint8Array) => Promise<Uint8Array>,
  /** Whether checksums cover the content. */
  isSure: boolean,
];

const SAMPLES: readonly Sample[] = [
  ["tar", () => tar([["disk.raw", disk]]), (b) => readAll("tar", b), false],
  ["bgzf", () => bgzf(disk), (b) => readAll("gzip", b), true],
  ["xz", () => xz(disk, "--block-size=64KiB"), (b) => readAll("xz", b), true],
  ["zstd", () => seekableZstd(disk), (b) => readAll("zstd", b), false],
  ["zip", () => zip("disk.raw", disk, 0), (b) => readAll("zip", b), false],
  ["gzip", () => gzip(disk), (b) => unpackAll("gzip", b), true],
  ["xz", () => xz(disk), (b) => unpackAll("xz", b), true],
  ["zstd", () => zstd(disk), (b) => unpackAll("zstd", b), true],
  ["zip", () => zip("disk.raw", disk, 8), (b) => unpackAll("zip", b), true],
];

for (const [index, [name, make, read, isSure]] of SAMPLES.entries()) {
  Deno.test({
    name: `${name} (${index}): damage ends in an error, or changes nothing`,
    ignore: mustSkip({ tools: ["xz"] }),
    fn: async () => {
      const sample = await make();
      const wanted = await read(sample);
      assert(isEqual(wanted.subarray(0, disk.length), disk));
      let errors = 0;
      const seeds = seedsToRun(ROUNDS);
      for (const seed of seeds) {
        const bytes = mutated(new Random(seed), sample);
        try {
          const found = await read(bytes);
          const isSame = isEqual(
            found.subarray(0, disk.length),
            disk.subarray(0, found.length),
          );
          assert(isSame || !isSure, `seed ${seed} reads something else`);
        } catch (error) {
          assert(error instanceof BlockError, `seed ${seed}: ${error}`);
          assert(error.message.length < 1000, error.message);
          errors++;
        }
      }
      assert(errors > seeds.length / 10, `${errors} errors`);
    },
  });
}

Deno.test("tar: headers that lie are refused, each with its reason", async () => {
  const refused = async (
    change: (header: Uint8Array) => void,
    message: string,
    { sums = true } = {},
  ) => {
    const bytes = tar([["disk.raw", disk]], { change, sums });
    const { message: found } = await assertRejects(
      () => readAll("tar", bytes),
      BlockError,
    );
    assert(found.includes(message), found);
  };
  const put = (at: number, text: string) => (header: Uint8Array) =>
    header.set(new TextEncoder().encode(text), at);
  await refused(put(0, "other"), "damaged", { sums: false });
  await refused(put(124, "9999999"), "has no size");
  await refused(put(124, "77777777777"), "cut off");
  await refused((header) => header.fill(0xff, 124, 136), "has no size");
  await refused(
    (header) => header.set([0x80, 0, 0, 0, 0x7f], 124),
    "has no size",
  );
  await refused(put(156, "S"), "sparse");
  await refused(put(156, "5"), "no file in it");
  await refused(put(156, "x"), "no file in it");
  for (const text of ["8 size=1\n", "99 size=1\n", "10 size=x\n", "junk"]) {
    const record = new TextEncoder().encode(text);
    const change = (header: Uint8Array) => void (header[156] = 0x78);
    const bytes = tar([["x", record], ["disk.raw", disk]], { change });
    await assertRejects(
      () => readAll("tar", bytes),
      BlockError,
      "extended header at byte 0 is damaged",
    );
  }
});

Deno.test("tar: sizes beyond 8 GiB are in base 256, or in a pax header", async () => {
  const { MemoryStore } = await import("../../../mod.ts");
  const size = 9 * 1024 ** 3;
  const binary = (header: Uint8Array) => {
    header.fill(0, 124, 136);
    header[124] = 0x80;
    new DataView(header.buffer, header.byteOffset).setUint32(128, 2);
    new DataView(header.buffer, header.byteOffset).setUint32(132, 2 ** 30);
  };
  const record = `19 size=${size}\n`;
  assertEquals(record.length, 19);
  const pax = tar([["x", new TextEncoder().encode(record)]], {
    change: (header) => header[156] = "x".charCodeAt(0),
    isOpen: true,
  });
  const own = tar([["disk.raw", new Uint8Array()]], { isOpen: true });
  const joined = new Uint8Array(pax.length + own.length);
  joined.set(pax);
  joined.set(own, pax.length);
  const based = tar([["disk.raw", new Uint8Array()]], {
    change: binary,
    isOpen: true,
  });
  for (const start of [based, joined]) {
    const store = new MemoryStore(start.length + size + 1024);
    store.write(0, start);
    store.write(start.length + size - 5, new TextEncoder().encode("hello"));
    await using image = await openImage({
      driver: "raw",
      file: { driver: "tar", file: { driver: "memory", store } },
    }, { readOnly: true });
    assertEquals(image.size, size);
    const end = await image.read(size - 5, 5);
    assertEquals(new TextDecoder().decode(end), "hello");
  }
});

Deno.test("content that fills the buffers exactly is unpacked to its end", async () => {
  const zeroes = new Uint8Array(2 * 1024 * 1024);
  for (const [name, pack] of [["gzip", gzip], ["zstd", zstd]] as const) {
    for (const bytes of [zeroes, zeroes.subarray(1), zeroes.subarray(512)]) {
      const { length } = await unpackAll(name, pack(bytes));
      assertEquals(length, bytes.length, name);
    }
  }
});

Deno.test("nested gzip files end, even one that contains itself", async () => {
  let bytes = bgzf(disk.subarray(0, 1024));
  for (let i = 0; i < 3; i++) bytes = bgzf(bytes);
  const open = (bytes: Uint8Array) =>
    openImage({ file: { driver: "memory", store: storeOf(bytes) } }, {
      readOnly: true,
      unpack: true,
    });
  await using image = await open(bytes);
  assertEquals(image.size, 1024);
  const { code } = await assertRejects(() => open(bgzf(bytes)), BlockError);
  assertEquals(code, "ELOOP");
});

Deno.test("a file that claims to be enormous takes little memory", async () => {
  // A zstd seek table with frames of 4 GiB, and millions of empty frames.
  const claim = (count: number, stored: number, length: number) => {
    const bytes = new Uint8Array(4 + 8 + count * 8 + 9);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, 0xfd2fb528, true);
    view.setUint32(4, 0x184d2a5e, true);
    view.setUint32(8, count * 8 + 9, true);
    for (let i = 0; i < count; i++) {
      view.setUint32(12 + i * 8, stored, true);
      view.setUint32(16 + i * 8, length, true);
    }
    view.setUint32(12 + count * 8, count, true);
    view.setUint32(12 + count * 8 + 5, 0x8f92eab1, true);
    return bytes;
  };
  const huge = claim(1, 4, 0xffffffff);
  await assertRejects(() => readAll("zstd", huge), BlockError, "large frames");
  await assertRejects(() => readAll("zstd", claim(3, 4, 1)), BlockError);
  const many = claim(0, 0, 0);
  new DataView(many.buffer).setUint32(12, 0xffffffff, true);
  await assertRejects(() => readAll("zstd", many), BlockError, "too many");
});
