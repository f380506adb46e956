/**
 * `qemu-io`'s reports of requests: the bytes read, and the time taken.
 *
 * @module
 */
import { integerText } from "../numbers.ts";
import { fixed } from "../../core/values.ts";
import { sizeText } from "./numbers.ts";

/** A request that succeeded. */
export interface Done {
  /** The verb, such as `wrote`. */
  readonly verb: string;
  readonly offset: number;
  readonly length: number;
  readonly seconds: number;
  /** Whether the report is for a program (`-C`). */
  readonly terse: boolean;
}

/** The report of a request, one or two lines. */
export function reportText(done: Done): string {
  const { verb, offset, length, terse } = done;
  // Avoid a division by zero if the clock stood still.
  const seconds = Math.max(done.seconds, 1e-9);
  const rate = length / seconds;
  const time = timeText(seconds, terse);
  if (terse) {
    return `${length},1,${time},${fixed(rate, 3)},${fixed(1 / seconds, 3)}\n`;
  }
  return `${verb} ${integerText(length)}/${integerText(length)} bytes ` +
    `at offset ${integerText(offset)}\n` +
    `${sizeText(length)}, 1 ops; ${time} ` +
    `(${sizeText(rate)}/sec and ${(1 / seconds).toFixed(4)} ops/sec)\n`;
}

function timeText(seconds: number, withHours: boolean): string {
  const whole = Math.floor(seconds);
  const text = (seconds - whole + whole % 60).toFixed(2).padStart(5, "0");
  if (!withHours && whole === 0) return `${text} sec`;
  const minutes = String(Math.floor(whole / 60) % 60).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${minutes}:${text}`;
}

const LINE = 16;

/** A dump in hexadecimal and ASCII; `offset` is that of the first byte. */
export function dumpText(bytes: Uint8Array, offset: number): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += LINE) {
    const line = Array.from(bytes.subarray(at, at + LINE));
    const digits = line.map((byte) => `${hex(byte, 2)} `).join("");
    const letters = line.map(letterOrDot).join("");
    text += `${hex(offset + at, 8)}:  ${digits} ${letters}\n`;
  }
  return text;
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, "0");
}

function letterOrDot(byte: number): string {
  const char = String.fromCharCode(byte);
  return /[0-9A-Za-z]/.test(char) ? char : ".";
}
