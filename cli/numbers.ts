/**
 * Parsing the user's numbers, and printing numbers as QEMU does.
 *
 * @module
 */
import { parseSize } from "../core/options.ts";
import { fixed, valueText } from "../core/values.ts";
import { CommandError } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";

/**
 * The largest signed 64-bit integer, as text, since a number would be inexact.
 */
const INT64_MAX = "9223372036854775807";

/** The largest signed 32-bit integer. */
export const INT32_MAX = 2 ** 31 - 1;

/**
 * Parse a size given on the command line; `what` names it in messages.
 *
 * @throws {CommandError} if it is invalid, or not between `least` and `most`,
 * by default 2^63-1.
 */
export function sizeArgument(
  what: string,
  text: string,
  least = 0,
  most?: number,
): number {
  const size = parseSize(text) ?? negative(text, parseSize);
  if (size === undefined) {
    if (quotesNumbers()) {
      throw quoted(what, text, "; suffixes are k, M, G, T, P and E");
    }
    const detail = ` ${valueText(text)}`;
    throw new CommandError(
      `Invalid ${what}${detail} specified. You may use k, M, G, T, P or E ` +
        "suffixes for\nkilobytes, megabytes, gigabytes, terabytes, petabytes " +
        "and exabytes.",
      { detail },
    );
  }
  if (size < least || size > (most ?? 2 ** 63 - 1024)) {
    throw outOfRange(what, text, least, most ?? INT64_MAX);
  }
  return size;
}

/** Whether invalid numbers are quoted in messages. */
export function quotesNumbers(): boolean {
  return inRelease("quotedNumber") !== undefined;
}

/** A negative number, which some commands parse only to report its range. */
function negative(
  text: string,
  parse: (text: string) => number | undefined,
): number | undefined {
  if (!quotesNumbers() || !text.startsWith("-")) return undefined;
  const size = parse(text.slice(1));
  return size === undefined ? undefined : -size;
}

/** The error for text that is not a number; `advice` is ours. */
function quoted(what: string, text: string, advice = ""): CommandError {
  const end = inRelease("quotedNumber");
  return new CommandError(
    `Invalid ${what} specified: ${valueText(text)}${advice}${end}`,
    { detail: advice },
  );
}

function outOfRange(
  what: string,
  text: string,
  least: number,
  most: number | string,
): CommandError {
  const detail = ` ${valueText(text)}`;
  return new CommandError(
    `Invalid ${what}${detail} specified. Must be between ${least} and ` +
      `${most}.`,
    { detail },
  );
}

/**
 * Parse a number without a suffix; `what` names it in messages.
 *
 * @throws {CommandError} if it is invalid, or not between `least` and `most`.
 */
export function numberArgument(
  what: string,
  text: string,
  least: number,
  most: number,
): number {
  const value = cInteger(text);
  if (value !== undefined && value >= least && value <= most) return value;
  if (quotesNumbers()) {
    throw value === undefined
      ? quoted(what, text)
      : outOfRange(what, text, least, most);
  }
  const detail = ` ${valueText(text)}`;
  throw new CommandError(`Invalid ${what}${detail} specified`, { detail });
}

/** Parse an integer as C's `strtol` with base 0; `undefined` if invalid. */
export function cInteger(text: string): number | undefined {
  const match = /^\s*([+-]?)(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)$/i.exec(text);
  if (!match) return undefined;
  const [, sign, digits] = match;
  const isOctal = /^0[0-7]+$/.test(digits);
  const value = isOctal ? parseInt(digits, 8) : Number(digits);
  return sign === "-" ? -value : value;
}

/** A whole number with all its digits, even beyond 2^53. */
export function integerText(value: number | bigint): string {
  // `String` is faster, but inexact beyond.
  return Number.isSafeInteger(value) ? String(value) : BigInt(value).toString();
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** A size with three digits and a unit, such as `1.5 GiB`. */
export function humanSize(bytes: number): string {
  // From 1000 on, use the next unit, so that three digits suffice.
  let unit = 0;
  while (bytes / (1000 / 1024) >= 1024 ** (unit + 1)) unit++;
  return `${threeDigits(bytes / 1024 ** unit)} ${UNITS[unit]}`;
}

/** C's `%.3g` for values of 0 and from 0.1 to 1000. */
function threeDigits(value: number): string {
  if (value === 0) return "0";
  const digits = value < 1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0;
  const text = fixed(value, digits);
  if (Number(text) >= 1000) return "1e+03";
  return String(Number(text));
}
