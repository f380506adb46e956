import { assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../core/errors.ts";
import { parseSharedKeys } from "../../core/shared_keys.ts";

Deno.test("parseSharedKeys() reads what psktool writes", () => {
  const text = "alice:00fF\r\n\nbob smith:0a \n#6c:c3a9:01\n#c3a9:02\nalice:03";
  assertThrows(() => parseSharedKeys(text), BlockError, "Line 4 is not");
  const keys = parseSharedKeys(text.replace("#6c:c3a9:01\n", ""));
  assertEquals([...keys], [
    ["alice", Uint8Array.of(0, 255)],
    ["bob smith", Uint8Array.of(10)],
    ["é", Uint8Array.of(2)],
  ]);
  assertEquals(parseSharedKeys("").size, 0);
});

Deno.test("parseSharedKeys() refuses other lines, and repeats no secret", () => {
  const long = "a".repeat(257);
  const bad = ["secret", ":00", "a:", "a:0", "a:secret", "#zz:00", "#:00"];
  for (const line of [...bad, `${long}:00`, `a:${"00".repeat(513)}`]) {
    assertThrows(
      () => parseSharedKeys(`alice:00\n${line}\n`),
      BlockError,
      "Line 2 is not a user's name, ':', and a key",
    );
  }
});
