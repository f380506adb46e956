/**
 * Lines from standard input.
 *
 * @module
 */

import { process } from "../../core/platform/this_process.ts";

/** Longer lines are split into pieces of this many bytes. */
const MAX_LINE = 1023;
const NEWLINE = 10;

/**
 * The lines of standard input, each as soon as it arrives. `waiting` receives
 * the promise being awaited.
 */
export async function* inputLines(
  waiting: <T>(wait: Promise<T>) => Promise<T>,
): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const chunk = new Uint8Array(64 * 1024);
  let held = new Uint8Array(0);
  for (;;) {
    const count = await waiting(process.input.read(chunk));
    if (count === null) break;
    const bytes = new Uint8Array(held.length + count);
    bytes.set(held);
    bytes.set(chunk.subarray(0, count), held.length);
    held = bytes;
    for (;;) {
      const end = held.subarray(0, MAX_LINE).indexOf(NEWLINE);
      if (end < 0 && held.length < MAX_LINE) break;
      yield decoder.decode(held.subarray(0, end < 0 ? MAX_LINE : end));
      held = held.subarray(end < 0 ? MAX_LINE : end + 1);
    }
  }
  if (held.length > 0) yield decoder.decode(held);
}
