/**
 * Whatever is done to the bytes of an image that is only read, nothing worse
 * happens than a `BlockError`, and nothing takes memory that the file does not
 * account for.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { AbsentVerbError, UnexpectedError } from "../../../core/errors.ts";
import { isEqual } from "../../../core/runtime.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { storeOf } from "../qcow2/bytes.ts";
import { bytesOf, GOLDEN } from "./golden.ts";

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 4n, 8n, 127n, 511n, 512n, 513n, 4096n, 65536n],
  ...[0x7fffffffn, 0x80000000n, 0xffffffffn, 0x100000000n, 1n << 40n],
  ...[(1n << 44n) - 1n, (1n << 53n) - 1n, 1n << 53n, 1n << 55n, 3n << 62n],
  ...[1n << 62n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n],
];

/** Fields, by the offset from the start, or from the end if it is negative. */
const FIELDS: { readonly [format: string]: readonly number[] } = {
  dmg: [24, 32, 40, 48, 60, 216, 224, 492].map((at) => at - 512),
  cloop: [...[128, 132], ...Array.from({ length: 66 }, (_, i) => 136 + 8 * i)],
  bochs: [...[0, 32, 48, 64, 68, 72, 76, 80, 84, 88], 512, 516, 520, 600],
  asif: [
    ...[0, 4, 16, 24, 48, 56, 64, 68, 512, 520, 528, 8192, 8200, 8208],
    ...[32768, 32776, 32784, 32800, 49152, 65536, 65792],
    ...[262144, 262152, 262176, 393216, 524288],
  ],
};

function putValue(
  bytes: Uint8Array,
  at: number,
  value: bigint,
  size: number,
  littleEndian = false,
): void {
  for (let i = 0; i < size && at + i < bytes.length; i++) {
    const shift = BigInt(8 * (littleEndian ? i : size - 1 - i));
    bytes[at + i] = Number(value >> shift & 0xffn);
  }
}

/** Change entries in the tables of a DMG, or others of its numbers. */
function damageTables(bytes: Uint8Array, random: Random): string {
  const mish = positionsOf(bytes, "mish");
  if (mish.length > 0) {
    // In a resource fork, as they are.
    const table = random.pick(mish);
    const at = random.pick([4, 8, 16, 24]) - 8 * random.below(2);
    const entry = 204 + 40 * random.below(20) + random.pick([0, 8, 16, 24, 32]);
    const where = table + random.pick([at, entry]);
    const value = random.pick(VALUES);
    putValue(bytes, where, value, 8);
    return `table at ${table}, ${where - table} = ${value}`;
  }
  const starts = positionsOf(bytes, "<data>");
  if (starts.length === 0) return "no table is left";
  const data = random.pick(starts) + 6;
  const end = data + bytes.subarray(data).indexOf("<".charCodeAt(0));
  const text = String.fromCharCode(...bytes.subarray(data, end));
  let content;
  try {
    content = atob(text);
  } catch {
    return "the table is none any more"; // by an earlier change
  }
  const table = Uint8Array.from(content, (char) => char.charCodeAt(0));
  const entries = Math.max(1, Math.floor((table.length - 204) / 40));
  const at = random.pick([8, 24, 204, 204, 204, 204]);
  const where = at < 204
    ? at
    : at + 40 * random.below(entries) + random.pick([0, 8, 16, 24, 32]);
  const value = random.pick(VALUES);
  if (where % 40 === 4 && random.below(2) === 0) {
    putValue(table, where, BigInt(0x80000004 + random.below(6)), 4);
  } else putValue(table, where, value, 8);
  const encoded = btoa(String.fromCharCode(...table));
  // As long as it was, with the white space that this leaves.
  const packed = encoded.padEnd(end - data, " ").slice(0, end - data);
  bytes.set(new TextEncoder().encode(packed), data);
  return `table in a list, ${where} = ${value}`;
}

function positionsOf(bytes: Uint8Array, magic: string): number[] {
  const text = new TextDecoder("latin1").decode(bytes);
  const found = [];
  for (
    let at = text.indexOf(magic);
    at >= 0;
    at = text.indexOf(magic, at + 1)
  ) {
    found.push(at);
  }
  return found;
}

