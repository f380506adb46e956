/**
 * A picture as SVG.
 *
 * @module
 */
import { cssColour, LOOKS } from "./looks.ts";
import type { Picture } from "./picture.ts";
import {
  barsOf,
  barText,
  COLUMNS,
  headingOf,
  legendOf,
  opacityOf,
  spacesOf,
} from "./sheet.ts";
import type { Space } from "./space.ts";

/** Pixels. */
const [CELL, GAP, LINE] = [8, 24, 18];
const WIDTH = COLUMNS * CELL;

/**
 * A picture as SVG text. Pointing at a part shows a description; light or dark
 * follows the reader's preference.
 *
 * @category Jobs
 */
export function pictureToSvg(picture: Picture): string {
  const spaces = spacesOf(picture);
  const top = 3 * LINE;
  const rows = Math.max(...spaces.map((space) => rowsOf(space)));
  const legends = Math.max(...spaces.map((space) => legendOf(space).length));
  const notesTop = top + (rows * CELL) + (legends + 2) * LINE;
  const width = spaces.length * (WIDTH + GAP) + GAP;
  const height = notesTop + picture.notes.length * LINE;
  const names = new Set(
    spaces.flatMap((space) => space.totals().map(({ name }) => name)),
  );
  const colours = [...names, "unallocated" as const, "free" as const].map((
    name,
  ) => `.${name}{fill:${cssColour(LOOKS[name])}}`);
  const title = `${picture.name} (${picture.format})`;
  const columns = spaces.map((space, index) =>
    spaceSvg(space, GAP + index * (WIDTH + GAP), top)
  );
  const notes = picture.notes.map((note, index) =>
    text(GAP, notesTop + index * LINE, note)
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" role="img" ` +
    `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">
<title>${escaped(title)}</title>
<style>text{font:13px sans-serif;fill:#1b1f24}.paper{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#e6eaee}.paper{fill:#14171a}}
${colours.join("\n")}</style>
<rect class="paper" width="${width}" height="${height}"/>
${text(GAP, LINE, title)}
${columns.join("")}${notes.join("")}</svg>
`;
}

function rowsOf(space: Space): number {
  return Math.ceil(space.cells / COLUMNS);
}

function spaceSvg(space: Space, left: number, top: number): string {
  const bars = Array.from(barsOf(space), (bar) => {
    const { cell, count, name, shade } = bar;
    const x = left + (cell % COLUMNS) * CELL;
    const y = top + Math.floor(cell / COLUMNS) * CELL;
    const opacity = opacityOf(shade);
    return `<rect class="${name}" x="${x}" y="${y}" width="${count * CELL}" ` +
      `height="${CELL}" opacity="${opacity}">` +
      `<title>${escaped(barText(space, bar))}</title></rect>\n`;
  });
  const below = top + rowsOf(space) * CELL + LINE;
  const legend = legendOf(space).map(({ name, shade, text: words }, index) => {
    const y = below + index * LINE;
    return `<rect class="${name}" x="${left}" y="${y - 11}" width="12" ` +
      `height="12" opacity="${opacityOf(shade)}"/>${text(left + 20, y, words)}`;
  });
  return text(left, top - 8, headingOf(space)) + bars.join("") +
    legend.join("");
}

function text(x: number, y: number, words: string): string {
  return `<text x="${x}" y="${y}">${escaped(words)}</text>\n`;
}

/**
 * Text escaped for XML, without control characters, which XML cannot contain.
 */
function escaped(words: string): string {
  return words.toWellFormed()
    // deno-lint-ignore no-control-regex
    .replaceAll(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd")
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
