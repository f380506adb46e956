/**
 * Where the cells of a space are drawn: in rows, or along a Hilbert curve, which
 * keeps neighbours in the space close to each other in the picture.
 *
 * @module
 */

/** The order in which cells are drawn. */
export type Order = "rows" | "hilbert";

/** Places of cells, in columns and rows from the top left. */
export interface Grid {
  readonly columns: number;
  readonly rows: number;
  /** For each cell, `column + columns * row`. */
  readonly places: Uint32Array;
  /** For each place, its cell plus one; 0 where there is none. */
  readonly cellsAt: Uint32Array;
}

/** Lay cells out. */
export function layOut(cells: number, order: Order): Grid {
  let columns = cells > 4096 ? 128 : 64;
  let rows = Math.max(1, Math.ceil(cells / columns));
  if (order === "hilbert") {
    columns = 1;
    while (columns * columns < cells) columns *= 2;
    rows = columns;
  }
  const places = new Uint32Array(cells);
  const cellsAt = new Uint32Array(columns * rows);
  for (let cell = 0; cell < cells; cell++) {
    const place = order === "rows" ? cell : hilbertPlace(cell, columns);
    places[cell] = place;
    cellsAt[place] = cell + 1;
  }
  return { columns, rows, places, cellsAt };
}

/**
 * The place of the point at a distance along the curve that fills a square.
 * (Source: Hilbert 1891; by quadrants, from the smallest on.)
 */
function hilbertPlace(distance: number, side: number): number {
  let [x, y] = [0, 0];
  for (let size = 1; size < side; size *= 2) {
    const right = (distance >> 1) & 1;
    const down = (distance ^ right) & 1;
    if (!down) {
      if (right) [x, y] = [size - 1 - x, size - 1 - y];
      [x, y] = [y, x];
    }
    x += size * right;
    y += size * down;
    distance >>= 2;
  }
  return y * side + x;
}
