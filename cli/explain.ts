/**
 * What `bdrv` adds to errors, which QEMU's tools leave out: the file concerned,
 * and what the user may have meant. Loaded only after an error.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import { withoutSecrets } from "../core/redaction.ts";
import { type Invocation, PROGRAM_OPTIONS } from "./command.ts";
import { CommandError } from "./program.ts";
import { suggestion } from "./suggest.ts";

/**
 * An error as shown to the user. Any other exception, a bug in the program, is
 * returned unchanged.
 *
 * @param commands The names of the program's commands.
 * @param call The invocation, once it is known.
 */
export function explained(
  error: unknown,
  commands: readonly string[],
  call: Invocation | undefined,
): unknown {
  if (error instanceof CommandError || error instanceof BlockError) {
    const options = call?.command.options ?? PROGRAM_OPTIONS;
    const file = fileMeant(error, call?.operands ?? []);
    const message = suggestion(error, commands, options) ??
      error.message;
    return new CommandError(file ? `${file}: ${message}` : message, {
      hint: error.hint,
      cause: error,
      ...(error instanceof CommandError &&
        { code: error.code, usage: error.usage }),
    });
  }
  return error;
}

/** Beginnings of messages about an image that do not name it. */
const OF_AN_IMAGE =
  /^(This image format|Check failed|Could not|Image |Format |Block job failed)/;

/** The file concerned, if the error does not name it. */
function fileMeant(
  error: CommandError | BlockError,
  operands: readonly string[],
): string | undefined {
  const { message } = error;
  const isOfImage = error instanceof BlockError || OF_AN_IMAGE.test(message);
  const file = message.startsWith("error while writing")
    ? operands.find((operand) => operand.startsWith("of="))?.slice(3) ??
      operands.at(-1)
    : operands.length === 1 && isOfImage
    ? operands[0]
    : undefined;
  if (file === undefined) return undefined;
  const shown = withoutSecrets(file);
  if (message.includes(shown)) return undefined;
  // The quotes keep what follows from being taken for a part of the secret.
  return shown === file ? file : `'${shown}'`;
}
