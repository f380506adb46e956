import { assertEquals } from "@std/assert";
import { prettyJson } from "../../cli/json.ts";
import { compactJson, inKeyOrder } from "../../core/json.ts";

function order(...names: string[]): string[] {
  const object = Object.fromEntries(names.map((name) => [name, 1]));
  return inKeyOrder(object).map(([name]) => name);
}

Deno.test("inKeyOrder() sorts keys as qemu-img info does", () => {
  const expected = [
    "backing-image",
    "compressed",
    "backing-filename-format",
    "snapshots",
    "virtual-size",
    "filename",
    "cluster-size",
    "format",
    "actual-size",
    "format-specific",
    "full-backing-filename",
    "encrypted",
    "backing-filename",
    "dirty-flag",
  ];
  assertEquals(order(...expected.toSorted()), expected);
});

Deno.test("inKeyOrder() sorts qcow2's own data as QEMU does", () => {
  const expected = [
    "compat",
    "compression-type",
    "lazy-refcounts",
    "bitmaps",
    "refcount-bits",
    "data-file",
    "encrypt",
    "data-file-raw",
    "corrupt",
    "extended-l2",
  ];
  assertEquals(order(...expected.toSorted()), expected);
});

Deno.test("prettyJson() indents by four spaces", () => {
  assertEquals(
    prettyJson({ b: [1, true], a: undefined, c: {} }),
    '{\n    "b": [\n        1,\n        true\n    ],\n    "c": {\n    }\n}',
  );
});

Deno.test("prettyJson() escapes everything but plain ASCII", () => {
  assertEquals(
    prettyJson('é"\n\\u00e9\x01'),
    '"\\u00E9\\"\\n\\\\u00e9\\u0001"',
  );
  assertEquals(prettyJson("💾"), '"\\uD83D\\uDCBE"');
});

Deno.test("prettyJson() prints all digits of large numbers", () => {
  assertEquals(prettyJson(2 ** 60), "1152921504606846976");
});

Deno.test("compactJson() stays on one line", () => {
  assertEquals(
    compactJson({ offset: 512, driver: "raw" }),
    '{"offset": 512, "driver": "raw"}',
  );
});
