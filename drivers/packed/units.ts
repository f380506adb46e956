/**
 * Compressed files that consist of independent parts, and a table of them.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import {
  allocate,
  copyIntoVector,
  roundUp,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import type { DriverTraits } from "../../core/traits.ts";
import { bytesAt } from "./reading.ts";
import { readWithin } from "./window.ts";

/** Largest part, unpacked, in bytes. */
export const MAX_UNIT = 64 * 1024 * 1024;

/** Largest stored part: incompressible data grows only a little. */
const MAX_STORED = MAX_UNIT + MAX_UNIT / 8;

/** Most parts of a file. */
export const MAX_UNITS = 2 * 1024 * 1024;

/** Most unpacked bytes kept in memory. */
const BUDGET = 128 * 1024 * 1024;

/** A part. */
export interface Unit {
  /** Its offset in the file. */
  readonly start: number;
  /** Its bytes in the file. */
  readonly stored: number;
  /** The unpacked offset of its content. */
  readonly offset: number;
  /** Bytes of its content. */
  readonly length: number;
}

/** A table of parts, in order of their content. */
export class Units {
  /** Four numbers per part. */
  #numbers = new Float64Array(256);
  #count = 0;
  #size = 0;

  /** Number of parts. */
  get count(): number {
    return this.#count;
  }

  /** Bytes of all content. */
  get size(): number {
    return this.#size;
  }

  /**
   * Add the next one.
   *
   * @throws {BlockError} EFBIG if there are too many.
   */
  add(start: number, stored: number, length: number): void {
    if (
      this.#count === MAX_UNITS || !Number.isSafeInteger(this.#size + length)
    ) {
      throw new BlockError("EFBIG", "The compressed file has too many parts");
    }
    // An empty part is never looked up.
    if (length === 0) return;
    const at = this.#count++ * 4;
    if (at === this.#numbers.length) {
      const more = new Float64Array(at * 2);
      more.set(this.#numbers);
      this.#numbers = more;
    }
    this.#numbers.set([start, stored, this.#size, length], at);
    this.#size += length;
  }

  /** Bytes of the largest part's content. */
  get largest(): number {
    let most = 0;
    for (let i = 0; i < this.#count; i++) {
      most = Math.max(most, this.#numbers[i * 4 + 3]);
    }
    return most;
  }

  /** The part with an index. */
  at(index: number): Unit {
    const [start, stored, offset, length] = this.#numbers
      .subarray(index * 4, index * 4 + 4);
    return { start, stored, offset, length };
  }

  /** The index of the part with the byte at `offset`, which is below `size`. */
  find(offset: number): number {
    let [low, high] = [0, this.#count - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.#numbers[middle * 4 + 2] <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

/** Unpacks one part into `target`, which has the size of its content. */
export type UnpackUnit = (
  stored: Uint8Array,
  target: Uint8Array,
  unit: Unit,
) => Promise<void> | void;

/**
 * A node that presents the content of the parts of `file`.
 *
 * @param padding Stored parts are read rounded up to this.
 */
export function unitsNode(
  driver: DriverTraits,
  file: BlockNode,
  units: Units,
  unpack: UnpackUnit,
  padding = 1,
): BlockNode {
  const cache = new UnitCache(file, units, unpack, padding);
  const { size } = units;
  return {
    driver,
    filename: file.filename,
    size,
    readOnly: true,
    children: { file },
    async readv(offset, iov) {
      await readWithin(size, offset, iov, async (inside) => {
        const length = vectorLength(inside);
        for (let done = 0; done < length;) {
          const index = units.find(offset + done);
          const unit = units.at(index);
          const bytes = await cache.get(index, unit);
          const from = offset + done - unit.offset;
          const part = bytes.subarray(from, from + length - done);
          copyIntoVector(inside, done, part);
          done += part.length;
        }
      });
    },
    // deno-lint-ignore require-await -- the interface is asynchronous
    async status(offset, length, flags) {
      checkSignal(flags?.signal);
      const rest = Math.max(0, size - offset);
      return rest === 0 ? { length, allocated: false, zero: true } : {
        length: Math.min(length, rest),
        allocated: true,
        zero: false,
        compressed: true,
      };
    },
    info: () => Promise.resolve({ compressed: true }),
    close: () => Promise.resolve(cache.clear()),
  };
}

/** The most recently used parts. */
class UnitCache {
  readonly #file: BlockNode;
  readonly #unpack: UnpackUnit;
  readonly #padding: number;
  /** Most parts kept. */
  readonly #most: number;
  readonly #kept = new Map<number, Promise<Uint8Array>>();
  /**
   * One at a time: unpacking uses the processor fully, and memory is bounded.
   */
  readonly #lock = new Mutex();

  constructor(
    file: BlockNode,
    units: Units,
    unpack: UnpackUnit,
    padding: number,
  ) {
    this.#padding = padding;
    this.#file = file;
    this.#unpack = unpack;
    this.#most = Math.max(2, Math.floor(BUDGET / Math.max(1, units.largest)));
  }

  get(index: number, unit: Unit): Promise<Uint8Array> {
    let bytes = this.#kept.get(index);
    this.#kept.delete(index);
    if (!bytes) {
      bytes = this.#load(unit);
      // The next reader tries again.
      bytes.catch(() => this.#kept.delete(index));
    }
    this.#kept.set(index, bytes);
    if (this.#kept.size > this.#most) {
      const [oldest] = this.#kept.keys();
      this.#kept.delete(oldest);
    }
    return bytes;
  }

  clear(): void {
    this.#kept.clear();
  }

  async #load(unit: Unit): Promise<Uint8Array> {
    using _held = await this.#lock.lock();
    const padded = roundUp(unit.stored, this.#padding);
    if (padded > MAX_STORED) throw new BlockError("EIO", "A part is too large");
    const stored = await bytesAt(this.#file, unit.start, padded);
    const target = allocate(unit.length);
    await this.#unpack(stored, target, unit);
    return target;
  }
}
