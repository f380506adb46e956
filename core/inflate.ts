/**
 * Inflating exactly as far as a buffer goes, as zlib does it when it is given
 * no more room: what comes after is not looked at, so it may be cut off, be
 * anything else, or go on. Libraries that judge the whole stream refuse that.
 * (RFC 1951, whose names are used.)
 *
 * @module
 */

/** The length of any code at most. */
const MAX_BITS = 15;
const END_OF_BLOCK = 256;
/** Symbols that the fixed codes have, but no block may use. */
const [LITERALS, DISTANCES] = [286, 30];
/** In the place of a symbol: no code begins so. */
const NO_SYMBOL = 0xfff;

const ORDER = [
  16,
  17,
  18,
  0,
  8,
  7,
  9,
  6,
  10,
  5,
  11,
  4,
  12,
  3,
  13,
  2,
  14,
  1,
  15,
];

/** What the symbols of lengths and distances stand for, and their extra bits. */
const LENGTH_EXTRA = extraBits(28, 4, 4);
const LENGTH_BASE = basesOf(3, LENGTH_EXTRA);
LENGTH_EXTRA.push(0);
LENGTH_BASE.push(258);
const DISTANCE_EXTRA = extraBits(DISTANCES, 2, 2);
const DISTANCE_BASE = basesOf(1, DISTANCE_EXTRA);

/** One bit more every `step` symbols, after `first` ones that have none. */
function extraBits(count: number, first: number, step: number): number[] {
  return Array.from(
    { length: count },
    (_, i) => Math.max(0, Math.floor((i - first) / step)),
  );
}

function basesOf(start: number, extra: readonly number[]): number[] {
  return extra.map((bits) => {
    const base = start;
    start += 1 << bits;
    return base;
  });
}

/** A code: by the next bits of the stream, the symbol and its own length. */
interface Code {
  readonly bits: number;
  /** `symbol << 4 | length`. */
  readonly table: Uint16Array;
}

/**
 * The canonical code of such lengths; `undefined` if there is none.
 *
 * @param mayBeOne Whether one code of one bit will do, which leaves another.
 */
function codeOf(lengths: Uint8Array, mayBeOne: boolean): Code | undefined {
  const counts = new Uint16Array(MAX_BITS + 1);
  for (const length of lengths) counts[length]++;
  counts[0] = 0;
  let bits = MAX_BITS;
  while (bits > 1 && counts[bits] === 0) bits--;
  const next = new Uint16Array(MAX_BITS + 2);
  let left = 1;
  for (let length = 1; length <= MAX_BITS; length++) {
    left = left * 2 - counts[length];
    if (left < 0) return undefined;
    next[length + 1] = (next[length] + counts[length]) << 1;
  }
  const isSmall = bits === 1 && (mayBeOne || counts[1] === 0);
  if (left > 0 && !isSmall) return undefined;
  const table = new Uint16Array(1 << bits).fill(NO_SYMBOL << 4 | 1);
  for (let symbol = 0; symbol < lengths.length; symbol++) {
    const length = lengths[symbol];
    if (length === 0) continue;
    // Codes come with their first bit first.
    let at = 0;
    for (let code = next[length]++, i = 0; i < length; i++, code >>= 1) {
      at = at << 1 | code & 1;
    }
    for (; at < table.length; at += 1 << length) {
      table[at] = symbol << 4 | length;
    }
  }
  return { bits, table };
}

let fixed: { literals: Code; distances: Code } | undefined;

function fixedCodes(): { literals: Code; distances: Code } {
  if (fixed) return fixed;
  const lengths = new Uint8Array(288).fill(8);
  lengths.fill(9, 144, 256);
  lengths.fill(7, 256, 280);
  const literals = codeOf(lengths, false)!;
  const distances = codeOf(new Uint8Array(32).fill(5), false)!;
  return fixed = { literals, distances };
}

/** Thrown where the stream is none. */
class Damaged extends Error {}
/** Thrown where the input or the room has come to an end. */
class Stopped extends Error {}

/** One stream being inflated. */
class Inflation {
  filled = 0;
  readonly #input: Uint8Array;
  readonly #target: Uint8Array;
  #at = 0;
  /** Bits that were taken from the input, the next one lowest. */
  #held = 0;
  #count = 0;

  constructor(input: Uint8Array, target: Uint8Array) {
    this.#input = input;
    this.#target = target;
  }

  /** Inflate all blocks. */
  run(): void {
    for (let isLast = false; !isLast;) {
      isLast = this.#bits(1) === 1;
      switch (this.#bits(2)) {
        case 0:
          this.#stored();
          break;
        case 1: {
          const { literals, distances } = fixedCodes();
          this.#compressed(literals, distances);
          break;
        }
        case 2:
          this.#dynamic();
          break;
        default:
          throw new Damaged();
      }
    }
  }

