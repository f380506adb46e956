/**
 * The program that runs: its name, what it tells the user, how it ends.
 *
 * @module
 */
import { surviveSignal } from "../core/runtime.ts";
import { asBlockError, BlockError } from "../core/errors.ts";
import type { SecretSource } from "../core/secrets.ts";
import type { Secrets } from "./objects.ts";
import { CommandError, type CommandErrorOptions } from "./command_error.ts";
import { Output, ReaderGone, writeFully } from "./output.ts";

export { CommandError } from "./command_error.ts";

/** A word that is none of those that are known; QEMU does not list them. */
export function notAmong(
  message: string,
  words: readonly string[],
  options: CommandErrorOptions = {},
): CommandError {
  const detail = words.length === 1
    ? `; it must be ${words[0]}`
    : `; it must be one of ${words.join(", ")}`;
  return new CommandError(message + detail, { ...options, detail });
}

/** A mistake on the command line. */
export function usageError(message: string): CommandError {
  return new CommandError(message, { usage: true });
}

/** Colours of a terminal's text. */
const RED = 31;
const YELLOW = 33;

/** The running program. */
export class Program {
  /** The name in its messages. */
  readonly name: string;
  /** Its standard output. */
  readonly output: Output = new Output();
  #objects?: Secrets;
  /** Where its help is found. */
  helpCommand: string;
  /** Most images in a chain of backing files: 10,000 overlays and their base. */
  maxChain = 10_001;
  /** How progress is told where it is wanted. */
  progressFormat: "line" | "json" = "line";

  /** Arguments of several lines: names, as a rule. */
  readonly #brokenNames: readonly string[];

  /** A program called `name`, with all its arguments. */
  constructor(name: string, args: readonly string[] = []) {
    this.name = name;
    this.#brokenNames = args.filter((arg) => arg.includes("\n"));
    this.helpCommand = `${name} --help`;
  }

  /** Whether it is us under our own name, and not a stand-in. */
  get isOurs(): boolean {
    return this.name === "bdrv";
  }

  /**
   * Where images find their keys. Under our own name the user is asked for
   * those that no option names; a stand-in must not ask what QEMU does not.
   */
  get secrets(): SecretSource {
    return async (request) =>
      await (await this.#loadObjects()).find(request, this.isOurs);
  }

  /** Have `objects` ready, if one of the arguments may define some. */
  async prepareObjects(args: readonly string[]): Promise<void> {
    if (args.some((arg) => arg.startsWith("--o"))) await this.#loadObjects();
  }

  /** What `--object` defines. */
  get objects(): Secrets {
    return this.#objects!;
  }

  /** Few command lines have any: the others start 2 ms sooner without. */
  async #loadObjects(): Promise<Secrets> {
    const { Secrets } = await import("./objects.ts");
    return this.#objects ??= new Secrets();
  }

  /** Write to standard output; nothing is added. */
  print(text: string): void {
    this.output.write(text);
  }

  /** Write to standard error; nothing is added. */
  printError(text: string): void {
    // It may go to a file that has reached the user's limit.
    if (!Deno.stderr.isTerminal()) surviveSignal("SIGXFSZ");
    try {
      writeFully(Deno.stderr, new TextEncoder().encode(text));
    } catch {
      // There is no other place to complain to.
    }
  }

  /** Report an error; each line of it carries the program's name. */
  error(message: string, hint?: string): void {
    const name = this.#painted(RED, `${this.name}:`);
    const text = this.#concise(this.#joinNames(message))
      .replaceAll("\n", `\n${name} `);
    const lines = hint ? [text, this.#joinNames(hint)] : [text];
    this.printError(`${name} ${this.#splitNames(lines.join("\n"))}\n`);
  }

  /** Report something that is not an error. */
  warn(message: string): void {
    const warning = this.#painted(YELLOW, "warning:");
    const text = this.#splitNames(this.#joinNames(message));
    this.printError(`${this.name}: ${warning} ${text}\n`);
  }

  /** Put NUL, which no name has, for the line breaks within names. */
  #joinNames(message: string): string {
    const join = (name: string) => name.replaceAll("\n", "\0");
    for (const name of this.#brokenNames) {
      message = message.replaceAll(name, join);
    }
    return message.replaceAll(/(?<=^|[\s(:])'[^']*'/g, join);
  }

  /** Show the line breaks within names; QEMU does not keep to one line. */
  #splitNames(text: string): string {
    return text.replaceAll("\0", this.isOurs ? "\\n" : "\n");
  }

  /** QEMU says it twice where the layer that fails is the lowest one. */
  #concise(message: string): string {
    return !this.isOurs ? message : message
      .replaceAll(/(Could not open '[^\n]*': )\1/g, "$1")
      .replace(/^(.+): (Could not create '\1')/, "$2");
  }

  /** Text in a colour where somebody sees it, and does not mind. */
  #painted(colour: number, text: string): string {
    return this.isOurs && !Deno.noColor && Deno.stderr.isTerminal()
      ? `\x1b[1;${colour}m${text}\x1b[0m`
      : text;
  }

  /** What an error says; to who takes us for QEMU's program, in its words only. */
  messageOf(error: Error): string {
    let { message } = error;
    if (this.isOurs) return message;
    for (let at: unknown = error; at instanceof Error; at = at.cause) {
      const { detail } = at as Partial<BlockError>;
      if (detail) message = message.replace(detail, "");
    }
    return message;
  }

  /** Report whatever was thrown; answers the exit code. */
  fail(thrown: unknown): number {
    if (isReaderGone(thrown)) return 1;
    if (thrown instanceof CommandError) {
      const help = `Try '${this.helpCommand}' for more information`;
      this.error(this.messageOf(thrown), thrown.usage ? help : thrown.hint);
    } else if (thrown instanceof BlockError) {
      this.error(this.messageOf(thrown), thrown.hint);
    } else {
      // A module that could not be loaded, for one.
      const { code, message, hint } = asBlockError(thrown);
      const what = `internal error: ${String(thrown).split("\n")[0]}`;
      this.error(code === "EACCES" ? message : what, hint);
    }
    this.#printStack(thrown);
    return thrown instanceof CommandError ? thrown.code : 1;
  }

  /** Write what is left of the output; answers the exit code. */
  finish(code: number): number {
    try {
      this.output.flush();
    } catch (error) {
      return this.fail(error);
    }
    const { failure } = this.output;
    return failure ? code || this.fail(failure) : code;
  }

  #printStack(thrown: unknown): void {
    if (!wantsStack()) return;
    for (let error = thrown; error instanceof Error; error = error.cause) {
      this.printError(`${error.stack}\n`);
    }
  }
}

/** Whether nobody reads our output any more; jobs wrap what callbacks throw. */
function isReaderGone(thrown: unknown): boolean {
  for (let error = thrown; error instanceof Error; error = error.cause) {
    if (error instanceof ReaderGone) return true;
  }
  return false;
}

/** Whether the developer asked for stacks. Nobody is asked for a permission. */
function wantsStack(): boolean {
  const { state } = Deno.permissions.querySync({
    name: "env",
    variable: "BDRV_DEBUG",
  });
  return state === "granted" && Deno.env.get("BDRV_DEBUG") !== undefined;
}
