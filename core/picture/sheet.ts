/**
 * The layout of a picture: the disk on the left, the file on the right, each in
 * rows from the top.
 *
 * @module
 */
import { type Look, type LookName, LOOKS } from "./looks.ts";
import type { Picture } from "./picture.ts";
import { EMPTY, type Share, type Space } from "./space.ts";

/** Cells per row. */
export const COLUMNS = 64;
/** Number of shades, which show how full a cell is. */
export const SHADES = 4;

/** The shade of a cell, from 1 to {@linkcode SHADES}. */
export function shadeOf(space: Space, cell: number): number {
  return Math.max(1, Math.ceil(space.fullness(cell) * SHADES));
}

/** How opaque a shade is, from 0 to 1. */
export function opacityOf(shade: number): number {
  return 0.25 + 0.75 * shade / SHADES;
}

/** The spaces of a picture, from left to right. */
export function spacesOf({ guest, host }: Picture): Space[] {
  return host ? [guest, host] : [guest];
}

/** Adjacent cells of a row that look the same. */
export interface Bar {
  /** The first cell. */
  cell: number;
  /** How many there are. */
  count: number;
  /** Their look. */
  name: LookName;
  /** How much of it; see {@linkcode shadeOf}. */
  shade: number;
}

/** Divide a space into bars, from the top left. */
export function* barsOf(space: Space, columns = COLUMNS): Generator<Bar> {
  let bar: Bar | undefined;
  for (let cell = 0; cell < space.cells; cell++) {
    const name = space.lookOf(cell);
    const shade = shadeOf(space, cell);
    const goesOn = bar?.name === name && bar.shade === shade &&
      cell % columns !== 0;
    if (bar && goesOn) {
      bar.count++;
      continue;
    }
    if (bar) yield bar;
    bar = { cell, count: 1, name, shade };
  }
  if (bar) yield bar;
}

/** A line of the legend. */
export interface LegendLine {
  readonly look: Look;
  readonly name: LookName;
  /** Its shade in cells that hold nothing else. */
  readonly shade: number;
  /** Such as `data: 1.5 MiB`. */
  readonly text: string;
}

/** The legend of a space: each look in it, with its size. */
export function legendOf(space: Space): LegendLine[] {
  return space.totals().map((share) => {
    const { name } = share;
    const shade = EMPTY.has(name) ? 1 : SHADES;
    return { look: LOOKS[name], name, shade, text: shareText(share) };
  });
}

/** The heading of a space. */
export function headingOf({ title, size, cellSize }: Space): string {
  return `${title}: ${bytesText(size)}, ${bytesText(cellSize)} a cell`;
}

/** The content of a bar's cells, in words. */
export function barText(space: Space, { cell, count }: Bar): string {
  const first = space.range(cell);
  const last = space.range(cell + count - 1);
  const end = last.offset + last.length;
  const sums = new Map<LookName, number>();
  for (let at = cell; at < cell + count; at++) {
    for (const { name, bytes } of space.shares(at)) {
      sums.set(name, (sums.get(name) ?? 0) + bytes);
    }
  }
  const parts = [...sums].map(([name, bytes]) => shareText({ name, bytes }));
  return `${hex(first.offset)} to ${hex(end)}: ${parts.join(", ")}`;
}

function shareText({ name, bytes }: Share): string {
  return `${LOOKS[name].label}: ${bytesText(bytes)}`;
}

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** A size for people, such as `1.5 MiB`. */
export function bytesText(bytes: number): string {
  let unit = 0;
  let amount = bytes;
  while (amount >= 1024 && unit < UNITS.length - 1) {
    amount /= 1024;
    unit++;
  }
  const digits = amount >= 100 || Number.isInteger(amount) ? 0 : 1;
  return `${amount.toFixed(digits)} ${bytes === 1 ? "byte" : UNITS[unit]}`;
}

function hex(offset: number): string {
  return `0x${offset.toString(16)}`;
}
