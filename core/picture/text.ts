/**
 * A picture as text, with the colours of a terminal or without.
 *
 * @module
 */
import type { Look } from "./looks.ts";
import { LOOKS } from "./looks.ts";
import type { Picture } from "./picture.ts";
import { barsOf, COLUMNS, headingOf, legendOf, spacesOf } from "./sheet.ts";
import type { Space } from "./space.ts";

/**
 * A picture as lines of text: a letter for each cell.
 *
 * @param coloured Whether to use the colour sequences of terminals.
 *
 * @category Jobs
 */
export function pictureToText(picture: Picture, coloured: boolean): string {
  const paint = coloured ? painted : (text: string) => text;
  const spaces = spacesOf(picture).map((space) => spaceText(space, paint));
  const notes = picture.notes.map((note) => `${note}\n`);
  return [...spaces, ...notes].join("\n");
}

type Paint = (text: string, look: Look) => string;

function spaceText(space: Space, paint: Paint): string {
  let text = `${headingOf(space)}\n`;
  for (const { cell, count, name } of barsOf(space)) {
    if (cell > 0 && cell % COLUMNS === 0) text += "\n";
    const look = LOOKS[name];
    text += paint(look.letter.repeat(count), look);
  }
  if (space.cells > 0) text += "\n";
  for (const { look, text: words } of legendOf(space)) {
    text += `  ${paint(look.letter, look)} ${words}\n`;
  }
  return text;
}

/** Letters on a coloured ground. */
function painted(text: string, { colour }: Look): string {
  const [red, green, blue] = colour;
  // Perceived brightness.
  const isBright = 0.3 * red + 0.59 * green + 0.11 * blue > 140;
  return `\x1b[${isBright ? 30 : 97};48;2;${red};${green};${blue}m` +
    `${text}\x1b[0m`;
}
