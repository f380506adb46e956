/** What the formats that are only read refuse, each in its own words. @module */
import { assertEquals, assertRejects } from "@std/assert";
import { decodeAdc } from "../../../drivers/dmg/codecs.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { storeOf } from "../qcow2/bytes.ts";
import { bytesOf } from "./golden.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** Open an image as what it is found to be; answers what was warned of. */
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

/** A copy in which a number of the table of a resource fork is another. */
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

Deno.test("ADC is decoded, as far as it makes sense", () => {
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
  // What follows the last byte of the disk is not looked at.
  assertEquals(decoded(broken.at(-1)!, 10), run);
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

Deno.test("dmg: chunks that cannot be read are warned of", async () => {
  for (
    const [kind, code, what, why] of [
      [
        0x80000007,
        "ENOTSUP",
        "compressed with LZFSE",
        "A part of the disk is compressed with LZFSE, which cannot be read",
      ],
      [
        0x80000009,
        "EIO",
        "of unknown type 80000009",
        "The chunk at 0 has the unknown type 80000009",
      ],
    ] as const
  ) {
    const { image, warnings } = await opened(await withEntry(1, 0, kind));
    await using _ = image;
    assertEquals(warnings, [
      `Image contains chunks ${what}, accessing them will result in I/O errors`,
    ]);
    assertEquals(await refusal(() => image.read(9, 5)), [code, why]);
    // The others can be.
    await image.read(65536, 65536);
  }
});

Deno.test("dmg: parts that no chunk holds, or half of one, are not read", async () => {
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

Deno.test("asif: what nobody has seen is not guessed", async () => {
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
