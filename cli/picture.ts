/** Drawing an image, for `map`. @module */
import { asBlockError, reasonOf } from "../core/errors.ts";
import { nodesOf } from "../core/extents.ts";
import type { BlockNode } from "../core/node.ts";
import { process } from "../core/platform/this_process.ts";
import { drawPicture, type Picture } from "../core/picture/picture.ts";
import { pictureToPng } from "../core/picture/png.ts";
import { pictureToSvg } from "../core/picture/svg.ts";
import { pictureToText } from "../core/picture/text.ts";
import { writeFully } from "./output.ts";
import { CommandError, type Program, usageError } from "./program.ts";

/** Which pictures to draw, and where to write them. */
export interface PictureSettings {
  /** As letters, on standard output. */
  text?: boolean;
  /** Names of files to write; `-` is standard output. */
  svg?: string;
  png?: string;
  /** The bitmap to mark. */
  bitmap?: string;
}

/** Cells of a space on a terminal, so that both spaces fit on a screen. */
const TEXT_CELLS = 1024;

/** Draw an image. */
export async function draw(
  program: Program,
  node: BlockNode,
  settings: PictureSettings,
): Promise<void> {
  const { svg, png, bitmap, text } = settings;
  const files = [svg, png].filter((name) => name !== undefined);
  if (Number(text ?? false) + files.filter((it) => it === "-").length > 1) {
    throw usageError("Only one picture can go to standard output");
  }
  for (const file of files) refuseImage(node, file);
  const picture = (cells?: number) => drawPicture(node, { bitmap, cells });
  if (files.length > 0) {
    const large = await picture();
    if (svg !== undefined) {
      write(program, svg, new TextEncoder().encode(pictureToSvg(large)));
    }
    if (png !== undefined) {
      write(program, png, await pictureToPng(large));
    }
    if (!text) warnOf(program, large);
  }
  if (text) {
    const isColoured = !process.noColor && process.output.isTerminal();
    program.print(pictureToText(await picture(TEXT_CELLS), isColoured));
  }
}

function warnOf(program: Program, { notes }: Picture): void {
  for (const note of notes) program.warn(note);
}

/** Refuse to overwrite a file of the image with its picture. */
function refuseImage(node: BlockNode, name: string): void {
  const place = name === "-" ? undefined : placeOf(name);
  if (place === undefined) return;
  for (const { node: layer } of nodesOf(node)) {
    if (layer.driver.role !== "protocol") continue;
    if (placeOf(layer.filename) !== place) continue;
    throw new CommandError(
      `A picture written to '${name}' would destroy the image it shows`,
    );
  }
}

/** Identifies a file, whatever its name; `undefined` if it does not exist. */
function placeOf(name: string): string | undefined {
  try {
    return process.status(name).identity;
  } catch {
    return undefined;
  }
}

function write(
  program: Program,
  name: string,
  bytes: Uint8Array,
): void {
  if (name === "-") {
    program.output.flush();
    writeFully(process.output, bytes);
    return;
  }
  try {
    process.writeFile(name, bytes);
  } catch (error) {
    throw new CommandError(
      `Could not write '${name}': ${reasonOf(asBlockError(error))}`,
    );
  }
}
