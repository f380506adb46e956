import { assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../core/errors.ts";
import {
  defaultOptions,
  nestOptions,
  type OptionTable,
  parseKeyValueList,
  parseOption,
  parseOptions,
  parseSize,
} from "../../core/options.ts";
import { OPEN_OPTIONS as HTTP_OPTIONS } from "../../drivers/http/settings.ts";
import { OPEN_OPTIONS as NBD_OPTIONS } from "../../drivers/nbd/options.ts";
import { OPEN_OPTIONS as S3_OPTIONS } from "../../drivers/s3/names.ts";

const TABLE: OptionTable = {
  name: { type: "string", help: "" },
  size: { type: "size", help: "" },
  count: { type: "number", help: "", default: 16 },
  step: { type: "integer", help: "" },
  lazy: { type: "boolean", help: "", default: false },
  compat_mode: { type: "enum", values: ["v2", "v3"], help: "" },
};

Deno.test("parseSize() takes what qemu-img takes", () => {
  const cases: [string, number | undefined][] = [
    ["0", 0],
    ["1234", 1234],
    ["1k", 1024],
    ["1K", 1024],
    ["2M", 2 << 20],
    ["1.5G", 1.5 * 2 ** 30],
    [".5k", undefined],
    ["3T", 3 * 2 ** 40],
    ["1P", 2 ** 50],
    ["100b", 100],
    ["0x10", 16],
    ["0x10k", 16384],
    ["1.0", 1],
    ["", undefined],
    ["k", undefined],
    [".", undefined],
    ["-1", undefined],
    ["1.5", undefined],
    ["1kk", undefined],
    ["1 k", undefined],
    ["ten", undefined],
    ["1e3", undefined],
    ["0x1.8k", undefined],
    ["NaN", undefined],
    ["9223372036854775807", 2 ** 63 - 1024],
    ["9223372036854775808", 2 ** 63],
    ["18446744073709551615", 2 ** 64 - 2048],
  ];
  for (const [text, size] of cases) assertEquals(parseSize(text), size, text);
});

Deno.test("numbers with a range are within it, however they are written", () => {
  const tables = { HTTP_OPTIONS, NBD_OPTIONS, S3_OPTIONS };
  const ranged = Object.entries(tables).flatMap(([table, options]) =>
    Object.entries(options).filter(([, { range }]) => range)
      .map(([name, spec]) => [`${table} ${name}`, spec] as const)
  );
  assertEquals(ranged.length, 6);
  for (const [name, spec] of ranged) {
    const [least, greatest] = spec.range!;
    for (const value of [least, greatest]) {
      assertEquals(parseOption(name, spec, value), value);
      assertEquals(parseOption(name, spec, `${value}`), value);
    }
    const wrong = [least - 1, greatest + 1, 1.5, NaN, 1e300, -(2 ** 64)];
    const texts = ["abc", "", "1e3", "-0x1", "99999999999999999999", true];
    for (const value of [...wrong, ...wrong.map(String), ...texts]) {
      assertThrows(
        () => parseOption(name, spec, value),
        BlockError,
        `expects a number from ${least} to ${greatest}, not `,
      );
    }
  }
});

Deno.test("parseOptions() gives each option its type", () => {
  const parsed = parseOptions(TABLE, {
    name: 5,
    size: "64k",
    count: "0x20",
    lazy: "on",
    compat_mode: "v3",
  });
  assertEquals(parsed, {
    name: "5",
    size: 65536,
    count: 32,
    lazy: true,
    compat_mode: "v3",
  });
  assertEquals(parseOptions(TABLE, { size: undefined }), {});
  const file = { driver: "file" };
  assertEquals(parseOptions(TABLE, { file }, ["file"]), { file });
  assertEquals(defaultOptions(TABLE), { count: 16, lazy: false });
});

Deno.test("parseOptions() refuses what does not fit, in QEMU's words", () => {
  const cases: [string, unknown, string][] = [
    ["other", 1, "Invalid parameter 'other'"],
    ["toString", 1, "Invalid parameter 'toString'"],
    ["__proto__x", 1, "Invalid parameter '__proto__x'"],
    [
      "size",
      "big",
      "Parameter 'size' expects a non-negative number below 2^64, not 'big'",
    ],
    [
      "size",
      -1,
      "Parameter 'size' expects a non-negative number below 2^64, not -1",
    ],
    [
      "size",
      "16E",
      "Value '16E' is out of range for parameter 'size'",
    ],
    [
      "size",
      NaN,
      "Parameter 'size' expects a non-negative number below 2^64, not NaN",
    ],
    ["count", "1k", "Parameter 'count' expects a number, not '1k'"],
    ["count", "", "Parameter 'count' expects a number, not ''"],
    ["count", "8 ", "Parameter 'count' expects a number, not '8 '"],
    ["count", "08", "Parameter 'count' expects a number, not '08'"],
    [
      "step",
      "9223372036854775808",
      "Parameter 'step' expects integer, not '9223372036854775808'",
    ],
    ["step", 1.5, "Parameter 'step' expects integer, not 1.5"],
    ["lazy", "maybe", "Parameter 'lazy' expects 'on' or 'off', not 'maybe'"],
    [
      "compat_mode",
      "v4",
      "Parameter 'compat-mode' does not accept value 'v4'; it must be one of v2, v3",
    ],
  ];
  for (const [name, value, message] of cases) {
    const error = assertThrows(
      () => parseOptions(TABLE, { [name]: value }),
      BlockError,
      message,
    );
    assertEquals([error.code, error.message], ["EINVAL", message]);
  }
});

Deno.test("parseOption() reads booleans in QEMU's four spellings", () => {
  for (const [text, value] of [["on", true], ["off", false]] as const) {
    assertEquals(parseOption("lazy", TABLE.lazy, text), value);
  }
  assertEquals(parseOption("lazy", TABLE.lazy, "true"), true);
  assertEquals(parseOption("lazy", TABLE.lazy, "false"), false);
});

Deno.test("parseKeyValueList() splits at commas that are not doubled", () => {
  const cases: [string, [string, string][]][] = [
    ["a=1,b=2", [["a", "1"], ["b", "2"]]],
    ["a=x,,y,b=,,", [["a", "x,y"], ["b", ","]]],
    ["a=,,,b=1", [["a", ","], ["b", "1"]]],
    ["a=b=c", [["a", "b=c"]]],
    ["lazy,nolazy", [["lazy", "on"], ["lazy", "off"]]],
    ["a=1,", [["a", "1"]]],
    ["", []],
  ];
  for (const [text, pairs] of cases) {
    assertEquals(parseKeyValueList(text), pairs, text);
  }
  assertEquals(parseKeyValueList("disk.img,size=1", "file"), [
    ["file", "disk.img"],
    ["size", "1"],
  ]);
});

Deno.test("nestOptions() makes objects of dotted names", () => {
  assertEquals(
    nestOptions({ "file.driver": "raw", "file.file.filename": "x", size: 1 }),
    { file: { driver: "raw", file: { filename: "x" } }, size: 1 },
  );
});

Deno.test("nestOptions() refuses a name that is both a value and an object", () => {
  for (
    const flat of [
      { file: "x", "file.driver": "raw" },
      { "file.driver": "raw", file: "x" },
      { "a.b": 1, "a.b.c": 2 },
    ]
  ) {
    const error = assertThrows(() => nestOptions(flat), BlockError);
    assertEquals(error.code, "EINVAL");
  }
});

Deno.test("nestOptions() does not touch prototypes", () => {
  const before = Object.keys(Object.prototype).length;
  try {
    nestOptions({ "__proto__.polluted": 1, "constructor.prototype.x": 2 });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
  assertEquals(Object.keys(Object.prototype).length, before);
  assertEquals(({} as { polluted?: number }).polluted, undefined);
});

Deno.test("parseOption() reads integers as C does", () => {
  for (
    const [text, value] of [
      ["7", 7],
      ["+7", 7],
      [" 7", 7],
      ["010", 8],
      ["0x10", 16],
      ["0", 0],
    ] as const
  ) {
    assertEquals(parseOption("count", TABLE.count, text), value);
    assertEquals(parseOption("step", TABLE.step, text), value);
  }
  assertEquals(parseOption("count", TABLE.count, "-1"), 2 ** 64);
  assertEquals(parseOption("step", TABLE.step, "-1"), -1);
  assertEquals(
    parseOption("step", TABLE.step, "-9223372036854775808"),
    -(2 ** 63),
  );
});
