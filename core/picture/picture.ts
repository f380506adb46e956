/**
 * A picture of an image: what the ranges of its disk are, and what the ranges
 * of its file are used for. Drawn by `svg.ts`, `png.ts`, `text.ts` and the page.
 *
 * @module
 */
import { checkSignal, Pace } from "../abort.ts";
import { operationsOf } from "../bitmaps.ts";
import { roundUp, SECTOR_SIZE } from "../bytes.ts";
import { checkNode, checkOptions } from "../checks.ts";
import { asBlockError } from "../errors.ts";
import {
  type ChainExtent,
  chainStatus,
  isStored,
  primaryChild,
  skipFilters,
} from "../extents.ts";
import type { BlockNode, ImageLayout } from "../node.ts";
import { nameOf } from "../node_names.ts";
import type { LookName } from "./looks.ts";
import { backingLook, Space } from "./space.ts";

/**
 * How to draw.
 *
 * @category Jobs
 */
export interface PictureOptions {
  /** Most cells of each space, 1 to 1,048,576. Default: 4096. */
  cells?: number;
  /** A bitmap of the image whose dirty ranges to mark. */
  bitmap?: string;
  /** Ends the job with ECANCELED. */
  signal?: AbortSignal;
  /** Receives how many bytes of the disk are done, and the total. */
  progress?(done: number, total: number): void;
}

/**
 * A picture of an image.
 *
 * @category Jobs
 */
export interface Picture {
  /** The name of the image. */
  readonly name: string;
  /** Its format. */
  readonly format: string;
  /** The disk. */
  readonly guest: Space;
  /** The file that holds the image; absent if there is not exactly one. */
  readonly host?: Space;
  /** What the file is used for, if the format can tell. */
  readonly layout?: ImageLayout;
  /** What could not be determined, and why. */
  readonly notes: readonly string[];
}

/** Most cells. */
const MAX_CELLS = 2 ** 20;
/** Largest unit that cells are multiples of, in bytes. */
const MAX_UNIT = 64 * 1024;
/** Errors that are noted individually. */
const MAX_NOTES = 10;

/**
 * Draw an image without reading its data.
 *
 * @throws {BlockError} ENOENT if there is no such bitmap.
 *
 * @example
 * ```ts
 * import { createImage, drawPicture, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { pictureToSvg } from "@bdrv/bdrv";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 20 });
 * await using image = await openImage({ driver: "qcow2", file });
 * const svg = pictureToSvg(await drawPicture(image.node));
 * console.log(svg.slice(0, 4)); // <svg
 * ```
 *
 * @category Jobs
 */
export async function drawPicture(
  node: BlockNode,
  options: PictureOptions = {},
): Promise<Picture> {
  checkNode("What is drawn", node);
  checkOptions("draw a picture", options, {
    cells: { least: 1, most: MAX_CELLS },
    bitmap: "string",
    signal: "object",
    progress: "function",
  });
  return await new Drawing(node, options).draw();
}

class Drawing {
  readonly #node: BlockNode;
  readonly #options: PictureOptions;
  readonly #pace: Pace;
  readonly #notes: string[] = [];
  /** The layer whose file is drawn, and that file. */
  readonly #top: BlockNode;
  readonly #file?: BlockNode;
  #host?: Space;
  #layout?: ImageLayout;
  #unit = SECTOR_SIZE;

  constructor(node: BlockNode, options: PictureOptions) {
    this.#node = node;
    this.#options = options;
    this.#pace = new Pace(options.signal);
    this.#top = skipFilters(node);
    this.#file = primaryChild(this.#top);
  }

