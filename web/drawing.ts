/**
 * The pictures of an image, what their cells stand for, and how the image
 * differs from another one.
 *
 * @module
 */
import { chainExtents, isStored } from "../core/extents.ts";
import type { CheckResult } from "../core/node.ts";
import { nameOf } from "../core/node_names.ts";
import { drawDifference } from "../core/picture/difference.ts";
import { drawPicture, type Picture } from "../core/picture/picture.ts";
import { bytesText } from "../core/picture/sheet.ts";
import { pictureToSvg } from "../core/picture/svg.ts";
import { drawn } from "./drawn.ts";
import type { DifferenceDrawing, Drawing, Requests, Work } from "./messages.ts";
import { openPlace } from "./opening.ts";
import { refuseIncomplete, type Session } from "./session.ts";

/** The picture that is shown, of which cells are asked for. */
let picture: Picture | undefined;

/** Draw an image. */
export async function draw(
  { disk, opened, overlay }: Session,
  { cells, bitmap }: Requests["draw"]["ask"],
  { signal, progress }: Work,
): Promise<Drawing> {
  picture = await drawPicture(disk, { cells, bitmap, signal, progress });
  const { guest, host, layout, notes } = picture;
  // Snapshots are in the image, not in the overlay.
  const whole = overlay
    ? await opened.image.node.image?.layout?.({ signal }).catch(() => undefined)
    : layout;
  return {
    guest: drawn(guest),
    host: host && drawn(host),
    verdict: layout && verdictOf(layout.check),
    findings: [...notes, ...layout?.findings ?? []],
    frees: Object.fromEntries(
      whole?.snapshots.map(({ id, frees }) => [id, frees]) ?? [],
    ),
    svg: pictureToSvg(picture),
  };
}

function verdictOf({ corruptions, leaks }: CheckResult): string {
  const parts = [
    ...corruptions > 0 ? [`${corruptions} errors: data may be damaged`] : [],
    ...leaks > 0 ? [`${leaks} leaked clusters: space is wasted`] : [],
  ];
  return parts.join("; ") || "No errors were found";
}

/** Lines that are shown of a cell. */
const MAX_LINES = 12;

/** What `map` says of the bytes of a cell. */
export async function lines(
  { disk }: Session,
  { space, offset, length }: Requests["lines"]["ask"],
): Promise<readonly string[]> {
  const found: string[] = [];
  const add = (from: number, bytes: number, what: string) => {
    if (found.length < MAX_LINES) {
      found.push([hex(from), hex(bytes), what].join("  "));
      return true;
    }
    found.push("…");
    return false;
  };
  if (space === "guest") {
    for await (const extent of chainExtents(disk, offset, length)) {
      const { allocated, compressed, file, hostOffset, depth } = extent;
      const layer = depth > 0 ? `, ${depth} below the image` : "";
      const what = !isStored(extent)
        ? allocated ? "zeroes" : "not allocated"
        : compressed
        ? `compressed data${layer}`
        : hostOffset === undefined || !file
        ? `data${layer}`
        : `${hex(hostOffset)}  ${nameOf(file)}`;
      if (!add(extent.offset, extent.length, what)) break;
    }
    return found;
  }
  const layout = picture?.layout;
  const end = Math.min(offset + length, layout?.size ?? 0);
  for (let at = offset; at < end && layout;) {
    const run = layout.runAt(at, end - at);
    const marks = (["shared", "leaked", "corrupt"] as const)
      .filter((mark) => run[mark]);
    const what = [run.use.replaceAll("-", " "), ...marks].join(", ");
    if (!add(at, run.length, what)) break;
    at += run.length;
  }
  return found;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

/** Compare the disk with that of another image. */
export async function compare(
  { opened, content, meter, passphrases }: Session,
  { place, cells, passphrase }: Requests["compare"]["ask"],
  { signal, progress }: Work,
): Promise<DifferenceDrawing> {
  const { image } = opened;
  // Two versions of one image most likely have the same passphrases.
  const keys = passphrase ?? passphrases;
  const other = await openPlace(place, meter, keys, signal);
  try {
    refuseIncomplete(other);
    const { space, bytes, ranges } = await drawDifference(
      content,
      other.image.node,
      { cells, signal, progress },
    );
    const sizes = image.size === other.image.size
      ? ""
      : `; the disks have ${image.size} and ${other.image.size} bytes`;
    const verdict = bytes === 0
      ? `The content is the same${sizes}`
      : `${bytesText(bytes)} differ${sizes}`;
    return {
      space: drawn(space),
      verdict,
      ranges: ranges.map(({ offset, length }) =>
        `${hex(offset)}  ${hex(length)}`
      ),
    };
  } finally {
    await other.close();
  }
}
