/**
 * `break`, `remove_break`, `resume` and `wait_break`: requests that are stopped
 * on their way, where a `blkdebug` node is part of the file's stack.
 *
 * @module
 */
import { BlockError, strerror } from "../../core/errors.ts";
import type { DebugOperations } from "../../core/node.ts";
import { debuggerOf } from "../../core/requests.ts";
import { type Call, type IoCommand, Refusal } from "./command.ts";

/** `break`. */
export const setBreak: IoCommand = {
  name: "break",
  usage: "event tag",
  summary: "sets a breakpoint on event and tags the stopped request as tag",
  min: 2,
  max: 2,
  run: (call) =>
    debug(
      call,
      "Could not set breakpoint",
      (debug, [event, tag]) => debug.breakpoint(event, tag),
    ),
};

/** `remove_break`. */
export const removeBreak: IoCommand = {
  name: "remove_break",
  usage: "tag",
  summary: "remove a breakpoint by tag",
  min: 1,
  max: 1,
  run: (call) =>
    debug(
      call,
      `Could not remove breakpoint ${call.words[0]}`,
      (debug, [tag]) => debug.removeBreakpoint(tag),
    ),
};

/** `resume`. */
export const resume: IoCommand = {
  name: "resume",
  usage: "tag",
  summary: "resumes the request tagged as tag",
  min: 1,
  max: 1,
  run: (call) =>
    debug(
      call,
      "Could not resume request",
      (debug, [tag]) => debug.resume(tag),
    ),
};

/** `wait_break`. */
export const waitBreak: IoCommand = {
  name: "wait_break",
  usage: "tag",
  summary: "waits for the suspension of a request",
  min: 1,
  max: 1,

  async run({ session, words }) {
    const debug = debuggerOf(session.image.node);
    // QEMU waits for ever if nothing can be stopped.
    if (!debug) throw new Refusal("Could not wait: Operation not supported");
    await session.background.during(debug.waitSuspended(words[0]));
  },
};

function debug(
  { session, words }: Call,
  what: string,
  action: (debug: DebugOperations, words: readonly string[]) => void,
): void {
  try {
    const debug = debuggerOf(session.image.node);
    if (!debug) throw new BlockError("ENOTSUP");
    action(debug, words);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new Refusal(`${what}: ${strerror(error.code)}`);
  }
}
