/**
 * Images on standard input and standard output.
 *
 * @module
 */
import { HEAD_LENGTH, TAIL_LENGTH } from "../core/formats.ts";
import {
  doubtsOfRaw,
  type Guess,
  guessFormat,
  onlyFormat,
  type Sample,
} from "../core/probe.ts";
import { surviveSignal } from "../core/runtime.ts";
import { PAUSE, streamError } from "./output.ts";
import { CommandError, type Program } from "./program.ts";

/**
 * The name of the file that is standard input; `undefined` if it is a pipe, or
 * if part of it was read, so that it must be read from there.
 */
export function inputFile(): string | undefined {
  try {
    const { isFile } = Deno.statSync("/dev/stdin");
    const facts = Deno.readTextFileSync("/proc/self/fdinfo/0");
    return isFile && /^pos:\s*0$/m.test(facts) ? "/dev/stdin" : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The bytes of standard input, which are those of a raw disk.
 *
 * @param format The format that the user says it has; if none, it must not
 * look like another one, neither as it begins nor as it ends.
 */
export async function* readInput(
  program: Program,
  format: string | undefined,
): AsyncGenerator<Uint8Array, void> {
  if (format !== undefined && format !== "raw") throw cannotReadPipe(format);
  if (Deno.stdin.isTerminal()) {
    throw new CommandError("Standard input is a terminal: no image is there");
  }
  const chunks = inputChunks();
  if (format !== undefined) return yield* chunks;
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
  checkRaw({ head, tail: new Uint8Array(), size });
  yield first;
  for await (const chunk of chunks) {
    size += chunk.length;
    tail = joined(tail, chunk.subarray(-TAIL_LENGTH)).slice(-TAIL_LENGTH);
    yield chunk;
  }
  const doubts = doubtsOfRaw(head, checkRaw({ head, tail, size }), "-");
  if (doubts) program.warn(doubts);
}

/** What a guess makes of a raw disk; other images cannot be read. */
function checkRaw(sample: Sample): Guess {
  const guess = guessFormat(sample, "-");
  const { name } = onlyFormat(guess, "-");
  if (name !== "raw") throw cannotReadPipe(name);
  return guess;
}

function cannotReadPipe(format: string): CommandError {
  return new CommandError(
    `Cannot read an image of format '${format}' from a pipe, only raw data`,
    { hint: "Use -f raw to copy its bytes as they are." },
  );
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

async function* inputChunks(): AsyncGenerator<Uint8Array, void> {
  try {
    // Not synchronously: while that waits, no signal is heeded.
    for await (const chunk of Deno.stdin.readable) yield chunk;
  } catch (error) {
    throw streamError("read from standard input", error);
  }
}

/** Refuse to have an image shown to the user. */
export function checkOutput(): void {
  if (Deno.stdout.isTerminal()) {
    throw new CommandError(
      "Standard output is a terminal: an image is not shown there",
    );
  }
}

/** Write an image to standard output. */
export async function writeOutput(
  chunks: AsyncIterable<Uint8Array>,
): Promise<void> {
  // At a limit to the size of files, it fails with an error that is told.
  surviveSignal("SIGXFSZ");
  for await (const chunk of chunks) {
    try {
      for (let at = 0; at < chunk.length;) {
        at += await writeSome(chunk.subarray(at));
      }
    } catch (error) {
      throw streamError("write to standard output", error);
    }
  }
}

/** Four times as fast synchronously; a pipe may be set up not to wait, though. */
async function writeSome(bytes: Uint8Array): Promise<number> {
  for (;;) {
    try {
      return Deno.stdout.writeSync(bytes);
    } catch (error) {
      if (error instanceof Deno.errors.Interrupted) continue;
      if (!(error instanceof Deno.errors.WouldBlock)) throw error;
      // Signals are heeded meanwhile.
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}
