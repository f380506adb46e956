/** What the read-only formats refuse, each in its own words. @module */
import { assertEquals, assertRejects } from "@std/assert";
import { decodeAdc } from "../../../drivers/dmg/codecs.ts";
import { decodeLzfse } from "../../../drivers/dmg/lzfse.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { storeOf } from "../qcow2/bytes.ts";
import { Random, seedsToRun } from "../../model.ts";
import { bytesOf } from "./golden.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** Open an image in its probed format; returns the warnings. */
async function opened(bytes: Bytes, format?: string) {
  const warnings: string[] = [];
  const file = { driver: "memory", store: storeOf(bytes) };
  const image = await openImage({ file }, {
    format,
    readOnly: true,
    warn: (message) => warnings.push(message),
  });
  return { image, warnings };
}

async function refusal(act: () => Promise<unknown>) {
  const { code, message } = await assertRejects(act, BlockError);
  return [code, message.replace(/^Could not open '.*?': /, "")];
}

/** A copy in which one number of a resource fork's table is changed. */
async function withEntry(
  entry: number,
  field: number,
  value: number,
): Promise<Bytes> {
  const bytes = await bytesOf("fork.dmg");
  const text = new TextDecoder("latin1").decode(bytes);
  const at = text.indexOf("mish") + 204 + 40 * entry + field;
  new DataView(bytes.buffer).setUint32(at, value);
  return bytes;
}

Deno.test("ADC is decoded as far as it makes sense", () => {
  const decoded = (stored: number[], length: number) => {
    const target = new Uint8Array(length);
    return decodeAdc(Uint8Array.from(stored), target) && [...target];
  };
  const run = Array(10).fill(7);
  assertEquals(decoded([0x80, 7, 0x18, 0], 10), run);
  assertEquals(decoded([0x80, 7, 0x45, 0, 0], 10), run);
  assertEquals(decoded([0x82, 1, 2, 3, 0x00, 2], 6), [1, 2, 3, 1, 2, 3]);
  assertEquals(decoded([], 0), []);
  const broken = [
    [0x82, 1, 2],
    [0x80, 7, 0x18],
    [0x80, 7, 0x45, 0],
    [0x80, 7, 0x18, 1],
    [0x80, 7, 0x1c, 0],
    [0x80, 7],
    [0x18, 0],
    [0x89, ...run, 0x18],
  ];
  for (const stored of broken.slice(0, -1)) {
    assertEquals(decoded(stored, 10), false, stored.join(" "));
  }
  // Input behind the last byte of the disk is ignored.
  assertEquals(decoded(broken.at(-1)!, 10), run);
});

/** A block of LZVN whose output has so many bytes, and the end marker. */
function lzvn(size: number, instructions: number[]): Bytes {
  const head = new Uint32Array([0x6e787662, size, instructions.length]);
  const end = new TextEncoder().encode("bvx$");
  return Uint8Array.of(...new Uint8Array(head.buffer), ...instructions, ...end);
}

Deno.test("LZVN is decoded as far as it makes sense", () => {
  const decoded = (instructions: number[], size: number) => {
    const target = new Uint8Array(size);
    return decodeLzfse(lzvn(size, instructions), target) && [...target];
  };
  const end = [6, 0, 0, 0, 0, 0, 0, 0];
  const run = Array(10).fill(7);
  const forms: [instructions: number[], expected: number[]][] = [
    [[0xe2, 7, 8], [7, 8]],
    [[0xe0, 0, ...Array(16).fill(7)], Array(16).fill(7)],
    [[0xe1, 7, 0x30, 1], run],
    [[0xe1, 7, 0xa1, 6, 0], run],
    [[0xe1, 7, 0x37, 1, 0], run],
    [[0xe1, 7, 0x0e, 0x16, 0x00, 1, 0x46, 7, 0xf2], run],
    [[0xe1, 7, 0x00, 1, 0xf0, 0], Array(20).fill(7)],
    [[0xe3, 1, 2, 3, 0x00, 3], [1, 2, 3, 1, 2, 3]],
  ];
  for (const [instructions, expected] of forms) {
    const text = instructions.join(" ");
    assertEquals(
      decoded([...instructions, ...end], expected.length),
      expected,
      text,
    );
    // A block with another size, without an end, or truncated is invalid.
    const { length } = expected;
    assertEquals(decoded([...instructions, ...end], length - 1), false, text);
    assertEquals(decoded([...instructions, ...end], length + 1), false, text);
    assertEquals(decoded(instructions, length), false, text);
  }
  const broken = [[0x30, 1], [0xe1, 7, 0x00, 2], [0xe1, 7, 0x00, 0], [0xf3]]
    .concat([[0xe1, 7, 0x70], [0xe1, 7, 0xd0], [0xe1, 7, 0x1e], [0xe9]]);
  for (const instructions of broken) {
    assertEquals(decoded([...instructions, ...end], 10), false);
  }
});

