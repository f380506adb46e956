/**
 * `break`, `remove_break`, `resume` and `wait_break`: suspending requests,
 * where a `blkdebug` node is part of the file's stack.
 *
 * @module
 */
import { BlockError, strerror } from "../../core/errors.ts";
import type { Breakpoints } from "../../core/node.ts";
import { breakpointsOf } from "../../core/requests.ts";
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
      (breakpoints, [event, tag]) => breakpoints.breakpoint(event, tag),
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
      (breakpoints, [tag]) => breakpoints.removeBreakpoint(tag),
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
      (breakpoints, [tag]) => breakpoints.resume(tag),
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
    const breakpoints = breakpointsOf(session.image.node);
    // Without breakpoints, QEMU waits forever.
    if (!breakpoints) {
      throw new Refusal("Could not wait: Operation not supported");
    }
    await session.background.during(breakpoints.waitSuspended(words[0]));
  },
};

function debug(
  { session, words }: Call,
  what: string,
  action: (breakpoints: Breakpoints, words: readonly string[]) => void,
): void {
  try {
    const breakpoints = breakpointsOf(session.image.node);
    if (!breakpoints) throw new BlockError("ENOTSUP");
    action(breakpoints, words);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new Refusal(`${what}: ${strerror(error.code)}`);
  }
}
