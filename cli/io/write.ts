/**
 * `write`, `writev` and `discard`.
 *
 * @module
 */
import { BlockError, strerror } from "../../core/errors.ts";
import type { Image } from "../../core/image.ts";
import type { WriteFlags, ZeroFlags } from "../../core/node.ts";
import { writesThrough } from "./opening.ts";
import type { OptionSpec } from "../getopt.ts";
import {
  type Call,
  type IoCommand,
  Refusal,
  SILENT,
  TERSE,
} from "./command.ts";
import { byteCount, patternByte } from "./numbers.ts";
import { REGISTERED, registered } from "./read.ts";
import { reportText } from "./report.ts";
import {
  checkLength,
  checkSectors,
  filled,
  type Reporting,
  timed,
  vectorOf,
} from "./requests.ts";
import { headOf } from "./source_file.ts";

/** The byte written by default. */
export const UNTOUCHED = 0xcd;

/** `-P`. */
export const FILL: OptionSpec = {
  short: "P",
  argument: "BYTE",
  help: "write this byte, not 0xcd",
};

/** `-f`. */
export const FUA: OptionSpec = {
  short: "f",
  help: "make the write durable before it completes (FUA)",
};

/** `-u`. */
export const UNMAP: OptionSpec = {
  short: "u",
  help: "with -z, permit freeing the space",
};

/** `-z`. */
export const ZERO: OptionSpec = { short: "z", help: "write zeroes, not data" };

/** Options of all writes. */
export interface WriteOptions extends Reporting, ZeroFlags {
  zero?: boolean;
  pattern?: number;
  isRegistered?: boolean;
}

/** Parse an option of all writes. */
export function takeWriting(
  options: WriteOptions,
  option: string,
  argument: string,
): void {
  if (option === "C") options.terse = true;
  else if (option === "q") options.silent = true;
  else if (option === "f") options.fua = true;
  else if (option === "u") options.unmap = true;
  else if (option === "z") options.zero = true;
  else if (option === "r") options.isRegistered = true;
  else if (option === "P") options.pattern = patternByte(argument);
}

/** Refuse a registered buffer for a write of zeroes, which uses none. */
export function checkBuffer({ zero, isRegistered }: WriteOptions): void {
  if (!zero || !isRegistered) return;
  throw new Refusal("cannot combine zero write with registered I/O buffer");
}

/** `write`. */
export const write: IoCommand = {
  name: "write",
  alias: "w",
  get usage() {
    return `[-bcCfnq${registered()}uz] [-P pattern | -s source_file] off len`;
  },
  summary: "writes a number of bytes at a specified offset",
  min: 2,
  max: Infinity,
  needs: "writable",
  options: [
    { short: "b", help: "write VM state, not the disk" },
    { short: "c", help: "store it compressed" },
    TERSE,
    FUA,
    { short: "n", help: "with -z, fail rather than write zeroes as data" },
    { short: "p", help: "has no effect" },
    FILL,
    SILENT,
    { short: "s", argument: "FILE", help: "write the content of this file" },
    UNMAP,
    ZERO,
    REGISTERED,
  ],

  async run(call) {
    const options = parseWrite(call);
    if (call.operands.length !== 2) throw call.misused();
    checkTogether(options);
    const [offset, length] = call.operands.map((word) => byteCount(word));
    if (!options.noFallback) {
      checkLength(length, call.operands[1], " without -n");
    }
    if (options.vmState || options.compressed) checkSectors(offset, length);
    const request = await requestOf(call, options, offset, length);
    await perform(call, "write", options, { offset, length }, request);
  },
};

interface SingleWriteOptions extends WriteOptions {
  vmState?: boolean;
  compressed?: boolean;
  source?: string;
}

function parseWrite(call: Call): SingleWriteOptions {
  const options: SingleWriteOptions = {};
  for (const [option, argument] of call.options()) {
    if (option === "b") options.vmState = true;
    else if (option === "c") options.compressed = true;
    else if (option === "n") options.noFallback = true;
    else if (option === "s") options.source = argument;
    else takeWriting(options, option, argument);
  }
  return options;
}

