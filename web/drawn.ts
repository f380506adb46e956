/**
 * Pictures, as the worker sends them to the page.
 *
 * @module
 */
import type { LookName } from "../core/picture/looks.ts";
import {
  barsOf,
  barText,
  headingOf,
  legendOf,
  opacityOf,
  shadeOf,
} from "../core/picture/sheet.ts";
import type { Space } from "../core/picture/space.ts";
import type { DrawnSpace } from "./messages.ts";

/** Lines of the table beside a picture, at most. */
const MAX_LINES = 2000;

/** A space, to be drawn by the page. */
export function drawn(space: Space): DrawnSpace {
  const { title, size, cellSize, cells } = space;
  const numbers = new Map<LookName, number>();
  const looks = new Uint8Array(cells);
  const opacities = new Float32Array(cells);
  for (let cell = 0; cell < cells; cell++) {
    const name = space.lookOf(cell);
    let number = numbers.get(name);
    if (number === undefined) numbers.set(name, number = numbers.size);
    looks[cell] = number;
    opacities[cell] = opacityOf(shadeOf(space, cell));
  }
  const lines: string[] = [];
  let moreLines = 0;
  for (const bar of barsOf(space, cells)) {
    if (lines.length < MAX_LINES) lines.push(barText(space, bar));
    else moreLines++;
  }
  return {
    title,
    size,
    cellSize,
    cells,
    names: [...numbers.keys()],
    looks,
    opacities,
    heading: headingOf(space),
    legend: legendOf(space).map(({ name, shade, text }) => ({
      name,
      opacity: opacityOf(shade),
      text,
    })),
    lines,
    moreLines,
  };
}
