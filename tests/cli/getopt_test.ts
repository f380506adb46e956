import { assertEquals, assertThrows } from "@std/assert";
import { OptionParser, type OptionSpec } from "../../cli/getopt.ts";
import { CommandError } from "../../cli/program.ts";

const SPECS: OptionSpec[] = [
  { short: "f", long: "format", argument: "FMT", help: "" },
  { short: "q", help: "" },
  { short: "p", help: "" },
  { long: "image-opts", help: "" },
  { long: "output", argument: "FMT", help: "" },
  { long: "object", argument: "OBJ", help: "" },
];

function parse(...args: string[]) {
  const parser = new OptionParser(SPECS, "info", args);
  return { options: [...parser.parse()], operands: parser.operands };
}

function message(...args: string[]): string {
  return assertThrows(() => parse(...args), CommandError).message;
}

Deno.test("OptionParser finds options before and after operands", () => {
  assertEquals(parse("a", "-q", "b", "-f", "raw", "c"), {
    options: [["q", ""], ["f", "raw"]],
    operands: ["a", "b", "c"],
  });
});

Deno.test("OptionParser splits bundled options", () => {
  assertEquals(parse("-qp").options, [["q", ""], ["p", ""]]);
  assertEquals(parse("-qfraw").options, [["q", ""], ["f", "raw"]]);
  assertEquals(parse("-qf", "raw").options, [["q", ""], ["f", "raw"]]);
});

Deno.test("OptionParser accepts attached and separate arguments", () => {
  assertEquals(parse("--output=json").options, [["output", "json"]]);
  assertEquals(parse("--output", "json").options, [["output", "json"]]);
  assertEquals(parse("--output=").options, [["output", ""]]);
  assertEquals(parse("-f", "--output").options, [["f", "--output"]]);
});

Deno.test("OptionParser accepts unambiguous prefixes of long names", () => {
  assertEquals(parse("--form", "raw").options, [["f", "raw"]]);
  assertEquals(parse("--im").options, [["image-opts", ""]]);
  assertEquals(message("--o", "x"), "unrecognized option '--o'");
});

Deno.test("OptionParser leaves what follows -- and a lone - alone", () => {
  assertEquals(parse("-", "--", "-q", "-Z"), {
    options: [],
    operands: ["-", "-q", "-Z"],
  });
});

Deno.test("OptionParser names the option that it does not know", () => {
  assertEquals(message("-Z"), "unrecognized option '-Z'");
  assertEquals(message("-qZ"), "unrecognized option '-qZ'");
  assertEquals(message("--foo=1"), "unrecognized option '--foo=1'");
  assertEquals(
    message("--image-opts=1"),
    "unrecognized option '--image-opts=1'",
  );
});

Deno.test("OptionParser names the element before a bundle, as getopt does", () => {
  assertEquals(message("-Zq"), "unrecognized option 'info'");
  assertEquals(message("file", "-Zq"), "unrecognized option 'file'");
  assertEquals(message("-f", "raw", "-Zq"), "unrecognized option 'raw'");
  assertEquals(message("file", "-q", "-Zq"), "unrecognized option 'file'");
});

Deno.test("OptionParser names the option whose argument is missing", () => {
  assertEquals(message("-f"), "missing argument for option '-f'");
  assertEquals(message("-qf"), "missing argument for option '-qf'");
  assertEquals(message("--output"), "missing argument for option '--output'");
});
