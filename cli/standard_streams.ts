/**
 * Images on standard input and standard output.
 *
 * @module
 */
import {
  HEAD_LENGTH,
  TAIL_LENGTH,
  type Wrapping,
  wrappingOf,
} from "../core/formats.ts";
import {
  doubtsOfRaw,
  type Guess,
  guessFormat,
  onlyFormat,
  type Sample,
} from "../core/probe.ts";
import { localFiles } from "../core/platform/mod.ts";
import type { InputFile } from "../core/platform/process.ts";
import { process } from "../core/platform/this_process.ts";
import { canRetry, PAUSE, streamError } from "./output.ts";
import { CommandError, type Program } from "./program.ts";

/**
 * The name of the file that standard input reads; `undefined` if it is a pipe,
 * or a file that has been read in part.
 */
export function inputFile(): string | undefined {
  try {
    const { isFile } = process.status("/dev/stdin");
    const facts = localFiles().readText("/proc/self/fdinfo/0");
    return isFile && /^pos:\s*0$/m.test(facts) ? "/dev/stdin" : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Read a raw disk from standard input.
 *
 * @param format The format given by the user; without one, neither the
 * beginning nor the end may look like another format.
 */
export async function* readInput(
  program: Program,
  format: string | undefined,
): AsyncGenerator<Uint8Array, void> {
  if (format !== undefined && format !== "raw") throw cannotReadPipe(format);
  if (process.input.isTerminal()) {
    throw new CommandError("Standard input is a terminal, not an image");
  }
  const chunks = inputChunks();
  if (format !== undefined) return yield* chunks;
  const doubts = yield* checkedRaw(
    chunks,
    "-",
    (format, wrapping) => {
      if (format !== "raw") return cannotReadPipe(format);
      return program.isOurs && wrapping ? isPacked(wrapping) : undefined;
    },
  );
  if (doubts) program.warn(doubts);
}

/**
 * The error for a disk in an unexpected format or packing; `undefined` if it is
 * acceptable.
 */
export type Refusal = (
  format: string,
  wrapping?: Wrapping,
) => Error | undefined;

/**
 * Pass a disk on, unless its beginning or end looks like a format that is
 * refused; returns a warning about it.
 */
export async function* checkedRaw(
  chunks: AsyncGenerator<Uint8Array, void>,
  name: string,
  refuse: Refusal,
): AsyncGenerator<Uint8Array, string | undefined> {
  let first = new Uint8Array();
  while (first.length < HEAD_LENGTH) {
    const { value, done } = await chunks.next();
    if (done) break;
    first = joined(first, value);
  }
  const head = new Uint8Array(HEAD_LENGTH);
  head.set(first.subarray(0, HEAD_LENGTH));
  let { length: size } = first;
  let tail = first.slice(-TAIL_LENGTH);
  checkRaw({ head, tail: new Uint8Array(), size }, name, refuse);
  yield first;
  for await (const chunk of chunks) {
    size += chunk.length;
    tail = joined(tail, chunk.subarray(-TAIL_LENGTH)).slice(-TAIL_LENGTH);
    yield chunk;
  }
  const guess = checkRaw({ head, tail, size }, name, refuse);
  return doubtsOfRaw(head, guess, name);
}

/** Probe a sample, and refuse anything but raw. */
function checkRaw(
  sample: Sample,
  name: string,
  refuse: Refusal,
): Guess {
  const guess = guessFormat(sample, name);
  const format = onlyFormat(guess, name);
  const error = refuse(format.name, wrappingOf(sample.head));
  if (error) throw error;
  return guess;
}

function cannotReadPipe(format: string): CommandError {
  return new CommandError(
    `Cannot read an image of format '${format}' from a pipe, only raw data`,
    { hint: "Use -f raw to copy its bytes as they are." },
  );
}

function isPacked({ what, command }: Wrapping): CommandError {
  return new CommandError(`What the pipe delivers is ${what}`, {
    hint: `Unpack it first (${command}), or use -f raw to copy its bytes as ` +
      "they are.",
  });
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** Bytes of a read, as many as a pipe holds. */
const CHUNK = 64 * 1024;

/** The bytes of a pipe or of standard input, in pieces as they arrive. */
export async function* inputChunks(
  input: Pick<InputFile, "read"> = process.input,
): AsyncGenerator<Uint8Array, void> {
  try {
    // Not synchronously: a blocking read would delay signals.
    for (;;) {
      const chunk = new Uint8Array(CHUNK);
      const count = await input.read(chunk);
      if (count === null) return;
      yield chunk.subarray(0, count);
    }
  } catch (error) {
    const what = input === process.input ? "standard input" : "the pipe";
    throw streamError(`read from ${what}`, error);
  }
}

/** Refuse to write an image to a terminal. */
export function checkOutput(): void {
  if (process.output.isTerminal()) {
    throw new CommandError(
      "Standard output is a terminal: cannot write an image to it",
    );
  }
}

/**
 * Write an image to standard output. If it fails, what a file then holds is
 * said to be incomplete: it may look like a whole image.
 */
export async function writeOutput(
  program: Program,
  chunks: AsyncIterable<Uint8Array>,
): Promise<void> {
  let hasBegun = false;
  try {
    for await (const chunk of chunks) {
      for (let at = 0; at < chunk.length;) {
        at += await writeSome(chunk.subarray(at));
        hasBegun = true;
      }
    }
  } catch (error) {
    if (hasBegun && outputIsFile()) {
      program.error("Standard output is left incomplete");
    }
    throw error;
  }
}

function outputIsFile(): boolean {
  try {
    return process.status("/dev/stdout").isFile;
  } catch {
    return false;
  }
}

/** Synchronous writes are faster, but a nonblocking pipe may be full. */
async function writeSome(bytes: Uint8Array): Promise<number> {
  for (;;) {
    try {
      return process.output.write(bytes);
    } catch (error) {
      if (!canRetry(error)) {
        throw streamError("write to standard output", error);
      }
      // Signals can be handled meanwhile.
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}
