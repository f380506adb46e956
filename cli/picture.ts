/** Drawing an image, for `map`. @module */
import { asBlockError, reasonOf } from "../core/errors.ts";
import { nodesOf } from "../core/extents.ts";
import type { BlockNode } from "../core/node.ts";
import { drawPicture, type Picture } from "../core/picture/picture.ts";
import { pictureToPng } from "../core/picture/png.ts";
import { pictureToSvg } from "../core/picture/svg.ts";
import { pictureToText } from "../core/picture/text.ts";
import { writeFully } from "./output.ts";
import { CommandError, type Program, usageError } from "./program.ts";

/** What picture of an image is wanted, and where. */
export interface PictureWish {
  /** In letters, on standard output. */
  text?: boolean;
  /** Names of files to write; `-` is standard output. */
  svg?: string;
  png?: string;
  /** The bitmap to mark. */
  bitmap?: string;
}

/** Cells of a space on a terminal: they fit on a screen. */
const TEXT_CELLS = 1024;

/** Draw an image. */
export async function draw(
  program: Program,
  node: BlockNode,
  wish: PictureWish,
): Promise<void> {
  const { svg, png, bitmap, text } = wish;
  const files = [svg, png].filter((name) => name !== undefined);
  if (Number(text ?? false) + files.filter((it) => it === "-").length > 1) {
    throw usageError("Only one picture can go to standard output");
  }
  for (const file of files) await refuseImage(node, file);
  const picture = (cells?: number) => drawPicture(node, { bitmap, cells });
  if (files.length > 0) {
    const large = await picture();
    if (svg !== undefined) {
      await write(program, svg, new TextEncoder().encode(pictureToSvg(large)));
    }
    if (png !== undefined) {
      await write(program, png, await pictureToPng(large));
    }
    if (!text) warnOf(program, large);
  }
  if (text) {
    const isColoured = !Deno.noColor && Deno.stdout.isTerminal();
    program.print(pictureToText(await picture(TEXT_CELLS), isColoured));
  }
}

function warnOf(program: Program, { notes }: Picture): void {
  for (const note of notes) program.warn(note);
}

/** Refuse to write a picture over a file of the image that it shows. */
async function refuseImage(node: BlockNode, name: string): Promise<void> {
  const place = name === "-" ? undefined : await placeOf(name);
  if (place === undefined) return;
  for (const { node: layer } of nodesOf(node)) {
    if (layer.driver.role !== "protocol") continue;
    if (await placeOf(layer.filename) !== place) continue;
    throw new CommandError(
      `A picture written to '${name}' would destroy the image it shows`,
    );
  }
}

/** What tells whether two names are of one file; `undefined` if none is. */
async function placeOf(name: string): Promise<string | undefined> {
  try {
    const { dev, ino } = await Deno.stat(name);
    return ino === null ? await Deno.realPath(name) : `${dev}:${ino}`;
  } catch {
    return undefined;
  }
}

async function write(
  program: Program,
  name: string,
  bytes: Uint8Array,
): Promise<void> {
  if (name === "-") {
    program.output.flush();
    writeFully(Deno.stdout, bytes);
    return;
  }
  try {
    await Deno.writeFile(name, bytes);
  } catch (error) {
    throw new CommandError(
      `Could not write '${name}': ${reasonOf(asBlockError(error))}`,
    );
  }
}
