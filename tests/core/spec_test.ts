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

Deno.test("parseFilename() says where json: is malformed, as QEMU does", () => {
  const cases: [string, string][] = [
    ["", "Expecting a JSON value"],
    ["{} {}", "Expecting at most one JSON value"],
    ["{", "1:2: JSON parse error, premature end of input"],
    ['{"a":1', "1:8: JSON parse error, premature end of input"],
    ['{"a":1,}', "1:8: JSON parse error, expecting key"],
    ['{"a" 1}', "1:6: JSON parse error, expecting ':'"],
    ['{\n"a"\n1}', "3:1: JSON parse error, expecting ':'"],
    ['{"é" 1}', "1:7: JSON parse error, expecting ':'"],
    ['{"a":1 "b":2}', "1:8: JSON parse error, expected ',' or '}'"],
    ['{"a":0x10}', "1:8: JSON parse error, expected ',' or '}'"],
    ['{"a":[1 2]}', "1:9: JSON parse error, expected ',' or ']'"],
    ['{"a":[1,]}', "1:9: JSON parse error, expecting value"],
    ['{"a":tru}', "1:6: JSON parse error, invalid keyword 'tru'"],
    ['{"a":TRUE}', "1:6: JSON parse error, stray 'T'"],
    ['{"a":01}', "1:6: JSON parse error, stray '01'"],
    ['{"a":-}', "1:6: JSON parse error, stray '-}'"],
    ["{'a", "1:2: JSON parse error, stray ''a'"],
    ['{"a":1,"a":2}', "1:12: JSON parse error, duplicate key"],
    [
      '{"a":"\\q"}',
      "1:6: JSON parse error, invalid escape sequence in string",
    ],
    [
      '{"a":"\\ud800"}',
      "1:6: JSON parse error, \\ud800 is not a valid Unicode character",
    ],
    ["[".repeat(2000), "JSON nesting depth limit exceeded"],
  ];
  for (const [text, message] of cases) {
    const error = assertThrows(
      () => parseFilename(`json:${text}`),
      BlockError,
    );
    assertEquals(
      error.message,
      `Could not parse the JSON options: ${message}`,
      text,
    );
  }
});

Deno.test("parseFilename() reads all escapes and numbers of json:", () => {
  const text = '{"a":"\\u0041\\ud83d\\ude00\\n\\/","b":[-1.5e2,0],"c":' +
    '9223372036854775807,"d":null,"e":true}';
  assertEquals(parseFilename(`json:${text}`), {
    a: "A\u{1f600}\n/",
    b: [-150, 0],
    c: "9223372036854775807",
    d: null,
    e: true,
  });
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
