/**
 * The driver `xz` ("The .xz File Format", version 1.2). Each stream ends in an
 * index of its blocks, which are unpacked on demand, unless they are very
 * large.
 *
 * @module
 */
import { allocate, roundUp, viewOf } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { parseOptions } from "../../core/options.ts";
import { crc32 } from "./crc32.ts";
import { damaged, unpackXz, xzUnpacker } from "./native.ts";
import { cannotSeek, unpacked } from "./sequence.ts";
import { bytesAt } from "./reading.ts";
import { MAX_UNIT, MAX_UNITS, type Unit, Units, unitsNode } from "./units.ts";
import { checkReadOnly } from "./window.ts";

/** Bytes of a stream's header and of its footer. */
const ENDS = 12;
/** Blocks are padded to a multiple of this, before their checksum. */
const PADDING = 4;
/** Most bytes of an index. */
const MAX_INDEX = 32 * 1024 * 1024;
const MAGIC = [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0];

/** A disk in a file that is compressed with xz. */
export const xzDriver: BlockDriver = {
  name: "xz",
  role: "format",
  isContainer: true,
  openOptions: {},

  async open(options, context) {
    parseOptions({}, options, ["file"]);
    checkReadOnly(context, "A file compressed with xz");
    const file = await context.openChild("file");
    await checkMagic(file);
    const blocks = await blocksOf(file);
    if (blocks.units.largest > MAX_UNIT) {
      throw cannotSeek("A file compressed with xz in large blocks", "xz -dk");
    }
    return unitsNode(xzDriver, file, blocks.units, (stored, target, unit) => {
      const flags = blocks.flags(unit.start);
      unpackXz(singleStream(stored, flags, unit), target);
    }, PADDING);
  },

  async *unpack(options, file) {
    parseOptions({}, options, ["file"]);
    await checkMagic(file);
    yield* unpacked(file, { start: 0, size: file.size }, xzUnpacker());
  },
};

async function checkMagic(file: BlockNode): Promise<void> {
  const head = await bytesAt(file, 0, MAGIC.length);
  if (MAGIC.some((byte, i) => head[i] !== byte)) {
    throw invalid("It is not in xz's format");
  }
}

/** The blocks of all streams of a file. */
interface Blocks {
  /** Their stored sizes exclude padding, as in the index. */
  readonly units: Units;
  /** The stream flags of the block at `start`. */
  flags(start: number): number;
}

/** A stream of a file. */
interface Stream {
  readonly start: number;
  readonly flags: number;
  /** For each block, its stored size without padding, and its unpacked size. */
  readonly records: Float64Array;
}

/** Read the indices, beginning with the last. */
async function blocksOf(file: BlockNode): Promise<Blocks> {
  const streams: Stream[] = [];
  let count = 0;
  for (let end = file.size; end > 0;) {
    const stream = await streamBefore(file, end);
    if (stream === "padding") {
      end -= 4;
      continue;
    }
    streams.push(stream);
    count += stream.records.length / 2;
    if (count > MAX_UNITS || streams.length > MAX_STREAMS) {
      throw new BlockError("EFBIG", "The xz file has too many blocks");
    }
    end = stream.start;
  }
  streams.reverse();
  const units = new Units();
  for (const { start, records } of streams) {
    let at = start + ENDS;
    for (let i = 0; i < records.length; i += 2) {
      units.add(at, records[i], records[i + 1]);
      at += roundUp(records[i], PADDING);
    }
  }
  return {
    units,
    flags: (at) => streams.findLast(({ start }) => start < at)!.flags,
  };
}

/** Most streams of a file: each costs three reads. */
const MAX_STREAMS = 100_000;

async function streamBefore(
  file: BlockNode,
  end: number,
): Promise<Stream | "padding"> {
  if (end < 2 * ENDS) throw damaged("xz");
  const footer = await bytesAt(file, end - ENDS, ENDS);
  const view = viewOf(footer);
  if (view.getUint32(8) === 0) return "padding";
  const flags = view.getUint16(8);
  const isWhole = footer[10] === 0x59 && footer[11] === 0x5a &&
    view.getUint32(0, true) === crc32(footer.subarray(4, 10));
  const indexSize = (view.getUint32(4, true) + 1) * 4;
  const indexAt = end - ENDS - indexSize;
  if (!isWhole || indexAt < ENDS) throw damaged("xz");
  if (indexSize > MAX_INDEX) {
    throw new BlockError("EFBIG", "The index of the xz file is too large");
  }
  const index = await bytesAt(file, indexAt, indexSize);
  const records = parseIndex(index);
  let blocks = 0;
  for (let i = 0; i < records.length; i += 2) {
    blocks += roundUp(records[i], PADDING);
  }
  const start = indexAt - blocks - ENDS;
  if (!(start >= 0)) throw damaged("xz");
  const header = await bytesAt(file, start, ENDS);
  const isHeader = MAGIC.every((byte, i) => header[i] === byte) &&
    viewOf(header).getUint16(6) === flags &&
    viewOf(header).getUint32(8, true) === crc32(header.subarray(6, 8));
  if (!isHeader) throw damaged("xz");
  return { start, flags, records };
}

function parseIndex(index: Uint8Array): Float64Array {
  const end = index.length - 4;
  if (viewOf(index).getUint32(end, true) !== crc32(index.subarray(0, end))) {
    throw damaged("xz");
  }
  let at = 1;
  const next = () => {
    let value = 0;
    for (let factor = 1; at < end; factor *= 128) {
      const byte = index[at++];
      value += (byte & 127) * factor;
      if (!Number.isSafeInteger(value)) break;
      if (byte < 128) return value;
    }
    throw damaged("xz");
  };
  const count = next();
  // Each record takes at least two bytes.
  if (index[0] !== 0 || count > end / 2) throw damaged("xz");
  if (count > MAX_UNITS) {
    throw new BlockError("EFBIG", "The xz file has too many blocks");
  }
  const records = new Float64Array(count * 2);
  for (let i = 0; i < count; i++) {
    const size = next();
    if (size < 5) throw damaged("xz");
    records.set([size, next()], i * 2);
  }
  return records;
}

/** A stream of one block, for a library to unpack. */
function singleStream(
  block: Uint8Array,
  flags: number,
  { stored, length }: Unit,
): Uint8Array {
  const index = [0, 1, ...numberBytes(stored), ...numberBytes(length)];
  while (index.length % 4 !== 0) index.push(0);
  const indexAt = ENDS + block.length;
  const stream = allocate(
    indexAt + index.length + 4 + ENDS,
  );
  const view = viewOf(stream);
  const putSum = (at: number, from: number, to: number) =>
    view.setUint32(at, crc32(stream.subarray(from, to)), true);
  stream.set(MAGIC);
  view.setUint16(6, flags);
  putSum(8, 6, 8);
  stream.set(block, ENDS);
  const indexEnd = indexAt + index.length;
  stream.set(index, indexAt);
  putSum(indexEnd, indexAt, indexEnd);
  const footer = indexEnd + 4;
  view.setUint32(footer + 4, (index.length + 4) / 4 - 1, true);
  view.setUint16(footer + 8, flags);
  putSum(footer, footer + 4, footer + 10);
  stream.set([0x59, 0x5a], footer + 10);
  return stream;
}

/** Encode a number, seven bits per byte, the lowest first. */
function numberBytes(value: number): number[] {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) {
    bytes.push(value % 128 + 128);
  }
  return [...bytes, value];
}
