/**
 * The error of a command.
 *
 * @module
 */

/** Facts about a {@linkcode CommandError}. */
export interface CommandErrorOptions extends ErrorOptions {
  /** Further lines after the message. */
  hint?: string;
  /** The part of the message that QEMU's programs lack. */
  detail?: string;
  /** The name that the message is prefixed with. Default: the program's. */
  speaker?: string;
  /** The exit code. Default: 1. */
  code?: number;
  /**
   * Whether the command line was wrong: the message then points to the help.
   */
  usage?: boolean;
}

/** A command failed. The message is for the user. */
export class CommandError extends Error {
  /** The class name. */
  override name = "CommandError";
  /** Further lines after the message. */
  readonly hint?: string;
  /** The part of the message that QEMU's programs lack. */
  readonly detail?: string;
  /** The name that the message is prefixed with, if not the program's. */
  readonly speaker?: string;
  /** The exit code. */
  readonly code: number;
  /** Whether the command line was wrong. */
  readonly usage: boolean;

  /** Each line of `message` is printed after the program's name. */
  constructor(message: string, options: CommandErrorOptions = {}) {
    super(message, options);
    this.hint = options.hint;
    this.detail = options.detail;
    this.speaker = options.speaker;
    this.code = options.code ?? 1;
    this.usage = options.usage ?? false;
  }
}