/** Refuse options that exclude each other. */
function checkTogether(options: SingleWriteOptions): void {
  const { vmState, compressed, zero, fua, noFallback, unmap } = options;
  const atOnce = "cannot be specified at the same time";
  if (vmState && zero) throw new Refusal(`-b and -z ${atOnce}`);
  if (fua && (vmState || compressed)) {
    throw new Refusal(`-f and -b or -c ${atOnce}`);
  }
  if (noFallback && !zero) throw new Refusal("-n requires -z to be specified");
  if (unmap && !zero) throw new Refusal("-u requires -z to be specified");
  checkBuffer(options);
  const { pattern, source } = options;
  const contents = [zero || undefined, pattern, source];
  if (contents.filter((content) => content !== undefined).length > 1) {
    throw new Refusal(
      "Only one of -z, -P, and -s can be specified at the same time",
    );
  }
}

/** Prepare the data, and return the request. */
async function requestOf(
  call: Call,
  options: SingleWriteOptions,
  offset: number,
  length: number,
): Promise<() => Promise<void>> {
  const { image } = call.session;
  if (options.zero) return () => image.writeZeroes(offset, length, options);
  const data = options.source === undefined
    ? filled(length, options.pattern ?? UNTOUCHED)
    : await fromFile(call, options.source, length);
  if (options.compressed) {
    // QEMU never replaces an allocated cluster this way.
    return () => image.writeCompressed(offset, data, { onlyEmpty: true });
  }
  if (!options.vmState) return () => image.write(offset, data, options);
  return async () => {
    await writeVmState(image, offset, data);
    if (writesThrough(call.session.opening.cache)) await image.flush();
  };
}

/** Fill a buffer with a file's content, repeatedly. */
async function fromFile(
  call: Call,
  filename: string,
  length: number,
): Promise<Uint8Array> {
  let content: Uint8Array;
  try {
    content = await headOf(filename, length);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    call.session.program.printError(`${filename}: ${strerror(error.code)}\n`);
    throw new Refusal();
  }
  if (content.length === 0) {
    call.session.program.printError(`${filename}: file is empty\n`);
    throw new Refusal();
  }
  const data = filled(length, 0);
  for (let at = 0; at < length; at += content.length) {
    data.set(content.subarray(0, length - at), at);
  }
  return data;
}

async function writeVmState(
  { node }: Image,
  offset: number,
  data: Uint8Array,
): Promise<void> {
  if (!node.vmState) throw new BlockError("ENOTSUP");
  await node.vmState.save(offset, [data]);
}

/** `writev`. */
export const writev: IoCommand = {
  name: "writev",
  get usage() {
    return `[-Cfq${registered()}] [-P pattern] off len [len..]`;
  },
  summary: "writes a number of bytes at a specified offset",
  min: 2,
  max: Infinity,
  needs: "writable",
  options: [TERSE, FUA, SILENT, FILL, REGISTERED],

  async run(call) {
    const { image } = call.session;
    const options: WriteOptions = {};
    for (const option of call.options()) takeWriting(options, ...option);
    if (call.operands.length < 2) throw call.misused();
    const [at, ...sizes] = call.operands;
    const offset = byteCount(at);
    const { whole, parts } = vectorOf(sizes, options.pattern ?? UNTOUCHED);
    const range = { offset, length: whole.length };
    const flags: WriteFlags = options;
    const request = () => image.writev(offset, parts, flags);
    await perform(call, "writev", options, range, request);
  },
};

/** `discard`. */
export const discard: IoCommand = {
  name: "discard",
  alias: "d",
  usage: "[-Cq] off len",
  summary: "discards a number of bytes at a specified offset",
  min: 2,
  max: Infinity,
  needs: "writable",
  options: [TERSE, SILENT],

  async run(call) {
    const { image, opening } = call.session;
    const options: WriteOptions = {};
    for (const option of call.options()) takeWriting(options, ...option);
    if (call.operands.length !== 2) throw call.misused();
    const [offset, length] = call.operands.map((word) => byteCount(word));
    checkLength(length, call.operands[1]);
    const request = async () => {
      // Even if discards are ignored, the range must be within the disk.
      if (offset + length > image.size) throw new BlockError("EIO");
      if (opening.discard) await image.discard(offset, length);
    };
    await perform(call, "discard", options, { offset, length }, request);
  },
};

/** Make a request, wait for it, and report it. */
async function perform(
  { session }: Call,
  what: string,
  { silent, terse = false }: Reporting,
  range: { offset: number; length: number },
  request: () => Promise<unknown>,
): Promise<void> {
  const seconds = await session.background.during(timed(what, request));
  if (silent) return;
  const verb = what === "discard" ? "discard" : "wrote";
  session.program.print(reportText({ ...range, verb, seconds, terse }));
}
