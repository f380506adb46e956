import { assert } from "@std/assert";
import { isZero, setPortable } from "../../core/runtime.ts";

/** Run a test with what the runtime provides, and without it. */
function bothWays(name: string, test: () => Promise<void> | void): void {
  for (const portable of [false, true]) {
    Deno.test(`${name} (${portable ? "portable" : "native"})`, async () => {
      setPortable(portable);
      try {
        await test();
      } finally {
        setPortable(false);
      }
    });
  }
}

function checkIsZero(): void {
  const whole = new Uint8Array(5000);
  for (const length of [0, 1, 7, 8, 63, 64, 65, 512, 1023, 1024, 4096]) {
    for (const start of [0, 1, 2, 3, 5, 48]) {
      const bytes = whole.subarray(start, start + length);
      whole.fill(0xff);
      bytes.fill(0);
      assert(isZero(bytes), `${length} zero bytes at ${start}`);
      for (let at = 0; at < length; at += length < 100 ? 1 : 37) {
        bytes[at] = 0x80;
        assert(!isZero(bytes), `${length} bytes at ${start}, one at ${at}`);
        bytes[at] = 0;
      }
    }
  }
}

bothWays("isZero() finds every byte that is not", () => {
  checkIsZero();
  // After this much, a runtime's own comparison is used.
  const zeroes = new Uint8Array(1 << 20);
  for (let i = 0; i < 80; i++) assert(isZero(zeroes));
  checkIsZero();
});

Deno.test("isZero() takes shared memory", () => {
  const bytes = new Uint8Array(new SharedArrayBuffer(8192)).subarray(3);
  assert(isZero(bytes));
  bytes[5000] = 1;
  assert(!isZero(bytes));
});
