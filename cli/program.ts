/**
 * The program that runs: its name, what it tells the user, how it ends.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import type { SecretSource } from "../core/secrets.ts";
import type { Secrets } from "./objects.ts";
import { Output, ReaderGone } from "./output.ts";

/** Facts about a {@linkcode CommandError}. */
export interface CommandErrorOptions extends ErrorOptions {
  /** Lines for the user that follow the message. */
  hint?: string;
  /** The exit code. Default: 1. */
  code?: number;
  /** Whether the command line was wrong: the way to the help is told. */
  usage?: boolean;
}

/** A command that cannot go on. Its message is for the user. */
export class CommandError extends Error {
  /** The class name. */
  override name = "CommandError";
  /** Lines for the user that follow the message. */
  readonly hint?: string;
  /** The exit code. */
  readonly code: number;
  /** Whether the command line was wrong. */
  readonly usage: boolean;

  /** Each line of `message` is reported with the program's name before it. */
  constructor(message: string, options: CommandErrorOptions = {}) {
    super(message, options);
    this.hint = options.hint;
    this.code = options.code ?? 1;
    this.usage = options.usage ?? false;
  }
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

  /** A program called `name`. */
  constructor(name: string) {
    this.name = name;
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
    const bytes = new TextEncoder().encode(text);
    try {
      for (let at = 0; at < bytes.length;) {
        at += Deno.stderr.writeSync(bytes.subarray(at));
      }
    } catch {
      // There is no other place to complain to.
    }
  }

  /** Report an error; each line of it carries the program's name. */
  error(message: string, hint?: string): void {
    const name = this.#painted(RED, `${this.name}:`);
    const lines = this.#concise(message).split("\n").map((line) =>
      `${name} ${line}\n`
    );
    this.printError(lines.join("") + (hint ? `${hint}\n` : ""));
  }

  /** Report something that is not an error. */
  warn(message: string): void {
    const warning = this.#painted(YELLOW, "warning:");
    this.printError(`${this.name}: ${warning} ${message}\n`);
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

  /** Report whatever was thrown; answers the exit code. */
  fail(thrown: unknown): number {
    if (thrown instanceof ReaderGone) return 1;
    if (thrown instanceof CommandError) {
      const help = `Try '${this.helpCommand}' for more information`;
      this.error(thrown.message, thrown.usage ? help : thrown.hint);
    } else if (thrown instanceof BlockError) {
      this.error(thrown.message, thrown.hint);
    } else {
      this.error(`internal error: ${String(thrown).split("\n")[0]}`);
    }
    this.#printStack(thrown);
    return thrown instanceof CommandError ? thrown.code : 1;
  }

  /** Write what is left of the output; answers the exit code. */
  finish(code: number): number {
    try {
      this.output.flush();
      return code;
    } catch (error) {
      return this.fail(error);
    }
  }

  #printStack(thrown: unknown): void {
    if (!wantsStack()) return;
    for (let error = thrown; error instanceof Error; error = error.cause) {
      this.printError(`${error.stack}\n`);
    }
  }
}

/** Whether the developer asked for stacks. */
function wantsStack(): boolean {
  try {
    return Deno.env.get("BDRV_DEBUG") !== undefined;
  } catch {
    return false;
  }
}