  #fill(): void {
    while (this.#count <= 16 && this.#at < this.#input.length) {
      this.#held |= this.#input[this.#at++] << this.#count;
      this.#count += 8;
    }
  }

  #bits(count: number): number {
    this.#fill();
    if (count > this.#count) throw new Stopped();
    const value = this.#held & ((1 << count) - 1);
    this.#drop(count);
    return value;
  }

  #drop(count: number): void {
    this.#held >>>= count;
    this.#count -= count;
  }

  #symbol({ bits, table }: Code): number {
    this.#fill();
    const entry = table[this.#held & ((1 << bits) - 1)];
    const length = entry & 15;
    if (length > this.#count) throw new Stopped();
    this.#drop(length);
    return entry >> 4;
  }

  #stored(): void {
    this.#drop(this.#count & 7);
    const length = this.#bits(16);
    if (this.#bits(16) !== (length ^ 0xffff)) throw new Damaged();
    this.#at -= this.#count >> 3;
    this.#drop(this.#count);
    const room = this.#target.length - this.filled;
    const part = this.#input.subarray(
      this.#at,
      this.#at + Math.min(length, room),
    );
    this.#target.set(part, this.filled);
    this.filled += part.length;
    this.#at += part.length;
    if (part.length < length) throw new Stopped();
  }

  #dynamic(): void {
    const literals = this.#bits(5) + 257;
    const distances = this.#bits(5) + 1;
    const count = this.#bits(4) + 4;
    if (literals > LITERALS || distances > DISTANCES) throw new Damaged();
    const order = new Uint8Array(ORDER.length);
    for (let i = 0; i < count; i++) order[ORDER[i]] = this.#bits(3);
    const code = codeOf(order, false);
    if (!code) throw new Damaged();
    const lengths = this.#lengths(code, literals + distances);
    if (lengths[END_OF_BLOCK] === 0) throw new Damaged();
    const literalCode = codeOf(lengths.subarray(0, literals), true);
    const distanceCode = codeOf(lengths.subarray(literals), true);
    if (!literalCode || !distanceCode) throw new Damaged();
    this.#compressed(literalCode, distanceCode);
  }

  /** The lengths of codes, in which repetitions have codes of their own. */
  #lengths(code: Code, total: number): Uint8Array {
    const lengths = new Uint8Array(total);
    for (let at = 0; at < total;) {
      const symbol = this.#symbol(code);
      if (symbol === NO_SYMBOL) throw new Damaged();
      if (symbol < 16) {
        lengths[at++] = symbol;
        continue;
      }
      if (symbol === 16 && at === 0) throw new Damaged();
      const length = symbol === 16 ? lengths[at - 1] : 0;
      const count = symbol === 16
        ? this.#bits(2) + 3
        : symbol === 17
        ? this.#bits(3) + 3
        : this.#bits(7) + 11;
      if (at + count > total) throw new Damaged();
      lengths.fill(length, at, at += count);
    }
    return lengths;
  }

  #compressed(literals: Code, distances: Code): void {
    const target = this.#target;
    for (;;) {
      const symbol = this.#symbol(literals);
      if (symbol === END_OF_BLOCK) return;
      if (symbol >= LITERALS) throw new Damaged();
      if (symbol < END_OF_BLOCK) {
        if (this.filled === target.length) throw new Stopped();
        target[this.filled++] = symbol;
      } else {
        this.#match(symbol - END_OF_BLOCK - 1, distances);
      }
    }
  }

  #match(symbol: number, distances: Code): void {
    const target = this.#target;
    const length = LENGTH_BASE[symbol] + this.#bits(LENGTH_EXTRA[symbol]);
    const which = this.#symbol(distances);
    if (which >= DISTANCES) throw new Damaged();
    const distance = DISTANCE_BASE[which] + this.#bits(DISTANCE_EXTRA[which]);
    if (this.filled === target.length) throw new Stopped();
    if (distance > this.filled) throw new Damaged();
    const end = this.filled + length;
    const stop = Math.min(end, target.length);
    // It may repeat what it has just written.
    for (let at = this.filled; at < stop; at++) {
      target[at] = target[at - distance];
    }
    this.filled = stop;
    if (stop < end) throw new Stopped();
  }
}

/**
 * Inflate a raw deflate stream until `target` is full. Whether it became full,
 * with no damage found before zlib would have stopped.
 */
export function inflateExactly(
  input: Uint8Array,
  target: Uint8Array,
): boolean {
  const inflation = new Inflation(input, target);
  try {
    inflation.run();
  } catch (error) {
    if (error instanceof Damaged) return false;
    if (!(error instanceof Stopped)) throw error;
  }
  return inflation.filled === target.length;
}
