/**
 * The options of new images, as given by `-o`, `-b` and `-F`.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { resolveName } from "../core/names.ts";
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
import { filenameOf, protocolStack } from "../core/sources.ts";
import { CommandError } from "./program.ts";

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
   * enumerations and the range of integers, only after the `Formatting …` line
   * has been printed.
   */
  parse(table: OptionTable): OptionValues {
    const values: OptionValues = {};
    for (const [name, value] of parseKeyValueList(this.#text ?? "")) {
      if (!Object.hasOwn(table, name)) {
        throw new UnknownOptionError(name, optionNames(table));
      }
      const spec = table[name];
      this.#spelled.set(name, value);
      const parsed = spec.type === "enum"
        ? value
        : parseOption(name, asNumber(spec), value);
      values[name] = spec.type === "integer" ? value : parsed;
    }
    return values;
  }

  /** The user's spelling of an option's value, once it has been parsed. */
  spelling(name: string): string | undefined {
    return this.#spelled.get(name);
  }
}

/** An integer's specification, without the range. */
function asNumber(spec: OptionSpec): OptionSpec {
  return spec.type === "integer" ? { ...spec, type: "number" } : spec;
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

/** Add `-b` and `-F`, where given, to the options of a format. */
export function addBackingOptions(
  values: OptionValues,
  table: OptionTable,
  given: { format: string; backingFile?: string; backingFormat?: string },
): void {
  const add = (name: string, value: string | undefined, what: string) => {
    if (value === undefined) return;
    if (!Object.hasOwn(table, name)) {
      throw new BlockError(
        "EINVAL",
        `${what} not supported for file format '${given.format}'`,
      );
    }
    values[name] = value;
  };
  add("backing_file", given.backingFile, "Backing file");
  add("backing_fmt", given.backingFormat, "Backing file format");
}

/** Resolve the name of an image's backing file. */
export function backingName(filename: string, backing: string): string {
  const isDescribed = filename.startsWith("json:");
  const name = isDescribed ? filenameOf(protocolStack(filename)) : filename;
  return resolveName(name, backing);
}
