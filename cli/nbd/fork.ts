/**
 * `--fork`: the server in another process, which goes on when this one ends.
 *
 * @module
 */
import { process } from "../../core/platform/this_process.ts";
import { writeFully } from "../output.ts";

/** Tells the other process that it is one; it has no other meaning. */
const MARK = "BDRV_NBD_FORKED";
/** What that process writes once it serves: no text has it. */
const READY = 0;

let isChild = false;

/** Whether this process is to be the server that another one has begun. */
export function isForked(): boolean {
  isChild ||= process.variable(MARK) !== undefined;
  if (isChild) process.unsetVariable(MARK);
  return isChild;
}

/** The server runs: whoever waits for that need not wait any longer. */
export function tellParent(): void {
  if (isChild) writeFully(process.error, Uint8Array.of(READY));
}

/**
 * Start this very program once more, as the server, and wait until it serves.
 *
 * @returns the exit code: 1 if there was anything to complain about.
 */
export async function forkServer(): Promise<number> {
  // The permissions that this process was given are part of its command.
  const messages = process.detach(process.command, { [MARK]: "1" });
  let complained = false;
  for await (const chunk of messages) {
    const end = chunk.indexOf(READY);
    const text = end < 0 ? chunk : chunk.subarray(0, end);
    complained ||= text.length > 0;
    writeFully(process.error, text);
    if (end >= 0) return complained ? 1 : 0;
  }
  return 1;
}
