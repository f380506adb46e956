/**
 * The options of new images, as given by `-o`.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { protocolStack } from "../core/sources.ts";
import {
  newImageOptions,
  optionNames,
  type OptionSpec,
  type OptionTable,
  type OptionValues,
  parseKeyValueList,
  parseOption,
  UnknownOptionError,
} from "../core/options.ts";
import { getDriver, loadDriver, loadFormat } from "../core/registry.ts";
import { integerText } from "./numbers.ts";
import { CommandError, type Program } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";

/** Collects the arguments of several `-o`. */
export class OptionList {
  #text: string | undefined;
  readonly #spelled = new Map<string, string>();

  /** Whether any was given. */
  get isGiven(): boolean {
    return this.#text !== undefined;
  }

  /** Whether one of the options asks for help. */
  get asksForHelp(): boolean {
    return parseKeyValueList(this.#text ?? "").some(([name, value]) =>
      value === "on" && (name === "help" || name === "?")
    );
  }

  /** Add the argument of one `-o`. */
  add(text: string): void {
    const commas = /,*$/.exec(text)![0].length;
    // Joined with commas, these would change the neighbouring options.
    if (text === "" || text.startsWith(",") || commas % 2 === 1) {
      throw new CommandError(`Invalid option list: ${text}`);
    }
    this.#text = this.#text === undefined ? text : `${this.#text},${text}`;
  }

  /**
   * The options by name, for a format. The driver checks values of
   * enumerations, only after the `Formatting …` line has been printed.
   */
  parse(table: OptionTable): OptionValues {
    const values: OptionValues = {};
    for (const [name, value] of parseKeyValueList(this.#text ?? "")) {
      if (!Object.hasOwn(table, name)) {
        throw new UnknownOptionError(name, optionNames(table));
      }
      const spec = table[name];
      this.#spelled.set(name, value);
      values[name] = spec.type === "enum"
        ? value
        : parseOption(name, spec, value);
    }
    return values;
  }

  /** What was written for an option, once it has been parsed. */
  spelling(name: string): string | undefined {
    return this.#spelled.get(name);
  }
}

/**
 * The create options of a format and of the protocol that a file name selects.
 */
export async function createTable(
  format: string,
  filename?: string,
): Promise<{ driver: BlockDriver; table: OptionTable }> {
  const driver = await loadFormat(format);
  const protocol = filename === undefined
    ? undefined
    : await loadDriver(getDriver(protocolStack(filename).driver!));
  if (!driver.createOptions) {
    throw new BlockError(
      "ENOTSUP",
      `Format driver '${format}' does not support image creation`,
    );
  }
  if (protocol && !protocol.create) {
    throw new BlockError(
      "ENOTSUP",
      `Protocol driver '${protocol.name}' does not support image creation`,
    );
  }
  return { driver, table: newImageOptions(driver, protocol) };
}

const TYPE_NAMES: { readonly [type in OptionSpec["type"]]: string } = {
  string: "str",
  enum: "str",
  size: "size",
  number: "num",
  boolean: "bool (on/off)",
};

/** The options of a table, a line each; scripts look for all of QEMU's. */
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
 * @param given What was written, to be printed of flags as it is; absent where
 * people read the line, and sizes have suffixes.
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
    const written = spec.type === "boolean" && given?.spelling(name);
    const text = isSize
      ? sizeText(value as number)
      : valueText(written || value);
    parts.push(`${name}=${text}`);
  }
  return parts.join(" ");
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
      return integerText(value);
    case "boolean":
      return value ? "on" : "off";
    default:
      return String(value).replaceAll(",", ",,");
  }
}
