/** `io`: try an image, as `qemu-io` does. @module */
import type { Command } from "../command.ts";
import { OPTIONS, run } from "../io_tool.ts";

/** The command. */
export const command: Command = {
  summary: "Try an image: read, write, and show its allocation",
  operands: "[FILE]",
  options: OPTIONS,
  notes: "Without -c, commands come from standard input. 'bdrv io -c help' " +
    "lists them.",
  run: ({ program, args }) => run(program, args),
};
