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
  /** Another letter that stands for the same. */
  readonly alias?: string;
  /** The name of `--format`. */
  readonly long?: string;
  /** What its argument is called in the help; without it, it takes none. */
  readonly argument?: string;
  /** Whether that may be left out; then it is given only as `--name=argument`. */
  readonly optional?: boolean;
  /** What it does, for the help. */
  readonly help: string;
}

/** An option as it was found: its letter, or its long name if it has none. */
export type FoundOption = [name: string, argument: string];

/** What is wrong with an option. */
export interface Mistake {
  readonly kind: "unknown" | "ambiguous" | "missing" | "unwanted";
  /** The argument that is to blame; before it, if it is in the midst of one. */
  readonly element: string;
  /** The letter, or `--` and the long name. */
  readonly option: string;
  /** The long options that it may stand for. */
  readonly candidates?: readonly string[];
}

/** Tells a mistake as a program does. */
export type Complaint = (mistake: Mistake) => Error;

/** As `qemu-img` tells it, for which getopt itself is silent. */
const tersely: Complaint = ({ kind, element }) =>
  usageError(
    kind === "missing"
      ? `missing argument for option '${element}'`
      : `unrecognized option '${element}'`,
  );

/** As the C library itself tells it. */
export function libraryText(mistake: Mistake): string {
  const { kind, option, candidates = [] } = mistake;
  const isLong = option.startsWith("--");
  const name = isLong ? `option '${option}'` : "option";
  const letter = isLong ? "" : ` -- '${option}'`;
  switch (kind) {
    case "unknown":
      return isLong ? `unrecognized ${name}` : `invalid ${name}${letter}`;
    case "ambiguous":
      return `${name} is ambiguous; possibilities: ` +
        candidates.map((candidate) => `'--${candidate}'`).join(" ");
    case "missing":
      return `${name} requires an argument${letter}`;
    case "unwanted":
      return `${name} doesn't allow an argument`;
  }
}

/** Arguments of a command, taken apart one by one. */
export class OptionParser {
  /** The arguments that are not options. Complete when all were parsed. */
  readonly operands: string[] = [];
  readonly #specs: readonly OptionSpec[];
  readonly #args: readonly string[];
  readonly #complaint: Complaint;
  readonly #hasLong: boolean;
  #at = 0;
  /** The element that stands before the current one once options are sorted. */
  #lastOption: string;

  /** `command` is the name that stands before `args`. */
  constructor(
    specs: readonly OptionSpec[],
    command: string,
    args: readonly string[],
    complaint: Complaint = tersely,
  ) {
    this.#specs = specs;
    this.#args = args;
    this.#complaint = complaint;
    this.#hasLong = specs.some(({ long }) => long !== undefined);
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
      } else if (arg.startsWith("--") && this.#hasLong) {
        yield this.#long(arg);
      } else {
        yield* this.#bundle(arg);
      }
    }
  }

  #long(arg: string): FoundOption {
    const equals = arg.indexOf("=");
    const name = arg.slice(2, equals < 0 ? undefined : equals);
    const fitting = this.#specs.filter((spec) => spec.long?.startsWith(name));
    const exact = fitting.find((spec) => spec.long === name);
    const spec = exact ?? (fitting.length === 1 ? fitting[0] : undefined);
    const mistake = { element: arg, option: arg };
    if (!spec) {
      const candidates = fitting.map(({ long }) => long!);
      const kind = candidates.length > 0 ? "ambiguous" : "unknown";
      throw this.#complaint({ ...mistake, kind, candidates });
    }
    if (!spec.argument && equals >= 0) {
      const option = `--${spec.long}`;
      throw this.#complaint({ ...mistake, option, kind: "unwanted" });
    }
    const attached = equals < 0 ? undefined : arg.slice(equals + 1);
    return this.#found(spec, arg, `--${spec.long}`, attached);
  }

  *#bundle(arg: string): Generator<FoundOption> {
    for (let i = 1; i < arg.length; i++) {
      const spec = this.#specs.find(({ short, alias }) =>
        short === arg[i] || alias === arg[i]
      );
      if (!spec) {
        // Inside a bundle, getopt has not passed the element yet, and the
        // programs name the one before it.
        const before = this.operands.at(-1) ?? this.#lastOption;
        const element = i < arg.length - 1 ? before : arg;
        const option = arg[i];
        throw this.#complaint({ kind: "unknown", element, option });
      }
      if (spec.argument && !spec.optional) {
        const attached = arg.slice(i + 1) || undefined;
        yield this.#found(spec, arg, spec.short!, attached);
        return;
      }
      yield [spec.short!, ""];
    }
    this.#lastOption = arg;
  }

  #found(
    spec: OptionSpec,
    arg: string,
    option: string,
    attached: string | undefined,
  ): FoundOption {
    const name = spec.short ?? spec.long!;
    this.#lastOption = arg;
    if (!spec.argument) return [name, ""];
    if (spec.optional) return [name, attached ?? ""];
    if (attached === undefined) {
      if (this.#at === this.#args.length) {
        throw this.#complaint({ kind: "missing", element: arg, option });
      }
      attached = this.#args[this.#at++];
      this.#lastOption = attached;
    }
    return [name, attached];
  }
}
