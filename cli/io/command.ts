/**
 * Commands of `qemu-io`.
 *
 * @module
 */
import { libraryText, OptionParser, type OptionSpec } from "../getopt.ts";
import type { Session } from "./session.ts";

/** A command failed. The message goes to standard output. */
export class Refusal extends Error {
  /** The class name. */
  override name = "Refusal";
}

/** A command. */
export interface IoCommand {
  readonly name: string;
  readonly alias?: string;
  /** What it does, for the help. */
  readonly summary: string;
  /** Its options and operands, as the help shows them. */
  readonly usage?: string;
  /** The minimum number of words after its name. Default: 0. */
  readonly min?: number;
  /** The maximum number of words after its name. Default: 0. */
  readonly max?: number;
  /** The options it accepts. */
  readonly options?: readonly OptionSpec[];
  /** Further notes for its help. */
  readonly notes?: string;
  /** Whether it needs an open file, a writable one, or none. */
  readonly needs?: "file" | "writable" | "nothing";
  /** Run it. Throwing makes the command fail. */
  run(call: Call): Promise<void> | void;
}

/** An invocation of a command. */
export class Call {
  /** The operands; known after parsing. */
  operands: readonly string[] = [];

  /** `name` is how the command was called. */
  constructor(
    readonly session: Session,
    readonly command: IoCommand,
    readonly name: string,
    readonly words: readonly string[],
  ) {}

  /** The options one after the other. */
  *options(): Generator<[string, string]> {
    const { command, name, session } = this;
    const { options = [] } = command;
    const complaint = (mistake: Parameters<typeof libraryText>[0]) => {
      session.program.printError(`${name}: ${libraryText(mistake)}\n`);
      return this.misused();
    };
    const parser = new OptionParser(options, name, this.words, complaint);
    yield* parser.parse();
    this.operands = parser.operands;
  }

  /** The word after the name once the options are sorted first, as in QEMU. */
  get firstWord(): string {
    return this.words.find((word) => /^-./.test(word)) ?? this.words[0];
  }

  /** The error for invalid words. */
  misused(): Refusal {
    return new Refusal(usageLine(this.command.name, this.command));
  }
}

/** A command's line in the help, for a command called `name`. */
export function usageLine(name: string, command: IoCommand): string {
  const usage = command.usage === undefined ? "" : `${command.usage} `;
  return `${name} ${usage}-- ${command.summary}`;
}

/** `-C`. */
export const TERSE: OptionSpec = {
  short: "C",
  help: "report in one line, for programs",
};

/** `-q`. */
export const SILENT: OptionSpec = { short: "q", help: "report nothing" };