  async draw(): Promise<Picture> {
    const { cells = 4096, bitmap } = this.#options;
    const node = this.#node;
    const info = await this.#top.info?.();
    this.#unit = Math.max(SECTOR_SIZE, info?.clusterSize ?? SECTOR_SIZE);
    // Large blocks, such as those of VHDX, would make the picture too coarse.
    const unit = Math.min(this.#unit, MAX_UNIT);
    const guest = new Space("Disk", node.size, cells, unit);
    if (this.#file) {
      const { size } = this.#file;
      this.#host = new Space("File", size, cells, unit);
      await this.#drawFile();
    }
    await this.#drawDisk(guest);
    if (this.#host && !this.#layout) this.#nameRest(this.#host);
    if (bitmap !== undefined) await this.#lookAtBitmap(guest, bitmap);
    return {
      name: nameOf(node),
      format: this.#top.driver.name,
      guest,
      host: this.#host,
      layout: this.#layout,
      notes: this.#notes,
    };
  }

  /** Add what the file is used for, according to the format. */
  async #drawFile(): Promise<void> {
    const { image } = this.#top;
    if (!image?.layout) return;
    const { signal } = this.#options;
    try {
      this.#layout = await image.layout({ signal });
    } catch (error) {
      checkSignal(signal);
      const { message } = asBlockError(error);
      this.#note(
        `What the file is used for could not be determined: ${message}`,
      );
      return;
    }
    const { size, runAt } = this.#layout;
    for (let at = 0; at < size;) {
      const run = runAt(at, size - at);
      this.#host!.add(run.use, at, run.length);
      for (const mark of ["shared", "leaked", "corrupt"] as const) {
        if (run[mark]) this.#host!.add(mark, at, run.length);
      }
      at += run.length;
      if (this.#pace.isDue) await this.#pace.rest();
    }
  }

  async #drawDisk(guest: Space): Promise<void> {
    const { size } = this.#node;
    let skip = this.#unit;
    for (let at = 0; at < size;) {
      let extent: ChainExtent;
      try {
        extent = await chainStatus(this.#node, at, size - at, {
          signal: this.#options.signal,
        });
        skip = this.#unit;
      } catch (error) {
        checkSignal(this.#options.signal);
        // The rest may be readable. Whole tables may be damaged, so the steps
        // grow, up to the size of a cell.
        const end = Math.min(roundUp(at + 1, skip), size);
        guest.add("unknown", at, end - at);
        guest.add("corrupt", at, end - at);
        const { message } = asBlockError(error);
        this.#note(`What is at ${at} of the disk is not known: ${message}`);
        at = end;
        skip = Math.min(2 * skip, Math.max(guest.cellSize, this.#unit));
        continue;
      }
      this.#addExtent(guest, extent);
      at += extent.length;
      this.#options.progress?.(at, size);
      if (this.#pace.isDue) await this.#pace.rest();
    }
    this.#pace.check();
  }

  #addExtent(guest: Space, extent: ChainExtent): void {
    const { offset, length, hostOffset } = extent;
    guest.add(lookOf(extent), offset, length);
    // Reserved space counts too: two extents may claim it.
    if (hostOffset === undefined || extent.depth > 0) return;
    if (extent.file !== this.#file) return;
    if (!this.#layout) {
      const look = isStored(extent) ? "data" : "zero";
      this.#host?.add(look, hostOffset, length);
      return;
    }
    const { size, runAt } = this.#layout;
    const end = hostOffset + length;
    for (let at = hostOffset; at < end;) {
      const run = at < size ? runAt(at, end - at) : undefined;
      const part = run?.length ?? end - at;
      const place = offset + at - hostOffset;
      if (run?.shared && run.use === "data") guest.add("shared", place, part);
      // A cluster past the end of the file or in metadata is damage.
      const isWrong = run
        ? run.corrupt || run.use !== "data"
        : at >= roundUp(size, this.#unit);
      if (isWrong) guest.add("corrupt", place, part);
      at += part;
    }
  }

  /**
   * Name what no extent of the disk accounts for, if the format cannot tell.
   */
  #nameRest(host: Space): void {
    for (let cell = 0; cell < host.cells; cell++) {
      const { offset, length } = host.range(cell);
      const known = host.shares(cell).reduce((sum, it) => sum + it.bytes, 0);
      if (known < length) host.add("unknown", offset, length - known);
    }
  }

  async #lookAtBitmap(guest: Space, name: string): Promise<void> {
    const bitmaps = operationsOf(this.#top);
    const dirty = bitmaps.dirty(name, 0, this.#top.size);
    for await (const { offset, length } of dirty) {
      guest.add("dirty", offset, length);
      if (this.#pace.isDue) await this.#pace.rest();
    }
  }

  #note(text: string): void {
    if (this.#notes.length < MAX_NOTES) this.#notes.push(text);
    else if (this.#notes.length === MAX_NOTES) this.#notes.push("and more");
  }
}

/** The look of an extent of a disk. */
function lookOf(extent: ChainExtent): LookName {
  if (!isStored(extent)) return extent.allocated ? "zero" : "unallocated";
  if (extent.depth > 0) return backingLook(extent.depth);
  return extent.compressed ? "compressed" : "data";
}
