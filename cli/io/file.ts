/**
 * `flush` and `truncate`: the file as a whole.
 *
 * @module
 */
import { asBlockError } from "../../core/errors.ts";
import type { Image } from "../../core/image.ts";
import type { Preallocation } from "../../core/node.ts";
import { integerText } from "../numbers.ts";
import { CommandError, notAmong } from "../program.ts";
import { type IoCommand, Refusal } from "./command.ts";
import { byteCount } from "./numbers.ts";

/** `flush`. */
export const flush: IoCommand = {
  name: "flush",
  alias: "f",
  summary: "flush all in-core file state to disk",
  run: ({ session }) => session.background.during(flushImage(session.image)),
};

/** As in QEMU, a failure affects only the exit code. */
async function flushImage(image: Image): Promise<void> {
  try {
    await image.flush();
  } catch (error) {
    // An image that was closed after an error has nothing to flush.
    if (asBlockError(error).code !== "ENOMEDIUM") throw new Refusal("");
  }
}

/** The largest size that QEMU permits: 2^63, less the largest alignment. */
const MAX_LENGTH = 2 ** 63 - 2 ** 30;

const MODES: readonly string[] = ["off", "metadata", "falloc", "full"];

/** `truncate`. */
export const truncate: IoCommand = {
  name: "truncate",
  alias: "t",
  usage: "[-m prealloc_mode] off",
  summary: "truncates the current file at the given offset",
  min: 1,
  max: 3,
  needs: "writable",
  options: [
    { short: "m", argument: "MODE", help: "off, metadata, falloc or full" },
  ],

  async run(call) {
    let preallocation: Preallocation | undefined;
    for (const [, mode] of call.options()) {
      if (!MODES.includes(mode)) {
        throw notAmong(`Invalid preallocation mode '${mode}'`, MODES);
      }
      preallocation = mode as Preallocation;
    }
    if (call.operands.length === 0) throw call.misused();
    // What QEMU calls wrong is the first word, whatever that is.
    const size = byteCount(call.operands[0], call.firstWord);
    if (size > MAX_LENGTH) {
      const [text] = call.operands;
      const given = /^\d+$/.test(text) ? text : integerText(size);
      throw new CommandError(
        `offset(${given}) exceeds maximum(${integerText(MAX_LENGTH)})`,
      );
    }
    const { image, background } = call.session;
    if (!image.node.truncate) {
      throw new CommandError("Image format driver does not support resize");
    }
    await background.during(
      image.resize(size, { preallocation }),
    );
  },
};