function damage(bytes: Uint8Array, format: string, random: Random): string {
  const kind = random.below(format === "dmg" ? 5 : 3);
  if (kind === 0) {
    const at = random.below(bytes.length);
    bytes[at] ^= 1 << random.below(8);
    return `byte ${at} = ${bytes[at]}`;
  }
  if (kind >= 3) return damageTables(bytes, random);
  const field = random.pick(FIELDS[format]);
  const at = field < 0 ? bytes.length + field : field;
  const size = random.pick([4, 4, 8]);
  const isNear = random.below(3) === 0;
  const value = isNear ? BigInt(random.below(2000)) : random.pick(VALUES);
  putValue(bytes, at, value, size, format === "bochs");
  return `field ${field} = ${value} (${size} bytes)`;
}

const LOOK = 128 * 1024;

/** Look at a disk; an error of another kind is passed on. */
async function look(
  format: string,
  bytes: Uint8Array<ArrayBuffer>,
  random: Random,
): Promise<void> {
  const file = { driver: "memory", store: storeOf(bytes) };
  try {
    await using image = await openImage({ driver: format, file }, {
      readOnly: true,
      warn: () => {},
    });
    await image.info();
    const { node, size } = image;
    // Of larger disks than 2^53 bytes, offsets of sectors are exact.
    const unit = Number.isSafeInteger(size) ? 1 : 512;
    const places = [0, random.below(Math.max(1, Math.min(size, 2 ** 40)))]
      .concat(Math.max(0, size - LOOK))
      .map((at) => at - at % unit);
    for (const at of places) {
      const length = Math.min(LOOK, size - at);
      if (length <= 0) continue;
      try {
        await image.read(at, length);
      } catch (error) {
        refuseOthers(error);
      }
      for (let offset = at, step = 0; offset < size && step < 50; step++) {
        const extent = await node.status(offset, size - offset);
        assert(extent.length > 0 && offset + extent.length <= size);
        offset += extent.length;
      }
    }
  } catch (error) {
    refuseOthers(error);
  }
}

function refuseOthers(error: unknown): void {
  const isExpected = error instanceof BlockError &&
    !(error instanceof UnexpectedError) && !(error instanceof AbsentVerbError);
  if (!isExpected) throw error;
}

for (const { name, format } of GOLDEN) {
  Deno.test(`hostile images like ${name} are refused or read`, async () => {
    const sample = await bytesOf(name);
    for (const seed of seedsToRun(40)) {
      const random = new Random(seed);
      const bytes = sample.slice();
      const steps = Array.from(
        { length: 1 + random.below(3) },
        () => damage(bytes, format, random),
      );
      const cut = random.below(8) === 0
        ? bytes.slice(0, random.below(bytes.length))
        : bytes;
      try {
        await look(format, cut, random);
      } catch (error) {
        throw new Error(`${name}, seed ${seed}: ${steps.join("; ")}`, {
          cause: error,
        });
      }
    }
  });
}

Deno.test("what zlib, bzip2 and xz have checksums of is right, or not read", async () => {
  for (const name of ["zlib.dmg", "bzip2.dmg", "lzma.dmg", "small.cloop"]) {
    const { format, size } = GOLDEN.find((one) => one.name === name)!;
    const sample = await bytesOf(name);
    const start = format === "cloop" ? 136 + 65 * 8 : 5;
    const end = format === "cloop"
      ? sample.length
      : positionsOf(sample, "<?xml")[0];
    const read = async (bytes: Uint8Array<ArrayBuffer>) => {
      const file = { driver: "memory", store: storeOf(bytes) };
      await using image = await openImage({ driver: format, file }, {
        readOnly: true,
      });
      return await image.read(0, size);
    };
    const content = await read(sample);
    for (const seed of seedsToRun(20)) {
      const random = new Random(seed);
      const bytes = sample.slice();
      bytes[start + random.below(end - start)] ^= 1 << random.below(8);
      const found = await read(bytes).catch((error) => {
        assert(error instanceof BlockError);
        assertEquals(error.code, "EIO");
      });
      if (found) assertEquals(isEqual(found, content), true, `seed ${seed}`);
    }
  }
});

Deno.test("tables that a small file only claims take no memory", async () => {
  const cloop = (await bytesOf("small.cloop")).slice(0, 200);
  putValue(cloop, 132, BigInt(2 ** 26 - 1), 4);
  cloop.fill(0, 136);
  await using image = await openImage({
    driver: "cloop",
    file: { driver: "memory", store: storeOf(cloop) },
  }, { readOnly: true });
  await assertRejects(() => image.read(image.size - 512, 512), BlockError);
  const bochs = (await bytesOf("small.bochs")).slice(0, 700);
  putValue(bochs, 72, 0x100000n, 4, true);
  const file = { driver: "memory", store: storeOf(bochs) };
  await assertRejects(
    () => openImage({ driver: "bochs", file }, { readOnly: true }),
    BlockError,
  );
});
