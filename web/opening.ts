/**
 * Opening an image with its backing chain, out of what the user gave: only the
 * files that were dropped, or what is next to the address that was pasted.
 *
 * @module
 */
import {
  BlockError,
  type BlockNode,
  type Image,
  inspect,
  type Inspection,
  openImage,
  type StackObject,
} from "../mod.ts";
import type { Layer, Place } from "./messages.ts";
import { blobNode, Meter, urlNode } from "./sources.ts";

/** An open image. */
export interface Opened {
  readonly image: Image;
  readonly chain: readonly Layer[];
  readonly meter: Meter;
  /** What the image itself is, and what speaks against using it. */
  readonly inspection: Inspection;
}

/** One file of a chain, before the whole is opened. */
interface Part {
  readonly name: string;
  readonly node: BlockNode;
  readonly format: string;
  readonly size: number;
  readonly backing?: string;
}

/** Longest chain that is followed. */
const MAX_CHAIN = 256;

/**
 * Open what is at a place.
 *
 * @throws {BlockError} what `openImage` throws.
 */
export async function openPlace(
  place: Place,
  meter: Meter = new Meter(),
): Promise<Opened> {
  const parts = place.files
    ? await filesChain(place.files, meter)
    : await urlChain(place.url, meter);
  const chain: Layer[] = parts.found.map(({ name, format, size }) => ({
    name,
    format,
    size,
  }));
  if (parts.missing) chain.push(parts.missing);
  let stack: StackObject | null = null;
  for (const { node, format, backing } of parts.found.toReversed()) {
    stack = {
      driver: format,
      file: node,
      ...(backing !== undefined && { backing: stack }),
    };
  }
  const inspection = await inspect(parts.found[0].node, { gate: "deny" });
  const image = await openImage(stack!, {
    readOnly: true,
    gate: "deny",
    withoutKeys: true,
  });
  return { image, chain, meter, inspection };
}

interface Parts {
  readonly found: readonly Part[];
  readonly missing?: Layer;
}

/** Look at one file, without what it refers to. */
async function look(name: string, node: BlockNode): Promise<Part> {
  const image = await openImage({ file: node }, {
    readOnly: true,
    purpose: "info",
    backing: false,
    gate: "deny",
  });
  try {
    const info = await image.node.info?.();
    if (info?.sizeUnknown) {
      throw new BlockError(
        "ENOTSUP",
        `'${name}' is an image in the format ${image.format}, which cannot be ` +
          "read here",
      );
    }
    const { format, size } = image;
    return { name, node, format, size, backing: info?.backingFile };
  } finally {
    await image.close();
  }
}

async function filesChain(
  files: NonNullable<Place["files"]>,
  meter: Meter,
): Promise<Parts> {
  const parts = new Map<string, Part>();
  for (const { name, blob } of files) {
    parts.set(name, await look(name, blobNode(blob, name, meter)));
  }
  const named = new Set(
    [...parts.values()].map(({ backing }) => backing && baseName(backing)),
  );
  // The image that no other one builds upon.
  const top = [...parts.values()].find(({ name }) => !named.has(name)) ??
    [...parts.values()][0];
  return await follow(top, (backing) => {
    const part = parts.get(baseName(backing));
    return part ?? "drop it together with the image";
  });
}

async function urlChain(url: string, meter: Meter): Promise<Parts> {
  const folder = new URL(".", url).href;
  const top = await look(url, await urlNode(url, meter));
  return await follow(top, async (backing, { name }) => {
    const address = URL.parse(backing, name)?.href;
    // What an image says must not make the page ask any server for anything.
    if (!address?.startsWith(folder)) {
      return "it is not next to the image, and was not asked for";
    }
    return await look(address, await urlNode(address, meter));
  });
}

/** The chain below an image; `find` says why when it finds nothing. */
async function follow(
  top: Part,
  find: (
    backing: string,
    above: Part,
  ) => Part | string | Promise<Part | string>,
): Promise<Parts> {
  const found = [top];
  for (;;) {
    const above = found.at(-1)!;
    const { backing } = above;
    if (backing === undefined) return { found };
    const missing = (why: string) => ({
      found,
      missing: { name: backing, missing: why },
    });
    if (found.length === MAX_CHAIN) return missing("the chain is too long");
    let part: Part | string;
    try {
      part = await find(backing, above);
    } catch (error) {
      part = (error as Error).message;
    }
    if (typeof part === "string") return missing(part);
    if (found.includes(part)) return missing("it builds upon itself");
    found.push(part);
  }
}

function baseName(path: string): string {
  return path.replace(/^.*[/\\]/, "");
}
