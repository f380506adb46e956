/**
 * LZFSE, Apple's compression: LZ77 whose lengths, distances and literals are
 * coded by finite state entropy; small blocks use LZVN instead.
 *
 * Source: the facts of Apple's reference implementation (lzfse 1.0).
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import { copyMatch, decodeLzvn } from "./lzvn.ts";

/** The magics of blocks, little-endian: "bvx" and the kind. */
const BLOCK = {
  END: 0x24787662, // "bvx$"
  RAW: 0x2d787662, // "bvx-"
  /** Frequencies of 16 bits. */
  V1: 0x31787662, // "bvx1"
  /** Packed frequencies. */
  V2: 0x32787662, // "bvx2"
  LZVN: 0x6e787662, // "bvxn"
} as const;

/** Bytes of the headers; of `V2` without its frequencies. */
const HEADER = { RAW: 8, LZVN: 12, V1: 772, V2: 32 } as const;

/** Most literals and matches of a block. */
const [MAX_LITERALS, MAX_MATCHES] = [40_000, 10_000];

/** The coded alphabets: numbers of symbols and states. */
const ALPHABETS = [
  { symbols: 20, states: 64 }, // lengths of runs of literals
  { symbols: 20, states: 64 }, // lengths of matches
  { symbols: 64, states: 256 }, // distances
  { symbols: 256, states: 1024 }, // literals
] as const;
const SYMBOLS = 360;

/** Extra bits of a value, by its symbol. */
const LITERAL_LENGTH_BITS = [...Array(16).fill(0), 2, 3, 5, 8];
const MATCH_LENGTH_BITS = [...Array(16).fill(0), 3, 5, 8, 11];
const DISTANCE_BITS = Array.from({ length: 64 }, (_, i) => i >> 2);

/** The states of a decoder: the symbol of each, and its next state. */
class States {
  readonly symbols: Uint8Array;
  /** Bits to read. */
  readonly bits: Uint8Array;
  /** What to add to them. */
  readonly deltas: Uint16Array;

  /** Lay out the states of an alphabet for its frequencies. */
  constructor(states: number, frequencies: Uint16Array) {
    this.symbols = new Uint8Array(states);
    this.bits = new Uint8Array(states);
    this.deltas = new Uint16Array(states);
    let state = 0;
    for (const [symbol, frequency] of frequencies.entries()) {
      if (frequency === 0) continue;
      const bits = Math.clz32(frequency) - Math.clz32(states);
      // This many states take one bit more than the others.
      const long = ((2 * states) >> bits) - frequency;
      for (let i = 0; i < frequency; i++, state++) {
        this.symbols[state] = symbol;
        this.bits[state] = i < long ? bits : bits - 1;
        this.deltas[state] = i < long
          ? ((frequency + i) << bits) - states
          : (i - long) << (bits - 1);
      }
    }
  }
}

/** Bits of a payload, read from its end to its start. */
class BitReader {
  readonly #bytes: Uint8Array;
  readonly #start: number;
  /** The position, in bits from the start of all bytes. */
  #at: number;

  /**
   * @param start Where the payload begins: after a header, since up to 4 bytes
   * before it are read.
   * @param unused The number of unused bits of its last byte, negated.
   */
  constructor(bytes: Uint8Array, start: number, end: number, unused: number) {
    this.#bytes = bytes;
    this.#start = 8 * start;
    this.#at = 8 * end + unused;
  }

  /** Whether more bits have been read than exist. */
  get isOverrun(): boolean {
    return this.#at < this.#start;
  }

  /** Read up to 24 bits. Those before the start have any value. */
  read(count: number): number {
    const bytes = this.#bytes;
    const last = (this.#at - 1) >> 3;
    const word = bytes[last] << 24 | bytes[last - 1] << 16 |
      bytes[last - 2] << 8 | bytes[last - 3];
    this.#at -= count;
    const shift = this.#at - 8 * (last - 3);
    return count === 0 ? 0 : (word >>> shift) & ((1 << count) - 1);
  }
}

/** Decodes values stored as a symbol and extra bits. */
class ValueDecoder {
  readonly #states: States;
  readonly #extra: readonly number[];
  readonly #base: readonly number[];
  #state: number;

