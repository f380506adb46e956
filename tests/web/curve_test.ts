/** The arrangement of cells in the page's pictures. @module */
import { assertEquals } from "@std/assert";
import { layOut } from "../../web/curve.ts";

Deno.test("layOut() gives each cell its own place, in both orders", () => {
  for (const order of ["rows", "hilbert"] as const) {
    for (const cells of [0, 1, 2, 63, 64, 65, 4096, 5000]) {
      const { columns, rows, places, cellsAt } = layOut(cells, order);
      assertEquals(new Set(places).size, cells);
      assertEquals(cellsAt.length, columns * rows);
      places.forEach((place, cell) => assertEquals(cellsAt[place], cell + 1));
    }
  }
});

Deno.test("on a Hilbert curve, consecutive cells are neighbours", () => {
  const { columns, places } = layOut(4096, "hilbert");
  for (let cell = 1; cell < places.length; cell++) {
    const [from, to] = [places[cell - 1], places[cell]];
    const across = Math.abs(from % columns - to % columns);
    const down = Math.abs(
      Math.floor(from / columns) - Math.floor(to / columns),
    );
    assertEquals(across + down, 1, `${cell}`);
  }
});
