/**
 * `--fork`: runs the server in another process, which outlives this one.
 *
 * @module
 */
import { process } from "../../core/platform/this_process.ts";
import { writeFully } from "../output.ts";

/** Set in the environment of that process; it has no other meaning. */
const MARK = "BDRV_NBD_FORKED";
/** Written by that process once it serves; no text contains it. */
const READY = 0;

let isChild = false;

/** Whether this process is the forked server. */
export function isForked(): boolean {
  isChild ||= process.variable(MARK) !== undefined;
  if (isChild) process.unsetVariable(MARK);
  return isChild;
}

/** Tell the parent process that the server is running. */
export function tellParent(): void {
  if (isChild) writeFully(process.error, Uint8Array.of(READY));
}

/**
 * Start the same program again as the server, and wait until it serves.
 *
 * @returns the exit code: 1 if the server reported anything.
 */
export async function forkServer(): Promise<number> {
  // The command includes the permissions of this process.
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