  constructor(states: States, extra: readonly number[], state: number) {
    this.#states = states;
    this.#extra = extra;
    let next = 0;
    this.#base = extra.map((bits) => {
      const base = next;
      next += 1 << bits;
      return base;
    });
    this.#state = state;
  }

  next(reader: BitReader): number {
    const { symbols, bits, deltas } = this.#states;
    const symbol = symbols[this.#state];
    const extra = this.#extra[symbol];
    const stored = reader.read(bits[this.#state] + extra);
    this.#state = deltas[this.#state] + (stored >>> extra);
    return this.#base[symbol] + (stored & ((1 << extra) - 1));
  }
}

/** A block header of either version. */
interface Block {
  /** Bytes of its decoded content. */
  readonly size: number;
  readonly literals: number;
  readonly matches: number;
  /** Offset of its payloads in the bytes of all blocks. */
  readonly payload: number;
  readonly literalPayload: number;
  readonly matchPayload: number;
  /** The numbers of unused bits of their last bytes, negated. */
  readonly literalBits: number;
  readonly matchBits: number;
  readonly literalStates: readonly number[];
  /**
   * Initial states for the lengths of literals and matches, and for distances.
   */
  readonly matchStates: readonly number[];
  /** For all alphabets, in their order. */
  readonly frequencies: Uint16Array;
}

/**
 * Decode LZFSE.
 *
 * @returns whether that filled `target` exactly. The time is proportional to
 * the size of both.
 */
export function decodeLzfse(stored: Uint8Array, target: Uint8Array): boolean {
  const view = viewOf(stored);
  const u32 = (at: number) => view.getUint32(at, true);
  for (let at = 0, to = 0; at + 4 <= stored.length;) {
    const magic = u32(at);
    if (magic === BLOCK.END) return to === target.length;
    if (at + HEADER.LZVN > stored.length) return false;
    const size = u32(at + 4);
    const room = target.length - to;
    if (size > room) return false;
    let end: number;
    if (magic === BLOCK.RAW) {
      at += HEADER.RAW;
      end = at + size;
      if (end > stored.length) return false;
      target.set(stored.subarray(at, end), to);
    } else if (magic === BLOCK.LZVN) {
      end = at + HEADER.LZVN + u32(at + 8);
      if (end > stored.length) return false;
      const payload = stored.subarray(at + HEADER.LZVN, end);
      // Matches may refer to earlier blocks.
      if (!decodeLzvn(payload, target.subarray(0, to + size), to)) return false;
    } else {
      const block = magic === BLOCK.V1
        ? readV1(view, at)
        : magic === BLOCK.V2
        ? readV2(view, at)
        : undefined;
      if (!block || !isSound(block)) return false;
      end = block.payload + block.literalPayload + block.matchPayload;
      if (end > stored.length) return false;
      if (!decodeBlock(block, stored, target, to)) return false;
    }
    to += size;
    at = end;
  }
  return false;
}

function readV1(view: DataView, at: number): Block | undefined {
  if (at + HEADER.V1 > view.byteLength) return undefined;
  const u16 = (index: number) => view.getUint16(index, true);
  const u32 = (index: number) => view.getUint32(at + index, true);
  return {
    size: u32(4),
    literals: u32(12),
    matches: u32(16),
    payload: at + HEADER.V1,
    literalPayload: u32(20),
    matchPayload: u32(24),
    literalBits: view.getInt32(at + 28, true),
    matchBits: view.getInt32(at + 40, true),
    literalStates: [32, 34, 36, 38].map((index) => u16(at + index)),
    matchStates: [44, 46, 48].map((index) => u16(at + index)),
    frequencies: Uint16Array.from(
      { length: SYMBOLS },
      (_, i) => u16(at + 50 + 2 * i),
    ),
  };
}

/** In the second version, the fields are packed into three 64-bit words. */
function readV2(view: DataView, at: number): Block | undefined {
  if (at + HEADER.V2 > view.byteLength) return undefined;
  const words = [8, 16, 24].map((index) => view.getBigUint64(at + index, true));
  const field = (word: number, from: number, bits: number) =>
    Number(words[word] >> BigInt(from) & (1n << BigInt(bits)) - 1n);
  const headerSize = field(2, 0, 32);
  const payload = at + headerSize;
  if (headerSize < HEADER.V2 || payload > view.byteLength) return undefined;
  const { buffer, byteOffset } = view;
  const start = byteOffset + at + HEADER.V2;
  const packed = new Uint8Array(buffer, start, headerSize - HEADER.V2);
  const frequencies = unpackFrequencies(packed);
  return frequencies && {
    size: view.getUint32(at + 4, true),
    literals: field(0, 0, 20),
    literalPayload: field(0, 20, 20),
    matches: field(0, 40, 20),
    literalBits: field(0, 60, 3) - 7,
    literalStates: [0, 10, 20, 30].map((from) => field(1, from, 10)),
    matchPayload: field(1, 40, 20),
    matchBits: field(1, 60, 3) - 7,
    matchStates: [32, 42, 52].map((from) => field(2, from, 10)),
    payload,
    frequencies,
  };
}

/**
 * Unpack the frequencies; `undefined` if they do not take all the bytes
 * exactly.
 */
function unpackFrequencies(packed: Uint8Array): Uint16Array | undefined {
  const frequencies = new Uint16Array(SYMBOLS);
  let at = 0;
  const take = (count: number) => {
    const byte = at >> 3;
    const word = packed[byte] | packed[byte + 1] << 8 | packed[byte + 2] << 16;
    const bits = (word >> (at & 7)) & ((1 << count) - 1);
    at += count;
    return bits;
  };
  for (let i = 0; i < SYMBOLS; i++) {
    const kind = take(2);
    // 0 and 1 take two bits, 2 and 3 three, and so on: larger values take more.
    if (kind === 0) frequencies[i] = 0;
    else if (kind === 2) frequencies[i] = 1;
    else if (kind === 1) frequencies[i] = 2 + take(1);
    else if (take(1) === 0) frequencies[i] = 4 + take(2);
    else frequencies[i] = take(1) === 0 ? 8 + take(4) : 24 + take(10);
  }
  return Math.ceil(at / 8) === packed.length ? frequencies : undefined;
}

/** Whether a header is within the limits, with valid states. */
function isSound(block: Block): boolean {
  const { size, literals, matches, matchStates, literalStates } = block;
  const areBits = (bits: number) => bits >= -7 && bits <= 0;
  const last = ALPHABETS[3].states;
  return literals <= MAX_LITERALS && literals % 4 === 0 &&
    matches <= MAX_MATCHES &&
    // Literals are padded to a multiple of four; each match yields at least a
    // byte.
    literals < size + 4 && matches <= size &&
    areBits(block.literalBits) && areBits(block.matchBits) &&
    matchStates.every((state, i) => state < ALPHABETS[i].states) &&
    literalStates.every((state) => state < last);
}

/**
 * The states of all alphabets; `undefined` if frequencies exceed the states.
 */
function layOutStates(frequencies: Uint16Array): States[] | undefined {
  let start = 0;
  const all: States[] = [];
  for (const { symbols, states } of ALPHABETS) {
    const part = frequencies.subarray(start, start + symbols);
    start += symbols;
    if (part.reduce((sum, frequency) => sum + frequency, 0) > states) {
      return undefined;
    }
    all.push(new States(states, part));
  }
  return all;
}

function decodeBlock(
  block: Block,
  stored: Uint8Array,
  target: Uint8Array,
  start: number,
): boolean {
  const all = layOutStates(block.frequencies);
  if (!all) return false;
  const middle = block.payload + block.literalPayload;
  const literals = decodeLiterals(block, all[3], stored, middle);
  if (!literals) return false;
  const [literalState, matchState, distanceState] = block.matchStates;
  const runs = new ValueDecoder(all[0], LITERAL_LENGTH_BITS, literalState);
  const matches = new ValueDecoder(all[1], MATCH_LENGTH_BITS, matchState);
  const distances = new ValueDecoder(all[2], DISTANCE_BITS, distanceState);
  const reader = new BitReader(
    stored,
    middle,
    middle + block.matchPayload,
    block.matchBits,
  );
  const end = start + block.size;
  let [to, from, distance] = [start, 0, 0];
  for (let i = 0; i < block.matches; i++) {
    const run = runs.next(reader);
    const match = matches.next(reader);
    // Zero repeats the previous distance.
    distance = distances.next(reader) || distance;
    if (reader.isOverrun) return false;
    if (from + run > literals.length || to + run + match > end) return false;
    for (const stop = from + run; from < stop;) target[to++] = literals[from++];
    if (!copyMatch(target, to, distance, match)) return false;
    to += match;
  }
  return to === end;
}

/**
 * Decode the literals of a block: four at a time, each with a state of its own.
 */
function decodeLiterals(
  { literals, payload, literalBits, literalStates }: Block,
  { symbols, bits, deltas }: States,
  stored: Uint8Array,
  end: number,
): Uint8Array | undefined {
  const reader = new BitReader(stored, payload, end, literalBits);
  const bytes = new Uint8Array(literals);
  const states = [...literalStates];
  for (let i = 0; i < literals; i++) {
    const state = states[i & 3];
    bytes[i] = symbols[state];
    states[i & 3] = deltas[state] + reader.read(bits[state]);
    if (reader.isOverrun) return undefined;
  }
  return bytes;
}
