import { assertEquals } from "@std/assert";
import { dataEnd, zeroEnd } from "../../../core/jobs/zero_runs.ts";

/** A buffer in units of 512 bytes: `.` is zero, anything else data. */
function sectors(pattern: string): Uint8Array {
  const bytes = new Uint8Array(pattern.length * 512);
  for (let i = 0; i < pattern.length; i++) {
    // The last byte, so that checking the first is not enough.
    if (pattern[i] !== ".") bytes[i * 512 + 511] = 1;
  }
  return bytes;
}

/** What is written (`x`) and what is left out (`.`), as `convert` does it. */
function runs(
  pattern: string,
  minimum: number,
  alignment: number,
  offset = 0,
): string {
  const bytes = sectors(pattern);
  let text = "";
  for (let at = 0; at < bytes.length;) {
    const zeroes = zeroEnd(
      bytes,
      at,
      bytes.length,
      offset * 512,
      alignment * 512,
    );
    text += ".".repeat((zeroes - at) / 512);
    const end = dataEnd(bytes, zeroes, bytes.length, offset * 512, {
      minimum: minimum * 512,
      alignment: alignment * 512,
    });
    text += "x".repeat((end - zeroes) / 512);
    at = end;
  }
  return text;
}

Deno.test("runs of zeroes are left out sector by sector if so configured", () => {
  assertEquals(runs("x..xx.x", 1, 1), "x..xx.x");
});

Deno.test("runs of zeroes begin and end on aligned blocks", () => {
  assertEquals(runs("x.......x.......", 4, 4), "xxxx....xxxx....");
  assertEquals(runs("...x............", 4, 4), "xxxx............");
  assertEquals(runs(".....x..........", 4, 4), "....xxxx........");
});

Deno.test("blocks are aligned on the disk, not in the buffer", () => {
  assertEquals(runs("..x.....x", 4, 4, 2), "..xxxxxxx");
  assertEquals(runs("..x.......", 4, 4, 2), "..xxxx....");
});

Deno.test("short runs of zeroes between data are written", () => {
  assertEquals(runs("x..x....x", 3, 1), "xxxx....x");
});

Deno.test("runs of zeroes at both ends are left out, however short", () => {
  assertEquals(runs(".x..x.", 3, 1), ".xxxx.");
});

Deno.test("a buffer of only data or only zeroes is one run", () => {
  assertEquals(runs("........", 4, 4), "........");
  assertEquals(runs("xxxxxxxx", 4, 4), "xxxxxxxx");
});
