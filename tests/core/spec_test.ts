import { assertEquals, assertThrows } from "@std/assert";
import "../../mod.ts";
import { BlockError } from "../../core/errors.ts";
import { parseFilename, parseStack } from "../../core/spec.ts";

Deno.test("parseFilename() leaves a plain name to be probed", () => {
  for (const name of ["disk.img", "/a/b:c", "./odd:name"]) {
    assertEquals(parseFilename(name), { filename: name });
  }
});

Deno.test("parseFilename() nests the dotted names of json: at every level", () => {
  assertEquals(
    parseFilename('json:{"file":{"driver":"x","image.filename":"a"}}'),
    { file: { driver: "x", image: { filename: "a" } } },
  );
});

Deno.test("parseFilename() reads json: with strings in single quotes", () => {
  assertEquals(
    parseFilename(`json:{'driver': 'raw', "file.filename": 'it\\'s "a"\\n'}`),
    { driver: "raw", file: { filename: 'it\'s "a"\n' } },
  );
});

Deno.test("parseFilename() reads json:", () => {
  assertEquals(
    parseFilename('json:{"driver":"raw","file":{"filename":"a"}}'),
    { driver: "raw", file: { filename: "a" } },
  );
  assertEquals(
    parseFilename('json:{"driver":"raw","file.filename":"a","size":512}'),
    { driver: "raw", file: { filename: "a" }, size: 512 },
  );
});

Deno.test("parseFilename() reads driver prefixes", () => {
  assertEquals(parseFilename("file:a b.img"), {
    driver: "file",
    filename: "a b.img",
  });
  assertEquals(parseFilename("raw:a.img"), { driver: "raw", file: "a.img" });
  assertEquals(parseFilename("memory:"), { driver: "memory" });
});

Deno.test("parseFilename() refuses what it cannot read", () => {
  const cases: [string, string][] = [
    ["json:{", "Could not parse the JSON options"],
    ["json:[]", "Invalid JSON object given"],
    ["json:null", "Invalid JSON object given"],
    ["json:1", "Invalid JSON object given"],
    ["nosuch:x", "Unknown protocol 'nosuch'"],
    ['json:{"a":1,"a.b":2}', "Cannot mix scalar and non-scalar keys"],
  ];
  for (const [name, message] of cases) {
    const error = assertThrows(() => parseFilename(name), BlockError, message);
    assertEquals(error.code, "EINVAL");
  }
});

Deno.test("parseStack() reads options in the form of --image-opts", () => {
  assertEquals(
    parseStack(
      "driver=qcow2,file.driver=file,file.filename=a,,b,backing.driver=null",
    ),
    {
      driver: "qcow2",
      file: { driver: "file", filename: "a,b" },
      backing: { driver: "null" },
    },
  );
});
