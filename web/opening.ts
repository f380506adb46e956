/**
 * Opening an image with its backing chain, from what the user gave: only the
 * files that were dropped, or what is beside the URL that was pasted.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import { type Wrapping, wrappingOf } from "../core/formats.ts";
import { type Image, openImage } from "../core/image.ts";
import type { Inspection } from "../core/jobs/inspect.ts";
import type { BlockNode } from "../core/node.ts";
import { probe } from "../core/probe.ts";
import type { StackObject } from "../core/spec.ts";
import "../subpaths/blob.ts";
import "../subpaths/http.ts";
import "../subpaths/qcow2.ts";
import "../subpaths/raw.ts";
import type { Layer, NamedBlob, Place } from "./messages.ts";
import { counted, type Meter } from "./meter.ts";

/** An open image. */
export interface Opened {
  readonly image: Image;
  readonly chain: readonly Layer[];
  /** The uppermost layer that is encrypted, and was opened without its key. */
  readonly locked?: string;
  /** What the image itself is, and what is suspicious about it. */
  readonly inspection: Inspection;
  /** Archives and compressions that the image's file is in, outermost first. */
  readonly packing: readonly string[];
  /** Let go of it, and of what it is in. */
  close(): Promise<void>;
}

/** A file, or what is packed into it. */
interface Content {
  readonly node: BlockNode;
  readonly packing: readonly string[];
}

/** One file of a chain, before the whole is opened. */
interface Part extends Content {
  readonly name: string;
  readonly format: string;
  readonly size: number;
  readonly isEncrypted: boolean;
  readonly backing?: string;
}

/** Passphrases that the user has given, by the name of the layer. */
export type Passphrases = ReadonlyMap<string, string>;

/** Most archives and compressions around an image. */
const MAX_WRAPPINGS = 4;

/** Longest chain that is followed. */
const MAX_CHAIN = 256;

/** Formats whose drivers are at hand from the beginning. */
const AT_HAND: readonly string[] = ["qcow2", "raw"];

/** Files and addresses that have been opened. */
class Sources {
  readonly #meter: Meter;
  readonly #images: Image[] = [];

  constructor(meter: Meter) {
    this.#meter = meter;
  }

