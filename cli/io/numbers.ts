/**
 * Parsing and printing numbers as `qemu-io` does.
 *
 * @module
 */
import { parseSize } from "../../core/options.ts";
import { cInteger } from "../numbers.ts";
import { fixed } from "../../core/values.ts";
import { Refusal } from "./command.ts";

const INT64_MAX = 2n ** 63n - 1n;

/**
 * Parse a count of bytes, with an optional suffix.
 *
 * @param name Its name in messages.
 * @throws {Refusal} if it is invalid or above 2^63-1.
 */
export function byteCount(text: string, name: string = text): number {
  const value = parseSize(text);
  if (value === undefined) {
    throw new Refusal(
      "Parsing error: non-numeric argument, or extraneous/unrecognized " +
        `suffix -- ${name}`,
    );
  }
  if (exceedsInt64(text, value)) {
    throw new Refusal(`Parsing error: argument too large -- ${name}`);
  }
  return value;
}

/** Whether `text` exceeds 2^63-1; `value` is its nearest number. */
function exceedsInt64(text: string, value: number): boolean {
  if (value < 2 ** 63) return false;
  const isExact = value === 2 ** 63 && /^(0x[0-9a-f]+|[0-9]+)$/i.test(text);
  return !isExact || BigInt(text) > INT64_MAX;
}

/** Parse the byte of a pattern. */
export function patternByte(text: string): number {
  const value = cInteger(text);
  if (value === undefined || value < 0 || value > 255) {
    throw new Refusal(`${text} is not a valid pattern byte`);
  }
  return value;
}

const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** A size with a unit and three digits after the point, unless all are zero. */
export function sizeText(bytes: number): string {
  let unit = -1;
  while (unit < UNITS.length - 1 && bytes >= 1024 ** (unit + 2)) unit++;
  const digits = unit < 0
    ? bytes.toFixed(6)
    : fixed(bytes / 1024 ** (unit + 1), 3);
  const zeroes = digits.indexOf(".000");
  const shown = zeroes < 0 ? digits : digits.slice(0, zeroes);
  return `${shown} ${unit < 0 ? "bytes" : UNITS[unit]}`;
}
