import { assert, assertEquals } from "@std/assert";
import { inflateExactly } from "../../core/inflate.ts";
import { nativeZlib } from "../../core/zlib_workers.ts";

/** Bytes of several kinds: random ones, few values, long repetitions. */
function samples(): Uint8Array[] {
  return [1, 5, 300, 4096, 70_000].flatMap((length) =>
    [256, 3, 1].map((values) => {
      const bytes = new Uint8Array(length);
      for (let i = 0; i < length; i++) {
        bytes[i] = Math.floor(Math.random() * values) + (i % 97 === 0 ? 1 : 0);
      }
      return bytes;
    })
  );
}

/** Each sample, deflated in many ways. */
function* streams(): Generator<[plain: Uint8Array, stream: Uint8Array]> {
  const zlib = nativeZlib()!;
  for (const plain of samples()) {
    for (const level of [0, 1, 6, 9]) {
      // Huffman codes only, runs only, fixed codes.
      for (const strategy of [0, 2, 3, 4]) {
        const options = { level, strategy, windowBits: 12 };
        yield [plain, zlib.deflateRawSync(plain, options)];
      }
    }
  }
}

function inflated(stream: Uint8Array, length: number): Uint8Array | undefined {
  const target = new Uint8Array(length);
  return inflateExactly(stream, target) ? target : undefined;
}

Deno.test("inflateExactly() restores what was deflated", () => {
  for (const [plain, stream] of streams()) {
    assertEquals(inflated(stream, plain.length), plain);
  }
});

Deno.test("inflateExactly() stops where the target is full", () => {
  for (const [plain, stream] of streams()) {
    const half = Math.ceil(plain.length / 2);
    assertEquals(inflated(stream, half), plain.subarray(0, half));
    assertEquals(inflated(stream, plain.length + 1), undefined);
  }
});

Deno.test("inflateExactly() needs no input beyond what fills the target", () => {
  const plain = new Uint8Array(5000).fill(7);
  const zlib = nativeZlib()!;
  const { Z_SYNC_FLUSH } = zlib.constants;
  // Without the end-of-block code, and then with anything that begins like a
  // literal.
  const open = zlib.deflateRawSync(plain, { finishFlush: Z_SYNC_FLUSH });
  assertEquals(inflated(open, 5000), plain);
  const closed = zlib.deflateRawSync(plain, {});
  for (const filling of [0, 0x55, 0xff]) {
    const padded = new Uint8Array(closed.length + 100).fill(filling);
    padded.set(closed);
    assertEquals(inflated(padded, 5000), plain);
  }
  let shortest = closed.length;
  while (inflated(closed.subarray(0, shortest - 1), 5000)) shortest--;
  assert(shortest > 0);
});

Deno.test("inflateExactly() refuses broken streams", () => {
  const inputs: number[][] = [
    [],
    [0x07], // The reserved block type.
    [0x01, 0x01, 0x00, 0x00, 0x00, 0x41], // A length that its complement contradicts.
    [0x03, 0x00], // An empty stream.
    [0x03, 0x02], // A distance that reaches before the start.
    [0x05, 0xe0, 0x81, 0x08, 0x00, 0x00, 0x00, 0x00, 0x20, 0x7f, 0xeb, 0x0b],
  ];
  for (const input of inputs) {
    assertEquals(inflated(new Uint8Array(input), 10), undefined);
  }
  for (let i = 0; i < 2000; i++) {
    const bytes = crypto.getRandomValues(new Uint8Array(60));
    inflated(bytes, 5000);
  }
});
