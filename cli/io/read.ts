/**
 * `read` and `readv`.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { Image } from "../../core/image.ts";
import type { OptionSpec } from "../getopt.ts";
import { inRelease } from "../qemu_releases.ts";
import {
  type Call,
  type IoCommand,
  Refusal,
  SILENT,
  TERSE,
} from "./command.ts";
import { byteCount, patternByte } from "./numbers.ts";
import { dumpText, reportText } from "./report.ts";
import {
  checkLength,
  checkSectors,
  filled,
  type Reporting,
  timed,
  vectorOf,
} from "./requests.ts";

/** The byte that fills buffers before a read. */
export const UNREAD = 0xab;

/** The letter of {@linkcode REGISTERED} in usage texts, where it is known. */
export const registered = () => inRelease("registeredBuffer");

/** How to show the data read. */
export interface Showing extends Reporting {
  /** Dump all of it. */
  dump?: boolean;
  /** The byte that the data must consist of. */
  pattern?: number;
}

/** The option for buffers that QEMU registers with its drivers beforehand. */
export const REGISTERED: OptionSpec = { short: "r", help: "has no effect" };

/** The options on showing the data read. */
export const SHOWING: readonly OptionSpec[] = [
  TERSE,
  {
    short: "P",
    argument: "BYTE",
    help: "fail unless all bytes read are this one",
  },
  SILENT,
  { short: "v", help: "show the bytes read" },
  REGISTERED,
];

/** Parse one of these options. */
export function takeShowing(
  showing: Showing,
  option: string,
  argument: string,
): void {
  if (option === "C") showing.terse = true;
  else if (option === "q") showing.silent = true;
  else if (option === "v") showing.dump = true;
  else if (option === "P") showing.pattern = patternByte(argument);
}

/** `read`. */
export const read: IoCommand = {
  name: "read",
  alias: "r",
  get usage() {
    return `[-abCq${registered()}v] [-P pattern [-s off] [-l len]] off len`;
  },
  summary: "reads a number of bytes at a specified offset",
  min: 2,
  max: Infinity,
  options: [
    ...SHOWING,
    { short: "b", help: "read VM state, not the disk" },
    { short: "l", argument: "LEN", help: "with -P, bytes to compare" },
    { short: "p", help: "has no effect" },
    { short: "s", argument: "OFF", help: "with -P, bytes to skip first" },
  ],

  async run(call) {
    const { image, background } = call.session;
    const { vmState, isRegistered, skip, lookAt, ...showing } = parseRead(call);
    if (call.operands.length !== 2) throw call.misused();
    const [offset, length] = call.operands.map((word) => byteCount(word));
    checkLength(length, call.operands[1]);
    if (showing.pattern === undefined && (skip ?? lookAt) !== undefined) {
      throw call.misused();
    }
    const range = lookedAt(length, skip, lookAt);
    if (vmState) {
      if (isRegistered) {
        throw new Refusal(
          "I/O buffer registration is not supported when reading from vmstate",
        );
      }
      checkSectors(offset, length);
    }
    const buffer = filled(length, UNREAD);
    const request = () =>
      vmState ? readVmState(image, offset, buffer) : image.read(offset, buffer);
    const seconds = await background.during(timed("read", request));
    present(call, shown(buffer, offset, seconds, showing, range));
  },
};

interface ReadOptions extends Showing {
  vmState?: boolean;
  isRegistered?: boolean;
  skip?: number;
  lookAt?: number;
}

function parseRead(call: Call): ReadOptions {
  const options: ReadOptions = {};
  for (const [option, argument] of call.options()) {
    if (option === "b") options.vmState = true;
    else if (option === "r") options.isRegistered = true;
    else if (option === "l") options.lookAt = byteCount(argument);
    else if (option === "s") options.skip = byteCount(argument);
    else takeShowing(options, option, argument);
  }
  return options;
}

/** A part of the data read. */
interface Range {
  readonly start: number;
  readonly end: number;
}

/** The part to be compared with the pattern. */
function lookedAt(
  length: number,
  start = 0,
  count: number = length - start,
): Range {
  if (count < 0 || start + count > length) {
    throw new Refusal("pattern verification range exceeds end of read data");
  }
  return { start, end: start + count };
}

async function readVmState(
  { node }: Image,
  offset: number,
  buffer: Uint8Array,
): Promise<void> {
  if (!node.vmState) throw new BlockError("ENOTSUP");
  await node.vmState.load(offset, [buffer]);
}

/** `readv`. */
export const readv: IoCommand = {
  name: "readv",
  get usage() {
    return `[-Cq${registered()}v] [-P pattern] off len [len..]`;
  },
  summary: "reads a number of bytes at a specified offset",
  min: 2,
  max: Infinity,
  options: SHOWING,

  async run(call) {
    const { image, background } = call.session;
    const showing: Showing = {};
    for (const option of call.options()) takeShowing(showing, ...option);
    if (call.operands.length < 2) throw call.misused();
    const [at, ...sizes] = call.operands;
    const offset = byteCount(at);
    const { whole, parts } = vectorOf(sizes, UNREAD);
    const request = () => image.readv(offset, parts);
    const seconds = await background.during(timed("readv", request));
    present(call, shown(whole, offset, seconds, showing));
  },
};

/** The report on a read. */
interface Shown {
  readonly text: string;
  /** Whether the data matches the pattern. */
  readonly isExpected: boolean;
}

/** Compare data read from `offset` with the pattern, and report. */
export function shown(
  bytes: Uint8Array,
  offset: number,
  seconds: number,
  showing: Showing,
  range: Range = { start: 0, end: bytes.length },
): Shown {
  const { pattern, silent, dump, terse = false } = showing;
  const { start, end } = range;
  const { length } = bytes;
  const isExpected = pattern === undefined ||
    consistsOf(bytes.subarray(start, end), pattern);
  let text = isExpected
    ? ""
    : `Pattern verification failed at offset ${offset + start}, ` +
      `${end - start} bytes\n`;
  if (!silent) {
    if (dump) text += dumpText(bytes, offset);
    text += reportText({ verb: "read", offset, length, seconds, terse });
  }
  return { text, isExpected };
}

function consistsOf(bytes: Uint8Array, value: number): boolean {
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i] !== value) return false;
  }
  return true;
}

function present(call: Call, { text, isExpected }: Shown): void {
  call.session.program.print(text);
  if (!isExpected) throw new Refusal();
}
