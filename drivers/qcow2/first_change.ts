/**
 * What an image claims that holds only as long as nobody changes it without
 * knowing of it. (Specification: "Autoclear features".)
 *
 * @module
 */
import { wrapNode } from "../../core/filter.ts";
import type { BlockNode } from "../../core/node.ts";
import { Autoclear } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";

/** Bitmaps that a warning names. */
const NAMED = 8;

/** What it takes to withdraw what an image claims. */
export interface ClaimsHost {
  /** What is written to without anything being withdrawn before. */
  readonly plainFile: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly behaviour: { warn(message: string): void };
  /** Clear autoclear features that are not among `kept`. */
  clearFeatures(kept: number): Promise<void>;
}

/** The file of an image, with `prepare` waited for before it is changed. */
export function watchChanges(
  file: BlockNode,
  prepare: () => void | Promise<void>,
): BlockNode {
  return wrapNode(file, {
    async writev(...args) {
      await prepare();
      await file.writev!(...args);
    },
    async writeZeroes(...args) {
      await prepare();
      await file.writeZeroes!(...args);
    },
    async discard(...args) {
      await prepare();
      await file.discard!(...args);
    },
    async truncate(...args) {
      await prepare();
      await file.truncate!(...args);
    },
    async copyFrom(...args) {
      await prepare();
      await file.copyFrom!(...args);
    },
  });
}

/**
 * Bitmaps are not kept up to date by this driver, and a feature that nobody
 * knows is not either: the format has bits to say so. The user is told which
 * bitmaps are void from here on. A raw data file stays true to the disk.
 */
export async function dropClaims(state: ClaimsHost): Promise<void> {
  const { autoclear, bitmaps } = state.header;
  if ((autoclear.low & Autoclear.BITMAPS) !== 0 && bitmaps) {
    const names = await bitmapNames(state);
    state.behaviour.warn(
      `'${state.plainFile.filename}' is changed without its persistent ` +
        `bitmaps, which are void from here on: ${names}`,
    );
  }
  await state.clearFeatures(Autoclear.RAW_EXTERNAL_DATA);
}

async function bitmapNames(
  { plainFile, header, geometry }: ClaimsHost,
): Promise<string> {
  const { count } = header.bitmaps!;
  let names: string[] = [];
  try {
    const { listBitmaps } = await import("./bitmap_directory.ts");
    const list = await listBitmaps(
      plainFile,
      header.bitmaps!,
      geometry,
      header.size,
    );
    names = list.map(({ name }) => `'${name}'`);
  } catch {
    // They are void in any case.
  }
  if (names.length === 0) return `${count} that cannot be read`;
  const more = names.length - NAMED;
  if (more <= 0) return names.join(", ");
  return `${names.slice(0, NAMED).join(", ")} and ${more} more`;
}
