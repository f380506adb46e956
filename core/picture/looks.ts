/**
 * What the parts of a picture can represent: names, letters and colours, for
 * all renderers.
 *
 * @module
 */

/**
 * How a part of a picture is shown.
 *
 * @category Jobs
 */
export interface Look {
  /** Its name in the legend. */
  readonly label: string;
  /** Its letter in text. */
  readonly letter: string;
  /** Its colour: red, green and blue from 0 to 255. */
  readonly colour: readonly [red: number, green: number, blue: number];
}

/**
 * What a byte of a disk or file is; exactly one of these.
 *
 * @category Jobs
 */
export type Base =
  | "unallocated"
  | "zero"
  | "data"
  | "compressed"
  | "backing-1"
  | "backing-2"
  | "backing-3"
  | "free"
  | "snapshot-data"
  | "header"
  | "l1-table"
  | "l2-table"
  | "refcounts"
  | "snapshot-table"
  | "bitmaps"
  | "encryption-header"
  | "unknown"
  | "same";

/**
 * What a byte may be in addition.
 *
 * @category Jobs
 */
export type Mark = "different" | "shared" | "dirty" | "leaked" | "corrupt";

/**
 * Either of them.
 *
 * @category Jobs
 */
export type LookName = Base | Mark;

/** Looks of which every byte has exactly one. */
export const BASES: Readonly<Record<Base, Look>> = {
  "unallocated": look("not allocated", ".", 0xe6eaee),
  "zero": look("zeroes", "0", 0xb4bec8),
  "data": look("data", "D", 0x2f6fd0),
  "compressed": look("compressed data", "C", 0x7d4cc2),
  "backing-1": look("in the backing file", "1", 0x3f9e5a),
  "backing-2": look("in the second backing file", "2", 0x7fbf6a),
  "backing-3": look("in a backing file further down", "3", 0xb8d98a),
  "free": look("unused", ".", 0xe6eaee),
  "snapshot-data": look("data of snapshots only", "S", 0x8a9a2c),
  "header": look("header", "H", 0x20242a),
  "l1-table": look("L1 tables", "A", 0x9a5b00),
  "l2-table": look("L2 tables", "B", 0xd98a1f),
  "refcounts": look("refcounts", "R", 0x8c5a4a),
  "snapshot-table": look("snapshot table", "T", 0x5f6b14),
  "bitmaps": look("bitmaps", "M", 0x178f9e),
  "encryption-header": look("encryption header", "E", 0x54606c),
  "unknown": look("metadata or unused", "?", 0xc9c2b8),
  "same": look("the same", "=", 0x6f9fd8),
};

/** Additional marks; a cell that contains marked bytes shows the mark. */
export const MARKS: Readonly<Record<Mark, Look>> = {
  "different": look("different", "X", 0xd21f2b),
  "shared": look("shared with a snapshot", "s", 0x1fa79a),
  "dirty": look("dirty in the bitmap", "*", 0xe0559c),
  "leaked": look("leaked", "L", 0xf5d400),
  "corrupt": look("corrupt", "!", 0xd21f2b),
};

/**
 * All looks, by name.
 *
 * @category Jobs
 */
export const LOOKS: Readonly<Record<LookName, Look>> = { ...BASES, ...MARKS };

/** Its colour in CSS notation. */
export function cssColour({ colour }: Look): string {
  const digits = colour.map((part) => part.toString(16).padStart(2, "0"));
  return `#${digits.join("")}`;
}

function look(label: string, letter: string, rgb: number): Look {
  return { label, letter, colour: [rgb >> 16, rgb >> 8 & 255, rgb & 255] };
}
