/**
 * A model of a disk as plain bytes in memory, and the permitted results of
 * concurrent requests.
 *
 * @module
 */

import { isEqual } from "../core/runtime.ts";

/** The effect of a successful request on a range of the disk. */
export interface Effect {
  /** First byte. */
  offset: number;
  /** The bytes it writes. */
  bytes: Uint8Array;
}

/** The result of a read that ran concurrently. */
export interface Finding {
  offset: number;
  bytes: Uint8Array;
}

/** A range, and the requests that wrote all of it. */
interface Segment {
  start: number;
  end: number;
  effects: Effect[];
}

/** The expected content of a disk. */
export class DiskModel {
  bytes: Uint8Array;

  constructor(size: number) {
    this.bytes = new Uint8Array(size);
  }

  get size(): number {
    return this.bytes.length;
  }

  /** Resize the disk; a new area reads as zeroes. */
  resize(size: number): void {
    const old = this.bytes;
    this.bytes = new Uint8Array(size);
    this.bytes.set(old.subarray(0, size));
  }

  /**
   * Apply concurrent requests that have all ended. Where several wrote the same
   * bytes, any of them may have won: `readBack` tells which. Reads may have
   * seen each byte before or after any of the writes.
   *
   * @throws if the disk or a read has bytes that nobody wrote.
   */
  async apply(
    effects: readonly Effect[],
    findings: readonly Finding[],
    readBack: (offset: number, length: number) => Promise<Uint8Array>,
  ): Promise<void> {
    const parts = segments(effects);
    for (const { offset, bytes } of findings) {
      this.#checkFinding(offset, bytes, parts);
    }
    for (const { start, end, effects } of parts) {
      if (effects.length === 1) {
        this.bytes.set(pieceOf(effects[0], start, end), start);
        continue;
      }
      const now = await readBack(start, end - start);
      const choices = effects.map((effect) => pieceOf(effect, start, end));
      const wrong = now.findIndex((byte, i) =>
        choices.every((choice) => choice[i] !== byte)
      );
      if (wrong >= 0) {
        const expected = choices.map((choice) => choice[wrong]).join(" or ");
        throw mismatch("after the writes", start + wrong, now[wrong], expected);
      }
      this.bytes.set(now, start);
    }
  }

  /** Compare bytes read with the expected content. */
  check(offset: number, found: Uint8Array, when = ""): void {
    const expected = this.bytes.subarray(offset, offset + found.length);
    const wrong = firstDifference(found, expected);
    if (wrong < 0) return;
    throw mismatch(when, offset + wrong, found[wrong], `${expected[wrong]}`);
  }

  #checkFinding(
    offset: number,
    found: Uint8Array,
    parts: readonly Segment[],
  ): void {
    const expected = this.bytes.subarray(offset, offset + found.length);
    let at = firstDifference(found, expected);
    for (; at >= 0 && at < found.length; at++) {
      const byte = found[at];
      if (byte === expected[at]) continue;
      const place = offset + at;
      const part = parts.find(({ start, end }) =>
        place >= start && place < end
      );
      const writers = part?.effects ?? [];
      if (writers.some((one) => one.bytes[place - one.offset] === byte)) {
        continue;
      }
      throw mismatch(
        `reading ${found.length} bytes at ${offset} beside ` +
          `${writers.length} writes`,
        place,
        byte,
        `${expected[at]}`,
      );
    }
  }
}

function mismatch(
  when: string,
  offset: number,
  found: number,
  expected: string,
): Error {
  return new Error(
    `byte ${offset} (0x${offset.toString(16)}) is ${found} and should be ` +
      `${expected}${when && `, ${when}`}`,
  );
}

function pieceOf(effect: Effect, start: number, end: number): Uint8Array {
  return effect.bytes.subarray(start - effect.offset, end - effect.offset);
}

/** The index of the first byte that differs; -1 if none does. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (isEqual(a, b)) return -1;
  return a.findIndex((byte, i) => byte !== b[i]);
}

/** Split overlapping effects into ranges with the same writers throughout. */
function segments(effects: readonly Effect[]): Segment[] {
  const borders = new Set<number>();
  for (const { offset, bytes } of effects) {
    borders.add(offset).add(offset + bytes.length);
  }
  const sorted = [...borders].sort((a, b) => a - b);
  const parts: Segment[] = [];
  for (let i = 0; i + 1 < sorted.length; i++) {
    const [start, end] = [sorted[i], sorted[i + 1]];
    const writers = effects.filter(({ offset, bytes }) =>
      offset <= start && end <= offset + bytes.length
    );
    if (writers.length > 0) parts.push({ start, end, effects: writers });
  }
  return parts;
}

/** Repeatable random choices. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** A whole number from 0 up to, but not including, `limit`. */
  below(limit: number): number {
    // mulberry32
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    const state = this.#state;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor(((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32 * limit);
  }

  /** True once in `times`. */
  oneIn(times: number): boolean {
    return this.below(times) === 0;
  }

  /** One of the values. */
  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)];
  }

  /** The values in random order. */
  shuffle<T>(values: readonly T[]): T[] {
    const list = [...values];
    for (let i = list.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [list[i], list[j]] = [list[j], list[i]];
    }
    return list;
  }

  /**
   * Recognisable bytes, few of them zero: those of one request cannot be
   * mistaken for another's.
   */
  bytes(length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    let state = this.below(2 ** 31) | 1;
    for (let i = 0; i < length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      bytes[i] = state >>> 24;
    }
    return bytes;
  }

  /** Bytes that compress well. */
  dullBytes(length: number): Uint8Array<ArrayBuffer> {
    const word = this.bytes(16);
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = word[(i >> 3) & 15];
    return bytes;
  }
}

/** A whole number from the environment. */
export function environmentNumber(name: string): number | undefined {
  const value = Deno.env.get(name);
  return value === undefined ? undefined : Number(value);
}

/** The seeds in `BDRV_SEED`: one, or `first-last`. Default: 1 to `count`. */
export function seedsToRun(count: number): number[] {
  const text = Deno.env.get("BDRV_SEED") ?? `1-${count}`;
  const [first, last = first] = text.split("-").map(Number);
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}
