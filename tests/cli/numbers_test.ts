import { assertEquals, assertThrows } from "@std/assert";
import { humanSize, integerText, sizeArgument } from "../../cli/numbers.ts";
import { fixed } from "../../core/values.ts";
import { CommandError } from "../../cli/program.ts";

Deno.test("humanSize() shows three digits, and switches units at 1000", () => {
  const cases: [number, string][] = [
    [0, "0 B"],
    [1, "1 B"],
    [999, "999 B"],
    [1000, "0.977 KiB"],
    [1024, "1 KiB"],
    [1152, "1.12 KiB"], // A tie: 1.125 goes to the even digit.
    [1536, "1.5 KiB"],
    [200704, "196 KiB"],
    [1023 * 1024, "0.999 MiB"],
    [64 * 1024 ** 2, "64 MiB"],
    [1.5 * 1024 ** 4, "1.5 TiB"],
    [2 ** 53, "8 PiB"],
    [7 * 1024 ** 6, "7 EiB"],
  ];
  for (const [bytes, text] of cases) assertEquals(humanSize(bytes), text);
});

Deno.test("fixed() rounds ties to even, as C does", () => {
  assertEquals(fixed(0.125, 2), "0.12");
  assertEquals(fixed(0.375, 2), "0.38");
  assertEquals(fixed(12.5, 0), "12");
  assertEquals(fixed(100, 2), "100.00");
  assertEquals(fixed(1 / 3, 2), "0.33");
});

Deno.test("integerText() prints all digits", () => {
  assertEquals(integerText(7 * 1024 ** 6), "8070450532247928832");
});

Deno.test("sizeArgument() accepts suffixes and fractions", () => {
  assertEquals(sizeArgument("x", "1.5k"), 1536);
  assertEquals(sizeArgument("x", "0x200"), 512);
  assertEquals(sizeArgument("x", "10G"), 10 * 1024 ** 3);
});

Deno.test("sizeArgument() refuses anything else", () => {
  for (const text of ["", "x", "1x", "1.5", "-1", "1 k"]) {
    assertThrows(() => sizeArgument("x", text), CommandError, "Invalid x");
  }
  assertThrows(() => sizeArgument("x", "8E"), CommandError, "between 0 and");
});
