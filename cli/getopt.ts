/**
 * Options on the command line, by the rules of GNU `getopt_long`: options and
 * operands in any order up to `--`, short options bundled (`-qp`), arguments
 * attached or following (`-Oqcow2`, `-O qcow2`, `--output=json`), and long
 * names cut short where only one fits.
 *
 * @module
 */
import { usageError } from "./program.ts";

/** One option that a command accepts. */
export interface OptionSpec {
  /** The letter of `-f`. */
  readonly short?: string;
  /** The name of `--format`. */
  readonly long?: string;
  /** What its argument is called in the help; without it, it takes none. */
  readonly argument?: string;
  /** What it does, for the help. */
  readonly help: string;
}

/** An option as it was found: its letter, or its long name if it has none. */
export type FoundOption = [name: string, argument: string];

/** Arguments of a command, taken apart one by one. */
export class OptionParser {
  /** The arguments that are not options. Complete when all were parsed. */
  readonly operands: string[] = [];
  readonly #specs: readonly OptionSpec[];
  readonly #args: readonly string[];
  #at = 0;
  /** The element that stands before the current one once options are sorted. */
  #lastOption: string;

  /** `command` is the name that stands before `args`. */
  constructor(
    specs: readonly OptionSpec[],
    command: string,
    args: readonly string[],
  ) {
    this.#specs = specs;
    this.#args = args;
    this.#lastOption = command;
  }

  /**
   * The options in their order, to be acted upon while the next is not yet
   * looked at: the first mistake is the one that is reported.
   */
  *parse(): Generator<FoundOption> {
    while (this.#at < this.#args.length) {
      const arg = this.#args[this.#at++];
      if (arg === "--") {
        this.operands.push(...this.#args.slice(this.#at));
        return;
      }
      if (!arg.startsWith("-") || arg === "-") {
        this.operands.push(arg);
      } else if (arg.startsWith("--")) {
        yield this.#long(arg);
      } else {
        yield* this.#bundle(arg);
      }
    }
  }

  #long(arg: string): FoundOption {
    const equals = arg.indexOf("=");
    const name = arg.slice(2, equals < 0 ? undefined : equals);
    const spec = this.#findLong(name);
    if (!spec || (!spec.argument && equals >= 0)) throw unrecognized(arg);
    const attached = equals < 0 ? undefined : arg.slice(equals + 1);
    return this.#found(spec, arg, attached);
  }

  #findLong(name: string): OptionSpec | undefined {
    const fitting = this.#specs.filter((spec) => spec.long?.startsWith(name));
    const exact = fitting.find((spec) => spec.long === name);
    return exact ?? (fitting.length === 1 ? fitting[0] : undefined);
  }

  *#bundle(arg: string): Generator<FoundOption> {
    for (let i = 1; i < arg.length; i++) {
      const spec = this.#specs.find((spec) => spec.short === arg[i]);
      if (!spec) {
        // Inside a bundle, getopt has not passed the element yet, and the
        // programs name the one before it.
        const before = this.operands.at(-1) ?? this.#lastOption;
        throw unrecognized(i < arg.length - 1 ? before : arg);
      }
      if (spec.argument) {
        yield this.#found(spec, arg, arg.slice(i + 1) || undefined);
        return;
      }
      yield [spec.short!, ""];
    }
    this.#lastOption = arg;
  }

  #found(
    spec: OptionSpec,
    arg: string,
    attached: string | undefined,
  ): FoundOption {
    const name = spec.short ?? spec.long!;
    this.#lastOption = arg;
    if (!spec.argument) return [name, ""];
    if (attached === undefined) {
      if (this.#at === this.#args.length) throw missingArgument(arg);
      attached = this.#args[this.#at++];
      this.#lastOption = attached;
    }
    return [name, attached];
  }
}

function unrecognized(option: string): Error {
  return usageError(`unrecognized option '${option}'`);
}

function missingArgument(option: string): Error {
  return usageError(`missing argument for option '${option}'`);
}
