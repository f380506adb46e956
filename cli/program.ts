/**
 * The running program: its name, its messages, its exit.
 *
 * @module
 */
import { process } from "../core/platform/this_process.ts";
import { unrefTimer } from "../core/runtime.ts";
import { asBlockError, BlockError } from "../core/errors.ts";
import { withoutSecrets } from "../core/redaction.ts";
import type { SecretSource } from "../core/secrets.ts";
import type { Secrets } from "./objects.ts";
import { CommandError, type CommandErrorOptions } from "./command_error.ts";
import { Output, ReaderGone, writeFully } from "./output.ts";
import { inRelease } from "./qemu_releases.ts";

export { CommandError } from "./command_error.ts";

/** The error for an unknown word; QEMU does not list the known ones. */
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

/** Lines of one kind are held for this many milliseconds and letters at most. */
const HOLDING_TIME = 20;
const MOST_HELD = 32_768;

/** The running program. */
export class Program {
  /** The name in its messages. */
  readonly name: string;
  /** Its standard output. */
  readonly output: Output = new Output();
  #objects?: Secrets;
  /** The command that shows its help. */
  helpCommand: string;
  /** Longest backing chain: 10,000 overlays and their base. */
  maxChain = 10_001;
  /** The format of progress. */
  progressFormat: "line" | "json" = "line";
  /** Columns of the progress line that the terminal's cursor is in, or 0. */
  statusWidth = 0;

  #errorIsTerminal?: boolean;
  /** Lines for standard error that have not been written yet. */
  #heldLines = "";
  /** Set while such lines are held. */
  #holding?: ReturnType<typeof setTimeout>;
  /** Arguments with line breaks, usually file names. */
  readonly #brokenNames: readonly string[];

  /** A program called `name`, with all its arguments. */
  constructor(name: string, args: readonly string[] = []) {
    this.name = name;
    this.#brokenNames = args.filter((arg) => arg.includes("\n"));
    this.helpCommand = `${name} --help`;
  }

  /** Whether it runs as `bdrv`, not as a stand-in for a program of QEMU's. */
  get isOurs(): boolean {
    return this.name === "bdrv";
  }

  /**
   * Where keys of images come from. `bdrv` asks the user for keys that no
   * option names; a stand-in must not ask where QEMU does not.
   */
  get secrets(): SecretSource {
    return async (request) =>
      await (await this.#loadObjects()).find(request, this.isOurs);
  }

  /** Prepare `objects`, if an argument may define any. */
  async prepareObjects(args: readonly string[]): Promise<void> {
    if (args.some(mayBeObject)) await this.#loadObjects();
  }

  /** The objects of `--object`. */
  get objects(): Secrets {
    return this.#objects!;
  }

  /**
   * Define an object from the argument of `--object`, or print its help.
   *
   * @returns whether the program is to go on.
   */
  defineObject(definition: string): boolean {
    const help = this.objects.define(definition);
    if (help === undefined) return true;
    this.print(help);
    return false;
  }

  /** Loaded on demand, since few command lines define objects. */
  async #loadObjects(): Promise<Secrets> {
    const { Secrets } = await import("./objects.ts");
    return this.#objects ??= new Secrets();
  }

  /** Write to standard output; secrets in URLs are left out. */
  print(text: string): void {
    this.#writeHeldLines();
    if (this.statusWidth > 0) this.output.write(this.#overwriteStatus());
    this.output.write(withoutSecrets(text));
  }

  /** Write to standard error; secrets in URLs are left out. */
  printError(text: string): void {
    text = this.#heldLines + text;
    this.#heldLines = "";
    try {
      const shown = (this.#isSeen ? this.#overwriteStatus() : "") +
        withoutSecrets(text);
      writeFully(process.error, new TextEncoder().encode(shown));
    } catch {
      // There is nowhere else to report this.
    }
  }

  /**
   * Write a line to standard error of which there may be millions, as there are
   * of a damaged image: written one by one, they would take most of the time.
   */
  printOneOfMany(line: string): void {
    if (this.#isSeen || this.#holding === undefined) {
      this.printError(line);
      if (!this.#isSeen) this.#holdLines();
      return;
    }
    this.#heldLines += line;
    if (this.#heldLines.length > MOST_HELD) this.#writeHeldLines();
  }

  #holdLines(): void {
    this.#holding = setTimeout(() => {
      this.#holding = undefined;
      this.#writeHeldLines();
    }, HOLDING_TIME);
    unrefTimer(this.#holding);
  }

  #writeHeldLines(): void {
    if (this.#heldLines !== "") this.printError("");
  }

  /** Whether standard error is a terminal; asking anew for each line is slow. */
  get #isSeen(): boolean {
    return this.#errorIsTerminal ??= process.error.isTerminal();
  }

  /** Characters that clear the progress line before a message. */
  #overwriteStatus(): string {
    const width = this.statusWidth;
    this.statusWidth = 0;
    return width > 0 ? `${" ".repeat(width)}\r` : "";
  }

