/**
 * Picks the program: our own name, or the one of QEMU's that is stood in for.
 *
 * @module
 */
import { CommandError, Program } from "./program.ts";

/** What a program's module offers. */
interface ProgramModule {
  run(program: Program, args: string[]): Promise<number>;
}

const imageTool = (): Promise<ProgramModule> => import("./image_tool.ts");

/** How each program is loaded. Nothing but the one that runs costs time. */
const PROGRAMS: { [name: string]: () => Promise<ProgramModule> } = {
  "bdrv": imageTool,
  "qemu-img": imageTool,
  "qemu-io": () => import("./io_tool.ts"),
  "qemu-nbd": () => import("./nbd_tool.ts"),
};

/**
 * Run the program that the first argument, or the name of the link we were
 * called through, stands for; without either it is `bdrv`.
 *
 * @returns the exit code.
 */
export async function main(args: readonly string[]): Promise<number> {
  let name = calledAs();
  let rest = [...args];
  if (!Object.hasOwn(PROGRAMS, name)) {
    name = "bdrv";
    if (rest.length > 0 && Object.hasOwn(PROGRAMS, rest[0])) {
      [name, ...rest] = rest;
    }
  }
  const program = new Program(name, rest);
  let code: number;
  try {
    checkText(args);
    code = await (await PROGRAMS[name]()).run(program, rest);
  } catch (error) {
    code = program.fail(error);
  }
  return program.finish(code);
}

/**
 * Refuse arguments that are not UTF-8. Deno replaces what is not, so that they
 * would name other files, images and snapshots.
 */
function checkText(args: readonly string[]): void {
  const wrong = args.find((arg) => arg.includes("\ufffd"));
  if (wrong === undefined) return;
  throw new CommandError(`The argument '${wrong}' is not UTF-8`);
}

/** The name of a compiled binary, or of the link to it that was called. */
function calledAs(): string {
  if (!Deno.build.standalone) return "";
  let path: string;
  try {
    // On Linux the executable's own path does not tell by which link it was
    // found.
    [path] = Deno.readTextFileSync("/proc/self/cmdline").split("\0");
  } catch {
    path = Deno.execPath();
  }
  return path.replace(/^.*[/\\]/, "").replace(/\.exe$/i, "");
}
