/**
 * Whatever is done to the bytes of an image of a read-only format, the worst
 * result is a `BlockError`, and no memory is taken that the file does not
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
import { damage, positionsOf, putValue } from "./damage.ts";
import { bytesOf, GOLDEN } from "./golden.ts";

const LOOK = 128 * 1024;

/** Read a disk; errors of other kinds are passed on. */
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
    // On disks larger than 2^53 bytes, only offsets of sectors are exact.
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

Deno.test("data with checksums of zlib, bzip2 and xz is right, or an error", async () => {
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

Deno.test("tables that a small file merely claims take no memory", async () => {
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