  /**
   * Report an error; each line is prefixed with the name of the program, or
   * with `speaker`.
   */
  error(message: string, hint?: string, speaker: string = this.name): void {
    const name = this.#painted(RED, `${speaker}:`);
    const text = this.#concise(this.#joinNames(message))
      .replaceAll("\n", `\n${name} `);
    const lines = hint ? [text, this.#joinNames(hint)] : [text];
    this.printError(`${name} ${this.#splitNames(lines.join("\n"))}\n`);
  }

  /** Report a warning. */
  warn(message: string): void {
    const warning = this.#painted(YELLOW, "warning:");
    const text = this.#splitNames(this.#joinNames(message));
    this.printOneOfMany(`${this.name}: ${warning} ${text}\n`);
  }

  /** Replace line breaks within names by NUL, which no name contains. */
  #joinNames(message: string): string {
    if (!message.includes("\n")) return message;
    const join = (name: string) => name.replaceAll("\n", "\0");
    for (const name of this.#brokenNames) {
      message = message.replaceAll(name, join);
    }
    return message.replaceAll(/(?<=^|[\s(:])'[^']*'/g, join);
  }

  /** Show line breaks within names, escaped unless this stands in for QEMU. */
  #splitNames(text: string): string {
    return text.replaceAll("\0", this.isOurs ? "\\n" : "\n");
  }

  /**
   * Drop a repetition in QEMU's messages, if the failing layer is the lowest
   * one.
   */
  #concise(message: string): string {
    return !this.isOurs ? message : message
      .replaceAll(/(Could not open '[^\n]*': )\1/g, "$1")
      .replace(/^(.+): (Could not create '\1')/, "$2");
  }

  /** Text in a colour, if standard error is a terminal and permits it. */
  #painted(colour: number, text: string): string {
    return this.isOurs && !process.noColor && this.#isSeen
      ? `\x1b[1;${colour}m${text}\x1b[0m`
      : text;
  }

  /** The message of an error; as a stand-in, in QEMU's words only. */
  messageOf(error: Error): string {
    let { message } = error;
    for (const [now, then] of inRelease("reworded")) {
      message = message.replace(now, then);
    }
    if (this.isOurs) return message;
    for (let at: unknown = error; at instanceof Error; at = at.cause) {
      const { detail } = at as Partial<BlockError>;
      if (detail) message = message.replace(detail, "");
    }
    return message;
  }

  /** Report whatever was thrown; returns the exit code. */
  fail(thrown: unknown): number {
    if (isReaderGone(thrown)) return 1;
    if (thrown instanceof CommandError) {
      const more = inRelease("tryHelp");
      const help = `Try '${this.helpCommand}' for more ${more}`;
      this.error(
        this.messageOf(thrown),
        thrown.usage ? help : thrown.hint,
        thrown.speaker,
      );
    } else if (thrown instanceof BlockError) {
      this.error(this.messageOf(thrown), hintOf(thrown));
    } else {
      // For example, a module that could not be loaded.
      const { code, message, hint } = asBlockError(thrown);
      const what = `internal error: ${String(thrown).split("\n")[0]}`;
      this.error(code === "EACCES" ? message : what, hint);
    }
    this.#printStack(thrown);
    return thrown instanceof CommandError ? thrown.code : 1;
  }

  /** Flush the output; returns the exit code. */
  finish(code: number): number {
    this.#writeHeldLines();
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

/** Whether an argument may be `--object`, in full or abbreviated. */
function mayBeObject(argument: string): boolean {
  return argument.startsWith("--o") &&
    "--object".startsWith(argument.split("=", 1)[0]);
}

/** Whether the output's reader has gone; jobs wrap errors of callbacks. */
function isReaderGone(thrown: unknown): boolean {
  for (let error = thrown; error instanceof Error; error = error.cause) {
    if (error instanceof ReaderGone) return true;
  }
  return false;
}

/** Whether the developer asked for stack traces. */
function wantsStack(): boolean {
  return process.variable("BDRV_DEBUG") !== undefined;
}

/** The hint of an error, or the one that its message had in an older release. */
function hintOf({ message, hint }: BlockError): string | undefined {
  const reworded = inRelease("reworded");
  return reworded.find(([now]) => message.search(now) >= 0)?.[2] ?? hint;
}
