/**
 * The error of a command line.
 *
 * @module
 */

/** Facts about a {@linkcode CommandError}. */
export interface CommandErrorOptions extends ErrorOptions {
  /** Lines for the user that follow the message. */
  hint?: string;
  /** The part of the message that QEMU's programs do not have. */
  detail?: string;
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
  /** The part of the message that QEMU's programs do not have. */
  readonly detail?: string;
  /** The exit code. */
  readonly code: number;
  /** Whether the command line was wrong. */
  readonly usage: boolean;

  /** Each line of `message` is reported with the program's name before it. */
  constructor(message: string, options: CommandErrorOptions = {}) {
    super(message, options);
    this.hint = options.hint;
    this.detail = options.detail;
    this.code = options.code ?? 1;
    this.usage = options.usage ?? false;
  }
}
