/**
 * A range of bytes as a grid of equal cells, each of which knows how many of
 * its bytes are what. Its memory does not depend on how many extents there are.
 *
 * @module
 */
import { roundUp } from "../bytes.ts";
import {
  type Base,
  BASES,
  type LookName,
  LOOKS,
  type Mark,
  MARKS,
} from "./looks.ts";

const NAMES = Object.keys(LOOKS) as LookName[];
const INDEX = new Map(NAMES.map((name, index) => [name, index]));
const BASE_COUNT = Object.keys(BASES).length;
/** The looks that stand for nothing that is stored. */
const EMPTY = new Set<LookName>(["unallocated", "free"]);
/** Marks of which a single byte is reason enough to show them. */
const LOUD: readonly Mark[] = ["different", "corrupt", "leaked", "dirty"];

/**
 * Bytes of one look.
 *
 * @category Jobs
 */
export interface Share {
  /** The look. */
  name: LookName;
  /** Bytes. */
  bytes: number;
}

/**
 * A space of bytes, drawn as cells.
 *
 * @category Jobs
 */
export class Space {
  /** What it is: the disk, or the file. */
  readonly title: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes of a cell; the last cell may be shorter. */
  readonly cellSize: number;
  /** Number of cells. */
  readonly cells: number;
  /** Bytes by cell and look. */
  readonly #bytes: Float64Array;

  /**
   * A space of which nothing is known yet.
   *
   * @param cells How many cells at most.
   * @param unit What the size of a cell is a multiple of, in bytes.
   */
  constructor(title: string, size: number, cells: number, unit: number) {
    this.title = title;
    this.size = size;
    this.cellSize = Math.max(unit, roundUp(Math.ceil(size / cells), unit));
    this.cells = Math.ceil(size / this.cellSize);
    this.#bytes = new Float64Array(this.cells * NAMES.length);
  }

  /** Say what a range is; what reaches past the end is left out. */
  add(name: LookName, offset: number, length: number): void {
    const { cellSize } = this;
    const look = INDEX.get(name)!;
    const end = Math.min(offset + length, this.size);
    while (offset < end) {
      const cell = Math.floor(offset / cellSize);
      const next = Math.min((cell + 1) * cellSize, end);
      this.#bytes[cell * NAMES.length + look] += next - offset;
      offset = next;
    }
  }

  /** What a cell shows. */
  lookOf(cell: number): LookName {
    const at = cell * NAMES.length;
    const bytes = (name: LookName) => this.#bytes[at + INDEX.get(name)!];
    for (const mark of LOUD) if (bytes(mark) > 0) return mark;
    let most: LookName | undefined;
    let stored = 0;
    for (const name of NAMES.slice(0, BASE_COUNT)) {
      if (EMPTY.has(name) || bytes(name) === 0) continue;
      stored += bytes(name);
      if (most === undefined || bytes(name) > bytes(most)) most = name;
    }
    if (stored > 0 && 2 * bytes("shared") >= stored) return "shared";
    return most ?? (bytes("free") > 0 ? "free" : "unallocated");
  }

  /**
   * How much of a cell is not empty, from 0 to 1. A damaged one counts as
   * full.
   */
  fullness(cell: number): number {
    const at = cell * NAMES.length;
    const { length } = this.range(cell);
    if (this.lookOf(cell) in MARKS) return 1;
    let empty = 0;
    for (const name of EMPTY) empty += this.#bytes[at + INDEX.get(name)!];
    return length === 0 ? 0 : 1 - empty / length;
  }

  /** The bytes that a cell stands for. */
  range(cell: number): { offset: number; length: number } {
    const offset = cell * this.cellSize;
    return { offset, length: Math.min(this.cellSize, this.size - offset) };
  }

  /** What is in a cell, in the order of the legend. */
  shares(cell: number): Share[] {
    const at = cell * NAMES.length;
    return NAMES
      .map((name, index) => ({ name, bytes: this.#bytes[at + index] }))
      .filter(({ bytes }) => bytes > 0);
  }

  /** What is in the whole space, in the order of the legend. */
  totals(): Share[] {
    const sums = new Float64Array(NAMES.length);
    this.#bytes.forEach((bytes, at) => sums[at % NAMES.length] += bytes);
    return NAMES
      .map((name, index) => ({ name, bytes: sums[index] }))
      .filter(({ bytes }) => bytes > 0);
  }
}

/** A base look by how deep in the backing chain the bytes are. */
export function backingLook(depth: number): Base {
  return depth === 1 ? "backing-1" : depth === 2 ? "backing-2" : "backing-3";
}
