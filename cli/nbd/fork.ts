/**
 * `--fork`: the server in another process, which goes on when this one ends.
 *
 * @module
 */
import { writeFully } from "../output.ts";
import { variable } from "./environment.ts";

/** Tells the other process that it is one; it has no other meaning. */
const MARK = "BDRV_NBD_FORKED";
/** What that process writes once it serves: no text has it. */
const READY = 0;

let isChild = false;

/** Whether this process is to be the server that another one has begun. */
export function isForked(): boolean {
  isChild ||= variable(MARK) !== undefined;
  if (isChild) Deno.env.delete(MARK);
  return isChild;
}

/** The server runs: whoever waits for that need not wait any longer. */
export function tellParent(): void {
  if (isChild) writeFully(Deno.stderr, Uint8Array.of(READY));
}

/**
 * Start this very program once more, as the server, and wait until it serves.
 *
 * @returns the exit code: 1 if there was anything to complain about.
 */
export async function forkServer(): Promise<number> {
  const [program, ...args] = ownCommand();
  const child = new Deno.Command(program, {
    args,
    env: { [MARK]: "1" },
    stdin: "null",
    // Whoever reads our output to its end is not to wait for the server.
    stdout: "null",
    stderr: "piped",
    detached: true,
  }).spawn();
  child.unref();
  let complained = false;
  for await (const chunk of child.stderr) {
    const end = chunk.indexOf(READY);
    const text = end < 0 ? chunk : chunk.subarray(0, end);
    complained ||= text.length > 0;
    writeFully(Deno.stderr, text);
    if (end >= 0) return complained ? 1 : 0;
  }
  return 1;
}

/** How this process was started, the permissions that it was given included. */
function ownCommand(): string[] {
  try {
    const [_, ...args] = Deno.readTextFileSync("/proc/self/cmdline")
      .split("\0").slice(0, -1);
    return [Deno.execPath(), ...args];
  } catch {
    const own = Deno.build.standalone ? [] : ["run", "-A", Deno.mainModule];
    return [Deno.execPath(), ...own, ...Deno.args];
  }
}
