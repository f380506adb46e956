/**
 * Code shared by all commands that read or write.
 *
 * @module
 */
import { allocate, SECTOR_SIZE } from "../../core/bytes.ts";
import {
  BlockError,
  OutOfRangeError,
  reasonOf,
  strerror,
} from "../../core/errors.ts";
import { integerText } from "../numbers.ts";
import { Refusal } from "./command.ts";
import { byteCount } from "./numbers.ts";

/** The longest request: 2 GiB less a sector. */
const MAX_REQUEST = 2 ** 31 - 512;

/** How to report a request. */
export interface Reporting {
  /** Report nothing. */
  silent?: boolean;
  /** Report in one line, for a program. */
  terse?: boolean;
}

/** Refuse lengths beyond the longest request. */
export function checkLength(length: number, text: string, but = ""): void {
  if (length <= MAX_REQUEST) return;
  throw new Refusal(`length cannot exceed ${MAX_REQUEST}${but}, given ${text}`);
}

/** Refuse a range that does not consist of whole sectors. */
export function checkSectors(offset: number, count: number): void {
  for (const [name, value] of Object.entries({ offset, count })) {
    if (value % SECTOR_SIZE === 0) continue;
    throw new Refusal(
      `${integerText(value)} is not a sector-aligned value for '${name}'`,
    );
  }
}

/**
 * Make a request; returns the seconds it took.
 *
 * @param what Its name in the message if it fails.
 */
export async function timed(
  what: string,
  request: () => Promise<unknown>,
): Promise<number> {
  const start = performance.now();
  try {
    await request();
  } catch (error) {
    // Anything else is a bug, not an I/O error.
    if (!(error instanceof BlockError)) throw error;
    const why = error instanceof OutOfRangeError
      ? strerror("EIO")
      : reasonOf(error);
    throw new Refusal(`${what} failed: ${why}`);
  }
  return (performance.now() - start) / 1000;
}

/** The buffers of a vectored request, which are parts of one buffer. */
export interface Vector {
  readonly whole: Uint8Array;
  readonly parts: Uint8Array[];
}

/** Buffers of the sizes in the operands, filled with a byte. */
export function vectorOf(sizes: readonly string[], fill: number): Vector {
  const lengths: number[] = [];
  let total = 0;
  for (const text of sizes) {
    const length = byteCount(text);
    if (length > MAX_REQUEST) {
      throw new Refusal(
        `Argument '${text}' exceeds maximum size ${MAX_REQUEST}`,
      );
    }
    if (total > MAX_REQUEST - length) {
      throw new Refusal(
        `The total number of bytes exceed the maximum size ${MAX_REQUEST}`,
      );
    }
    lengths.push(length);
    total += length;
  }
  const whole = filled(total, fill);
  let at = 0;
  const parts = lengths.map((length) => whole.subarray(at, at += length));
  return { whole, parts };
}

/** A buffer filled with a byte. */
export function filled(length: number, fill: number): Uint8Array {
  return allocate(length).fill(fill);
}