  /** A file that the user gave. */
  async file({ name, blob }: NamedBlob): Promise<BlockNode> {
    const image = await this.#open({ driver: "blob", blob });
    return counted(image.node, name, this.#meter);
  }

  /** What is at an address. */
  async address(url: string): Promise<BlockNode> {
    const driver = URL.parse(url)?.protocol.slice(0, -1);
    if (driver !== "http" && driver !== "https") {
      throw new BlockError("EINVAL", `'${url}' is no address of a web server`);
    }
    // From a server without ranges, the whole file must be fetched.
    const stack = { driver, url, download: "memory" };
    try {
      return (await this.#open(stack)).node;
    } catch (error) {
      throw (error as BlockError).prefixed(`'${url}': `);
    }
  }

  async #open(stack: StackObject): Promise<Image> {
    const image = await this.use(openImage(stack, { readOnly: true }));
    this.#meter.total += image.size;
    return image;
  }

  /** Keep an image open as long as the others. */
  async use(opening: Promise<Image>): Promise<Image> {
    const image = await opening;
    this.#images.push(image);
    return image;
  }

  /** What was opened last is above the others. */
  async close(): Promise<void> {
    for (const image of this.#images.toReversed()) await image.close();
  }
}

/**
 * Open an image. A layer whose passphrase is not given shows everything but its
 * data.
 *
 * @param passphrases One for each layer, or one for all.
 * @throws {BlockError} what `openImage` throws.
 */
export async function openPlace(
  place: Place,
  meter: Meter,
  passphrases: Passphrases | string,
  signal?: AbortSignal,
): Promise<Opened> {
  const sources = new Sources(meter);
  const passphraseOf = typeof passphrases === "string"
    ? () => passphrases
    : (layer: string) => passphrases.get(layer);
  try {
    return await openFrom(sources, place, passphraseOf, signal);
  } catch (error) {
    await sources.close();
    throw error;
  }
}

async function openFrom(
  sources: Sources,
  place: Place,
  passphraseOf: (layer: string) => string | undefined,
  signal?: AbortSignal,
): Promise<Opened> {
  const parts = place.files
    ? await filesChain(place.files, sources)
    : await urlChain(place.url, sources);
  const chain: Layer[] = parts.found.map(({ name, format, size }) => ({
    name,
    format,
    size,
  }));
  if (parts.missing) chain.push(parts.missing);
  const { inspect } = await import("../core/jobs/inspect.ts");
  const inspection = await inspect(parts.found[0].node, { gate: "deny" });
  let image: Image | undefined;
  let locked: string | undefined;
  for (const part of parts.found.toReversed()) {
    const { name, node, format, isEncrypted, backing } = part;
    const passphrase = isEncrypted ? passphraseOf(name) : undefined;
    if (isEncrypted && passphrase === undefined) locked = name;
    const below = image?.node ?? null;
    const stack = {
      driver: format,
      file: node,
      ...(backing !== undefined && { backing: below }),
    };
    image = await sources.use(openImage(stack, {
      readOnly: true,
      gate: "deny",
      signal,
      ...(passphrase === undefined
        ? { withoutKeys: true }
        : { secrets: () => passphrase }),
    }));
  }
  return {
    image: image!,
    chain,
    locked,
    inspection,
    packing: parts.found[0].packing,
    close: () => sources.close(),
  };
}

interface Parts {
  readonly found: readonly Part[];
  readonly missing?: Layer;
}

/**
 * What an archive or a compressed file holds, which is read where it lies;
 * other files as they are.
 *
 * @throws {BlockError} ENOTSUP if it has to be unpacked first.
 */
async function unpacked(
  name: string,
  file: BlockNode,
  sources: Sources,
): Promise<Content> {
  const packing: string[] = [];
  let node = file;
  for (let wrapping = await wrappingOfFile(node); wrapping;) {
    const { what, driver } = wrapping;
    const refuse = () =>
      new BlockError(
        "ENOTSUP",
        `'${name}' is ${what}, and has to be unpacked first`,
      );
    if (driver === undefined || packing.length === MAX_WRAPPINGS) {
      throw refuse();
    }
    await import("../mod.ts");
    const stack = { driver: "raw", file: { driver, file: node } };
    try {
      const opening = openImage(stack, { readOnly: true, gate: "deny" });
      node = (await sources.use(opening)).node;
      wrapping = await wrappingOfFile(node);
    } catch (error) {
      throw (error as BlockError).code === "ENOTSUP" ? refuse() : error;
    }
    packing.push(driver);
  }
  return { node, packing };
}

/** What a file is that would otherwise be taken for a raw disk. */
async function wrappingOfFile(
  file: BlockNode,
): Promise<Wrapping | undefined> {
  const { guess, head } = await probe(file);
  return guess.formats[0].name === "raw" ? wrappingOf(head) : undefined;
}

/** Look at one file, without what it refers to. */
async function look(
  name: string,
  file: BlockNode,
  sources: Sources,
): Promise<Part> {
  const { node, packing } = await unpacked(name, file, sources);
  const { formats } = (await probe(node)).guess;
  if (!formats.every((format) => AT_HAND.includes(format.name))) {
    await import("../mod.ts");
  }
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
    const { encrypted: isEncrypted = false, backingFile: backing } = info ?? {};
    return { name, node, packing, format, size, isEncrypted, backing };
  } finally {
    await image.close();
  }
}

async function filesChain(
  files: readonly NamedBlob[],
  sources: Sources,
): Promise<Parts> {
  const parts = new Map<string, Part>();
  for (const file of files) {
    parts.set(
      file.name,
      await look(file.name, await sources.file(file), sources),
    );
  }
  const named = new Set(
    [...parts.values()].map(({ backing }) => backing && baseName(backing)),
  );
  // The image that is no other one's backing file.
  const top = [...parts.values()].find(({ name }) => !named.has(name)) ??
    [...parts.values()][0];
  return await follow(top, (backing) => {
    const part = parts.get(baseName(backing));
    return part ?? "drop it together with the image";
  });
}

async function urlChain(url: string, sources: Sources): Promise<Parts> {
  const top = await look(url, await sources.address(url), sources);
  const folder = new URL(".", url).href;
  return await follow(top, async (backing, { name }) => {
    const address = URL.parse(backing, name)?.href;
    // An image must not make the page contact any server.
    if (!address?.startsWith(folder)) {
      return "it is not next to the image, and was not asked for";
    }
    return await look(address, await sources.address(address), sources);
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
