/**
 * Selects the program: `bdrv`, or the QEMU program that it stands in for.
 *
 * @module
 */
import { process } from "../core/platform/this_process.ts";
import { surviveSignal } from "../core/runtime.ts";
import * as imageTool from "./image_tool.ts";
import { CommandError, Program } from "./program.ts";
import { selectRelease } from "./qemu_releases.ts";

/** The exports of a program's module. */
interface ProgramModule {
  run(program: Program, args: string[]): Promise<number>;
}

/** How to load each program. Only the one that runs is loaded. */
const PROGRAMS: {
  [name: string]: () => ProgramModule | Promise<ProgramModule>;
} = {
  "bdrv": () => imageTool,
  "qemu-img": () => imageTool,
  "qemu-io": () => import("./io_tool.ts"),
  "qemu-nbd": () => import("./nbd_tool.ts"),
};

/**
 * Run the program named by the first argument or by the link that was called,
 * by default `bdrv`.
 *
 * @returns the exit code.
 */
export async function main(args: readonly string[]): Promise<number> {
  let name = calledAs();
  let rest = [...args];
  if (!Object.hasOwn(PROGRAMS, name) || name === "bdrv") {
    name = "bdrv";
    const [first, second] = rest;
    if (first === "help" && Object.hasOwn(PROGRAMS, second)) {
      [, name, ...rest] = [...rest, "--help"];
    } else if (first !== undefined && Object.hasOwn(PROGRAMS, first)) {
      [name, ...rest] = rest;
    }
  }
  const program = new Program(name, rest);
  // At the user's limit on the size of files, fail with an error.
  surviveSignal("SIGXFSZ");
  let code: number;
  try {
    checkText(args);
    selectRelease();
    code = await (await PROGRAMS[name]()).run(program, rest);
  } catch (error) {
    code = program.fail(error);
  }
  return program.finish(code);
}

/**
 * Refuse arguments that are not UTF-8. Deno replaces invalid bytes, so the
 * arguments would name other files, images and snapshots.
 */
function checkText(args: readonly string[]): void {
  const wrong = args.find((arg) => arg.includes("\ufffd"));
  if (wrong === undefined) return;
  throw new CommandError(`The argument '${wrong}' is not UTF-8`);
}

/**
 * The name of the compiled binary, or of the link through which it was called.
 */
function calledAs(): string {
  return process.calledAs.replace(/^.*[/\\]/, "").replace(/\.exe$/i, "");
}
