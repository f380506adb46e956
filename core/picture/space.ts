/**
 * A range of bytes as a grid of equal cells that count their bytes by look.
 * Memory does not depend on the number of extents.
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
/** Looks for which nothing is stored. */
export const EMPTY: ReadonlySet<LookName> = new Set<LookName>([
  "unallocated",
  "free",
]);
/** Marks that are shown for a single byte. */
const LOUD: readonly Mark[] = ["different", "corrupt", "leaked", "dirty"];

/**
 * A number of bytes with one look.
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
  /** Its title: the disk, or the file. */
  readonly title: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes of a cell; the last cell may be shorter. */
  readonly cellSize: number;
  /** Number of cells. */
  readonly cells: number;
  /** Bytes, by cell and look. */
  readonly #bytes: Float64Array;

  /**
   * A space of which nothing is known yet.
   *
   * @param cells Most cells.
   * @param unit The size of a cell is a multiple of this, in bytes.
   */
  constructor(title: string, size: number, cells: number, unit: number) {
    this.title = title;
    this.size = size;
    this.cellSize = Math.max(unit, roundUp(Math.ceil(size / cells), unit));
    this.cells = Math.ceil(size / this.cellSize);
    this.#bytes = new Float64Array(this.cells * NAMES.length);
  }

  /** Set the look of a range, clipped to the space. */
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

  /** The look that a cell shows. */
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

  /** How full a cell is, from 0 to 1. A damaged cell counts as full. */
  fullness(cell: number): number {
    const at = cell * NAMES.length;
    const { length } = this.range(cell);
    if (this.lookOf(cell) in MARKS) return 1;
    let empty = 0;
    for (const name of EMPTY) empty += this.#bytes[at + INDEX.get(name)!];
    return length === 0 ? 0 : 1 - empty / length;
  }

  /** The bytes of a cell. */
  range(cell: number): { offset: number; length: number } {
    const offset = cell * this.cellSize;
    return { offset, length: Math.min(this.cellSize, this.size - offset) };
  }

  /** The content of a cell, in the order of the legend. */
  shares(cell: number): Share[] {
    const at = cell * NAMES.length;
    return NAMES
      .map((name, index) => ({ name, bytes: this.#bytes[at + index] }))
      .filter(({ bytes }) => bytes > 0);
  }

  /** The content of the whole space, in the order of the legend. */
  totals(): Share[] {
    const sums = new Float64Array(NAMES.length);
    this.#bytes.forEach((bytes, at) => sums[at % NAMES.length] += bytes);
    return NAMES
      .map((name, index) => ({ name, bytes: sums[index] }))
      .filter(({ bytes }) => bytes > 0);
  }
}

/** The look of data, by its depth in the backing chain. */
export function backingLook(depth: number): Base {
  return depth === 1 ? "backing-1" : depth === 2 ? "backing-2" : "backing-3";
}
