/** Input by the page's user. @module */
import { assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../mod.ts";
import { parseBytes, parseOffset } from "../../web/edits.ts";

Deno.test("parseBytes() takes hexadecimal digits and quoted text", () => {
  assertEquals([...parseBytes("55 aa")], [0x55, 0xaa]);
  assertEquals([...parseBytes("55AA0f")], [0x55, 0xaa, 0x0f]);
  assertEquals([...parseBytes(' "5 é" ')], [0x35, 0x20, 0xc3, 0xa9]);
  for (const text of ["", "5", "0x55", "zz", '""', '"open']) {
    assertThrows(() => parseBytes(text), BlockError, "Bytes are pairs");
  }
});

Deno.test("parseOffset() takes decimal and hexadecimal numbers", () => {
  assertEquals(["0", " 512 ", "0x1F"].map(parseOffset), [0, 512, 31]);
  for (const text of ["", "-1", "1.5", "1k", "9007199254740993", "0x"]) {
    assertThrows(() => parseOffset(text), BlockError, "is no offset");
  }
});