Deno.test("any LZFSE stream is decoded, or refused", async () => {
  const stored = (await bytesOf("lzfse-blocks.dmg")).subarray(5);
  const size = 131_072;
  const whole = new Uint8Array(size);
  assertEquals(decodeLzfse(stored, whole), true);
  assertEquals(decodeLzfse(stored, new Uint8Array(size - 1)), false);
  assertEquals(decodeLzfse(stored, new Uint8Array(size + 1)), false);
  const end = new TextDecoder("latin1").decode(stored).indexOf("bvx$");
  const target = new Uint8Array(size);
  for (const seed of seedsToRun(200)) {
    const random = new Random(seed);
    const bytes = stored.slice(
      0,
      random.below(4) ? end + 4 : random.below(end),
    );
    for (let left = 1 + random.below(3); left > 0 && bytes.length; left--) {
      // Mostly in the header of the first block.
      const most = random.below(3) ? Math.min(200, bytes.length) : bytes.length;
      bytes[random.below(most)] = random.below(256);
    }
    assertEquals(typeof decodeLzfse(bytes, target), "boolean", `seed ${seed}`);
  }
});

Deno.test("dmg: encrypted and split images are refused", async () => {
  const encrypted = new Uint8Array(4096);
  encrypted.set(new TextEncoder().encode("encrcdsa"));
  assertEquals(await refusal(() => opened(encrypted)), [
    "ENOTSUP",
    "Encrypted dmg files cannot be read",
  ]);
  const split = await bytesOf("zlib.dmg");
  new DataView(split.buffer).setUint32(split.length - 512 + 60, 3);
  assertEquals(await refusal(() => opened(split)), [
    "ENOTSUP",
    "This is one of 3 files that an image was split into, which cannot be read",
  ]);
});

Deno.test("dmg: chunks that cannot be read give a warning", async () => {
  const { image, warnings } = await opened(await withEntry(1, 0, 0x80000009));
  await using _ = image;
  assertEquals(warnings, [
    "Image contains chunks of unknown type 80000009, " +
    "accessing them will result in I/O errors",
  ]);
  assertEquals(await refusal(() => image.read(9, 5)), [
    "EIO",
    "The chunk at 0 has the unknown type 80000009",
  ]);
  // The other chunks can be read.
  await image.read(65536, 65536);
});

Deno.test("dmg: ranges without a chunk, or with a truncated one, are errors", async () => {
  const gap = (await opened(await withEntry(1, 20, 100))).image;
  await gap.read(0, 100 * 512).catch(() => {});
  assertEquals(await refusal(() => gap.read(51_200, 1)), [
    "EIO",
    "No chunk holds what is at 51200",
  ]);
  await gap.close();
  const short = (await opened(await withEntry(1, 0, 1))).image;
  assertEquals(await refusal(() => short.read(0, 1)), [
    "EIO",
    "The chunk at 0 is cut off",
  ]);
  await short.close();
  assertEquals(
    (await refusal(async () => await opened(await withEntry(2, 12, 127))))[1],
    "Invalid argument: chunks overlap at 65024",
  );
});

Deno.test("asif: unknown values are refused, not guessed", async () => {
  // The second chunk of the disk is at 32768 + 8; the states are at 65536.
  const cases: [at: number, value: number, code: string, message: string][] = [
    [32768, 0x80, "ENOTSUP", "Unknown state 2 of the chunk at 0"],
    [32768, 0x00, "ENOTSUP", "Unknown state 0 of the chunk at 0"],
    [
      32768 + 5,
      0x40,
      "EIO",
      "A chunk goes past the end of the file at 137439051776",
    ],
  ];
  for (const [at, value, ...expected] of cases) {
    const bytes = await bytesOf("small.asif");
    bytes[at] = value;
    const { image } = await opened(bytes);
    assertEquals(await refusal(() => image.read(0, 1)), expected);
    await image.close();
  }
  const version = await bytesOf("small.asif");
  version[7] = 2;
  assertEquals(await refusal(() => opened(version)), [
    "ENOTSUP",
    "Unsupported ASIF version 2",
  ]);
});

Deno.test("other types of Bochs's images, other versions of cloop, are named", async () => {
  const bochs = await bytesOf("small.bochs");
  bochs.set(new TextEncoder().encode("Undoable\0"), 48);
  assertEquals(await refusal(() => opened(bochs)), [
    "EINVAL",
    "Image not in Bochs format",
  ]);
  const cloop = await bytesOf("small.cloop");
  cloop[12] = "1".charCodeAt(0);
  assertEquals(await refusal(() => opened(cloop)), [
    "ENOTSUP",
    "Unsupported cloop version 1.0",
  ]);
});
