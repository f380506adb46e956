/// <reference lib="dom" />
/**
 * A space as a figure: a picture whose cells can be pointed at, or visited with
 * the arrow keys; its legend; and the same as a table.
 *
 * @module
 */
import { cssColour, LOOKS } from "../core/picture/looks.ts";
import { type Grid, layOut, type Order } from "./curve.ts";
import { element } from "./elements.ts";
import type { DrawnSpace } from "./messages.ts";

/** Told of a cell that was pointed at or walked to. */
export type OnCell = (space: DrawnSpace, cell: number) => void;

/** Rows that are added to a table at once: more would block the page. */
const ROWS_AT_ONCE = 50;
/** Width of a picture, in CSS pixels. */
const WIDTH = 512;

/** Make a figure. */
export function figureOf(
  space: DrawnSpace,
  order: Order,
  onCell: OnCell,
): HTMLElement {
  const grid = layOut(space.cells, order);
  const caption = element("figcaption", space.heading);
  const legend = element("ul");
  legend.className = "legend";
  for (const { name, opacity, text } of space.legend) {
    const item = element("li");
    const swatch = element("span");
    swatch.className = "swatch";
    const colour = cssColour(LOOKS[name]);
    swatch.style.background = opacity === 1
      ? colour
      : `color-mix(in srgb, ${colour} ${100 * opacity}%, transparent)`;
    item.append(swatch, element("span", text));
    legend.append(item);
  }
  const figure = element("figure");
  figure.append(
    caption,
    pictureOf(space, grid, onCell),
    legend,
    tableOf(space),
  );
  return figure;
}

/** The picture: a pixel a cell, enlarged by the style sheet. */
function pictureOf(
  space: DrawnSpace,
  grid: Grid,
  onCell: OnCell,
): HTMLElement {
  const { columns, rows } = grid;
  const canvas = element("canvas");
  canvas.width = columns;
  canvas.height = rows;
  canvas.style.width = `${WIDTH}px`;
  canvas.style.aspectRatio = `${columns} / ${rows}`;
  canvas.tabIndex = 0;
  // It handles the arrow keys itself, as the role `application` says.
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "picture");
  canvas.setAttribute(
    "aria-label",
    `${space.heading}. The arrow keys move from cell to cell; ` +
      "a table follows.",
  );
  canvas.getContext("2d")!.putImageData(pixelsOf(space, grid), 0, 0);
  const cursor = element("div");
  cursor.className = "cursor";
  cursor.hidden = true;
  cursor.style.width = `${100 / columns}%`;
  cursor.style.height = `${100 / rows}%`;
  let current = 0;
  const mark = (cell: number) => {
    current = cell;
    const [x, y] = cornerOf(grid, cell);
    cursor.style.left = `${100 * x / columns}%`;
    cursor.style.top = `${100 * y / rows}%`;
    cursor.hidden = false;
    onCell(space, cell);
  };
  canvas.addEventListener("pointermove", (event) => {
    const scale = columns / canvas.clientWidth;
    const x = Math.floor(event.offsetX * scale);
    const y = Math.floor(event.offsetY * scale);
    const cell = cellAt(grid, x, y);
    if (cell !== undefined && cell !== current) mark(cell);
  });
  canvas.addEventListener("pointerleave", () => {
    if (document.activeElement !== canvas) cursor.hidden = true;
  });
  canvas.addEventListener("focus", () => space.cells > 0 && mark(current));
  canvas.addEventListener("blur", () => cursor.hidden = true);
  canvas.addEventListener("keydown", (event) => {
    const cell = moved(grid, space.cells, current, event.key);
    if (cell === undefined) return;
    event.preventDefault();
    mark(cell);
  });
  const picture = element("div");
  picture.className = "picture";
  picture.append(canvas, cursor);
  return picture;
}

function pixelsOf(space: DrawnSpace, grid: Grid): ImageData {
  const { names, looks, opacities, cells } = space;
  const image = new ImageData(grid.columns, grid.rows);
  const colours = names.map((name) => LOOKS[name].colour);
  for (let cell = 0; cell < cells; cell++) {
    const at = 4 * grid.places[cell];
    image.data.set(colours[looks[cell]], at);
    image.data[at + 3] = 255 * opacities[cell];
  }
  return image;
}

/** The cell that a key moves to. */
function moved(
  grid: Grid,
  cells: number,
  current: number,
  key: string,
): number | undefined {
  if (cells === 0) return undefined;
  if (key === "Home") return 0;
  if (key === "End") return cells - 1;
  const step = STEPS[key];
  if (!step) return undefined;
  const [x, y] = cornerOf(grid, current);
  return cellAt(grid, x + step[0], y + step[1]) ?? current;
}

const STEPS: { readonly [key: string]: readonly [x: number, y: number] } = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

function cornerOf({ columns, places }: Grid, cell: number): [number, number] {
  const place = places[cell];
  return [place % columns, Math.floor(place / columns)];
}

function cellAt(grid: Grid, x: number, y: number): number | undefined {
  const { columns, rows, cellsAt } = grid;
  if (x < 0 || x >= columns || y < 0 || y >= rows) return undefined;
  const cell = cellsAt[y * columns + x];
  return cell === 0 ? undefined : cell - 1;
}

/** The table, filled when it is opened. */
function tableOf({ lines, moreLines, title }: DrawnSpace): HTMLElement {
  const details = element("details");
  const summary = element("summary", `${title} as a table`);
  const scroll = element("div");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", `${title} as a table`);
  const table = element("table");
  const head = element("tr");
  head.append(
    element("th", "From"),
    element("th", "To"),
    element("th", "What"),
  );
  table.append(head);
  scroll.append(table);
  details.append(summary, scroll);
  const fill = (from: number) => {
    const end = Math.min(from + ROWS_AT_ONCE, lines.length);
    for (const line of lines.slice(from, end)) {
      const [, first, last, what] = /^(\S+) to (\S+): (.*)$/.exec(line)!;
      const row = element("tr");
      row.append(
        element("td", first),
        element("td", last),
        element("td", what),
      );
      table.append(row);
    }
    if (end < lines.length) requestAnimationFrame(() => fill(end));
    else if (moreLines > 0) {
      scroll.append(element("p", `and ${moreLines} more ranges`));
    }
  };
  details.addEventListener("toggle", () => fill(0), { once: true });
  return details;
}
