/**
 * Options on the command line, by the rules of GNU `getopt_long`: options and
 * operands in any order up to `--`, short options bundled (`-qp`), arguments
 * attached or following (`-Oqcow2`, `-O qcow2`, `--output=json`), and
 * unambiguous abbreviations of long names.
 *
 * @module
 */
import { usageError } from "./program.ts";

/** An option of a command. */
export interface OptionSpec {
  /** The letter of `-f`. */
  readonly short?: string;
  /** Another letter for it. */
  readonly alias?: string;
  /** The name of `--format`. */
  readonly long?: string;
  /** The argument's name in the help; absent if it takes none. */
  readonly argument?: string;
  /** Whether the argument is optional, and given only as `--name=argument`. */
  readonly optional?: boolean;
  /** What it does, for the help. */
  readonly help: string;
}

/** A parsed option: its letter, or its long name if it has none. */
export type FoundOption = [name: string, argument: string];

/** A mistake in an option. */
export interface Mistake {
  readonly kind: "unknown" | "ambiguous" | "missing" | "unwanted";
  /** The faulty argument; inside a bundle, the one before it. */
  readonly element: string;
  /** The letter, or `--` and the long name. */
  readonly option: string;
  /** The long options that an ambiguous name may mean. */
  readonly candidates?: readonly string[];
}

/** Words a mistake as a certain program does. */
export type Complaint = (mistake: Mistake) => Error;

/** `qemu-img`'s wording, which silences getopt. */
const tersely: Complaint = ({ kind, element }) =>
  usageError(
    kind === "missing"
      ? `missing argument for option '${element}'`
      : `unrecognized option '${element}'`,
  );

/** The C library's own wording. */
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

/** Parses the arguments of a command one by one. */
export class OptionParser {
  /** The arguments that are not options; complete when all have been parsed. */
  readonly operands: string[] = [];
  readonly #specs: readonly OptionSpec[];
  readonly #args: readonly string[];
  readonly #complaint: Complaint;
  readonly #hasLong: boolean;
  #at = 0;
  /** The element before the current one, once options are sorted first. */
  #lastOption: string;

  /** `command` is the name before `args`. */
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
   * The options in order. Each is handled before the next is parsed, so that
   * the first mistake is the one reported.
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
        // Inside a bundle, getopt has not moved past the element, and the
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
