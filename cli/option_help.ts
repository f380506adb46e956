/**
 * Showing the options of images: their help, and the `Formatting …` line.
 *
 * @module
 */
import {
  optionNames,
  type OptionSpec,
  type OptionTable,
  type OptionValues,
  parseInteger,
} from "../core/options.ts";
import { createTable, type OptionList } from "./create_options.ts";
import { integerText } from "./numbers.ts";
import type { Program } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";

const TYPE_NAMES: { readonly [type in OptionSpec["type"]]: string } = {
  string: "str",
  enum: "str",
  size: "size",
  number: "num",
  integer: "num",
  boolean: "bool (on/off)",
};

/** The options of a table, one per line; scripts look for all of QEMU's. */
export function optionHelp(program: Program, table: OptionTable): string {
  const names = program.isOurs ? optionNames(table) : Object.keys(table);
  const later = inRelease("laterOptions");
  const listed = names.filter((name) => !later.includes(name));
  const lines = listed.map((name) => {
    const { type, help } = table[name];
    return `  ${name}=<${TYPE_NAMES[type]}>`.padEnd(24) + ` - ${help}\n`;
  });
  return lines.sort().join("");
}

/** Answer `-o help`. */
export async function printCreateHelp(
  program: Program,
  format: string,
  filename: string | undefined,
): Promise<void> {
  const { table } = await createTable(format, filename);
  program.print(
    filename === undefined
      ? `Supported ${format} options:\n`
      : "Supported options:\n",
  );
  program.print(optionHelp(program, table));
  if (filename === undefined) {
    program.print(
      "\nThe protocol level may support further options.\n" +
        "Specify the target filename to include those options.\n",
    );
  }
}

/**
 * The options in the `Formatting …` line: given values and defaults.
 *
 * @param given The values as the user wrote them, for flags; absent if people
 * read the line, and sizes should have suffixes.
 */
export function describeOptions(
  table: OptionTable,
  values: OptionValues,
  given?: Pick<OptionList, "spelling">,
): string {
  const parts: string[] = [];
  for (const [name, spec] of Object.entries(table)) {
    const value = values[name] ?? spec.default;
    if (value === undefined) continue;
    const isSize = !given && spec.type === "size";
    const spelling = given?.spelling(name);
    const text = isSize
      ? sizeText(value as number)
      : spec.type === "boolean"
      ? valueText(spelling || value)
      : valueText(asSigned(spec, value, spelling));
    parts.push(`${name}=${text}`);
  }
  return parts.join(" ");
}

/**
 * A number as QEMU prints it: from 2^63 on as the negative number with the same
 * 64 bits, taken from its spelling where the number is not exact.
 */
function asSigned(
  { type }: OptionSpec,
  value: unknown,
  spelling = "",
): unknown {
  const isLarge = typeof value === "number" && value >= 2 ** 53;
  if (type !== "integer" && !isLarge) return value;
  const exact = parseInteger(spelling) ??
    (isLarge ? BigInt(value) : parseInteger(String(value))!);
  return BigInt.asIntN(64, exact);
}

/** A size with the largest suffix that keeps it a whole number. */
function sizeText(bytes: number): string {
  let exponent = 0;
  while (bytes > 0 && bytes % 1024 === 0 && exponent < SUFFIXES.length - 1) {
    bytes /= 1024;
    exponent++;
  }
  return integerText(bytes) + SUFFIXES[exponent];
}

const SUFFIXES = ["", "k", "M", "G", "T", "P", "E"];

function valueText(value: unknown): string {
  switch (typeof value) {
    case "number":
    case "bigint":
      return integerText(value);
    case "boolean":
      return value ? "on" : "off";
    default:
      return String(value).replaceAll(",", ",,");
  }
}
