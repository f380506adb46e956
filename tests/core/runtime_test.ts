import { assert } from "@std/assert";
import { hasher } from "../../core/crypto/hashes.ts";
import { giveWay, isEqual, isZero } from "../../core/runtime.ts";
import { setPortable } from "../platforms.ts";

/**
 * Run a test with the system's libraries, without them, and with no help at
 * all.
 */
function allWays(name: string, test: () => Promise<void> | void): void {
  const ways = { libraries: false, modules: "libraries", portable: true };
  for (const [way, portable] of Object.entries(ways)) {
    Deno.test(`${name} (${way})`, async () => {
      setPortable(portable as boolean | "libraries");
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

allWays("isZero() finds any nonzero byte", () => {
  checkIsZero();
  // From this length on, a runtime's own comparison is used.
  const zeroes = new Uint8Array(1 << 20);
  for (let i = 0; i < 80; i++) assert(isZero(zeroes));
  checkIsZero();
});

function checkIsEqual(): void {
  const [wholeA, wholeB] = [new Uint8Array(5000), new Uint8Array(5000)];
  for (const length of [0, 1, 7, 63, 64, 65, 512, 4096]) {
    for (const [inA, inB] of [[0, 0], [4, 8], [1, 1], [1, 2], [48, 3]]) {
      const a = wholeA.subarray(inA, inA + length);
      const b = wholeB.subarray(inB, inB + length);
      wholeA.fill(1);
      wholeB.fill(2);
      for (let i = 0; i < length; i++) a[i] = b[i] = i % 251;
      assert(isEqual(a, b), `${length} bytes at ${inA} and ${inB}`);
      for (let at = 0; at < length; at += length < 100 ? 1 : 61) {
        b[at] ^= 1;
        assert(!isEqual(a, b), `byte ${at} of ${length}`);
        b[at] ^= 1;
      }
    }
  }
}

allWays("isEqual() finds any differing byte", () => {
  checkIsEqual();
  // From this length on, a native comparison is used.
  const [a, b] = [new Uint8Array(1 << 20), new Uint8Array(1 << 20)];
  for (let i = 0; i < 80; i++) assert(isEqual(a, b));
  checkIsEqual();
});

Deno.test("isZero() takes shared memory", () => {
  const bytes = new Uint8Array(new SharedArrayBuffer(8192)).subarray(3);
  assert(isZero(bytes));
  bytes[5000] = 1;
  assert(!isZero(bytes));
});

Deno.test("giveWay() lets timers run", async () => {
  let fired = 0;
  const timer = setInterval(() => fired++, 1);
  const digest = hasher("sha256");
  // Work in slices, as deriving keys does.
  for (let turn = 0; turn < 40; turn++) {
    for (let i = 0; i < 100; i++) await digest(new Uint8Array(36));
    await giveWay();
  }
  clearInterval(timer);
  assert(fired > 5, `${fired} times`);
});
