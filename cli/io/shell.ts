/**
 * Finding and running commands, and reading them from standard input.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { CommandError } from "../program.ts";
import { aioDiscard, aioFlush, aioRead, aioWrite } from "./aio.ts";
import { removeBreak, resume, setBreak, waitBreak } from "./breakpoints.ts";
import { Call, type IoCommand, Refusal, usageLine } from "./command.ts";
import { alloc, info, length, map } from "./extents.ts";
import { flush, truncate } from "./file.ts";
import { inputLines } from "./input.ts";
import { close, open, reopen } from "./open.ts";
import { abort, quit, sigraise, sleep } from "./process.ts";
import { read, readv } from "./read.ts";
import type { Session } from "./session.ts";
import { discard, write, writev } from "./write.ts";
import { inRelease } from "../qemu_releases.ts";
import { ZONE_COMMANDS } from "./zones.ts";

/** `help`. */
const help: IoCommand = {
  name: "help",
  alias: "?",
  usage: "[command]",
  summary: "help for one or all commands",
  max: 1,
  needs: "nothing",

  run({ session, words: [name] }) {
    if (name === undefined) {
      const later = inRelease("laterIoCommands");
      const lines = COMMANDS
        .filter(({ name }) => !later.some((start) => name.startsWith(start)))
        .map((command) => `${usageLine(command.name, command)}\n`);
      const hint = "\nUse 'help commandname' for extended help.\n";
      return session.program.print(lines.join("") + hint);
    }
    const command = byName.get(name);
    if (!command) throw new Refusal(`command ${name} not found`);
    session.program.print(commandHelp(name, command));
  },
};

const COMMANDS: readonly IoCommand[] = [
  abort,
  aioDiscard,
  aioFlush,
  aioRead,
  aioWrite,
  alloc,
  setBreak,
  close,
  discard,
  flush,
  help,
  info,
  length,
  map,
  open,
  quit,
  read,
  readv,
  removeBreak,
  reopen,
  resume,
  sigraise,
  sleep,
  truncate,
  waitBreak,
  write,
  writev,
  ...ZONE_COMMANDS,
];

const byName = new Map<string, IoCommand>(
  COMMANDS.flatMap((command) =>
    [command.name, command.alias ?? command.name].map((name) =>
      [name, command] as const
    )
  ),
);

function commandHelp(name: string, command: IoCommand): string {
  const options = command.options?.map(({ short, argument, help }) => {
    const names = `-${short}${argument ? ` ${argument}` : ""}`;
    return `  ${names.padEnd(12)}${help}\n`;
  });
  return `${usageLine(name, command)}\n` +
    (options ? `\n${options.join("")}\n` : "");
}

/** Run commands; returns whether all of them succeeded. */
export async function runAll(
  session: Session,
  lines: readonly string[],
): Promise<boolean> {
  let allSucceeded = true;
  for (const line of lines) {
    if (session.hasQuit) break;
    if (!await runLine(session, line)) allSucceeded = false;
  }
  return allSucceeded;
}

/** Run commands from standard input; returns whether all succeeded. */
export async function runInput(session: Session): Promise<boolean> {
  const { program, background } = session;
  const lines = inputLines((wait) => background.during(wait));
  let allSucceeded = true;
  while (!session.hasQuit) {
    program.print(`${program.name}> `);
    program.output.flush();
    const { done, value: line } = await lines.next();
    if (done) break;
    if (!await runLine(session, line)) allSucceeded = false;
  }
  return allSucceeded;
}

/** Run one line and report errors; returns whether it succeeded. */
async function runLine(session: Session, line: string): Promise<boolean> {
  const [name, ...words] = line.split(" ").filter((word) => word !== "");
  if (name === undefined) return true;
  const { program } = session;
  const command = byName.get(name);
  const objection = objectionTo(session, command, name, words);
  if (objection) {
    program.printError(`${objection}\n`);
    return false;
  }
  try {
    await command!.run(new Call(session, command!, name, words));
    return true;
  } catch (error) {
    if (error instanceof Refusal) {
      if (error.message) program.print(`${error.message}\n`);
    } else if (error instanceof BlockError || error instanceof CommandError) {
      program.error(program.messageOf(error), error.hint);
    } else {
      throw error;
    }
    return false;
  }
}

/** Why a command cannot be run at all. */
function objectionTo(
  session: Session,
  command: IoCommand | undefined,
  name: string,
  words: readonly string[],
): string | undefined {
  if (!command) return `command "${name}" not found`;
  const { min = 0, max = 0, needs = "file" } = command;
  if (needs !== "nothing" && !session.isOpen) {
    return "no file open, try 'help open'";
  }
  if (words.length < min || words.length > max) {
    const expected = max === Infinity
      ? `at least ${min}`
      : min === max
      ? `${min}`
      : `between ${min} and ${max}`;
    return `bad argument count ${words.length} to ${name}, ` +
      `expected ${expected} arguments`;
  }
  if (needs === "writable" && session.image.readOnly) {
    return `${session.program.name}: Block node is read-only`;
  }
}
