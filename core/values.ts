/**
 * Callers' values in messages: on one short line, whatever they are.
 *
 * @module
 */

import { withoutSecrets } from "./redaction.ts";

/** Most characters of a value in a message. */
const MOST = 80;

/**
 * Text on one line of at most `most` characters; the middle of a longer text is
 * left out.
 */
export function shortened(text: string, most = 512): string {
  // Before a part of a secret is all that is left to be recognised.
  const whole = withoutSecrets(text);
  const line = whole.length > most
    ? `${whole.slice(0, most * 3 / 4)}\u2026${whole.slice(-(most / 4 - 1))}`
    : whole;
  // deno-lint-ignore no-control-regex
  return line.replace(/[\x00-\x1f\x7f]+/g, " ");
}

/** The longest name that a message quotes in full. */
const MAX_NAME = 1024;

/** A file name, shortened if it is too long for any system. */
export function nameText(name: string): string {
  return name.length > MAX_NAME ? shortened(name, 255) : withoutSecrets(name);
}

/** A node in messages: by its file's name, if it has one. */
export function nodeText(
  { filename, driver }: { filename: string; driver: { name: string } },
): string {
  return filename === ""
    ? `the ${driver.name} node`
    : `'${shortened(filename)}'`;
}

/** A value in a message: short ones in full, large ones by their kind. */
export function valueText(value: unknown): string {
  switch (typeof value) {
    case "string":
      return `'${shortened(value, MOST)}'`;
    case "function":
      return "a function";
    case "bigint":
      return `${shortened(String(value), MOST)}n`;
    case "object":
      return value === null ? "null" : objectText(value);
    default:
      return shortened(String(value), MOST);
  }
}

function objectText(value: object): string {
  try {
    if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) {
      return `a ${kindOf(value)} of ${value.byteLength} bytes`;
    }
    if (Array.isArray(value)) return `a list of ${value.length}`;
    const kind = kindOf(value);
    return kind === "Object" ? "an object" : `an object (${kind})`;
  } catch {
    // A foreign proxy or getter threw.
    return "an object";
  }
}

function kindOf(value: object): string {
  const { name } = value.constructor ?? {};
  return typeof name === "string" && name !== ""
    ? shortened(name, MOST)
    : "Object";
}

/** Whether a value is a plain object. */
export function isPlainObject(
  value: unknown,
): value is { [name: string]: unknown } {
  if (typeof value !== "object" || value === null) return false;
  try {
    const prototype = Object.getPrototypeOf(value);
    // Objects of another realm have that realm's own `Object.prototype`.
    return prototype === null || Object.getPrototypeOf(prototype) === null;
  } catch {
    return false; // A revoked proxy.
  }
}

/**
 * C's `%.Nf`, up to three digits: ties go to even, where `toFixed` rounds up.
 */
export function fixed(value: number, digits: number): string {
  const scaled = value * 10 ** digits;
  const below = Math.floor(scaled);
  const isTie = scaled - below === 0.5 &&
    Number.isInteger(value * 2 ** (digits + 1));
  if (isTie && below % 2 === 0) {
    return (below / 10 ** digits).toFixed(digits);
  }
  return value.toFixed(digits);
}
