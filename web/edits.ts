/**
 * What the user changes of an image: an overlay that the browser keeps, so that
 * the image stays as it is, and the changes are there again after a reload.
 *
 * @module
 */
import {
  BlockError,
  type BlockNode,
  createImage,
  type Image,
  MemoryStore,
  openImage,
} from "../mod.ts";
import type { Place } from "./messages.ts";
import { hasFiles, openFile, removeFile } from "./opfs.ts";

/** What was changed of an image, on top of it. */
export interface Overlay {
  /** The disk with the changes. */
  readonly image: Image;
  /** Keep the changes, and let go of them. */
  close(): Promise<void>;
}

/** The name of the overlay's file: of the image by its name, size and age. */
export async function overlayName(
  place: Place,
  image: Image,
): Promise<string> {
  const identity = place.files
    ? place.files.map(({ name, blob }) => {
      const { lastModified = 0 } = blob as Partial<File>;
      return [name, blob.size, lastModified];
    }).sort()
    : [place.url, image.size];
  const text = new TextEncoder().encode(JSON.stringify(identity));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", text));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0"));
  return `overlay-${hex.join("")}.qcow2`;
}

/** The overlay of an image that was kept, on top of it, if there is one. */
export async function reopenOverlay(
  name: string,
  base: BlockNode,
): Promise<Overlay | undefined> {
  if (!hasFiles()) return undefined;
  let file: BlockNode;
  try {
    file = await openFile(name, false);
  } catch (error) {
    const { code } = error as BlockError;
    // Where no files are kept, there are no edits.
    if (code === "ENOENT" || code === "EIO") return undefined;
    throw error;
  }
  return await onTop(file, base);
}

/** Make an overlay for the changes of an image. */
export async function makeOverlay(
  name: string,
  base: BlockNode,
): Promise<Overlay> {
  if (!hasFiles()) {
    throw new BlockError("ENOTSUP", "This browser keeps no files for pages");
  }
  const store = new MemoryStore();
  const memory = { driver: "memory", store };
  await createImage("qcow2", memory, { size: base.size });
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  const file = await openFile(name, true);
  try {
    await file.truncate!(0);
    await file.writev!(0, [bytes]);
    await file.flush!();
  } catch (error) {
    await file.close();
    await removeFile(name);
    throw error;
  }
  return await onTop(file, base);
}

async function onTop(file: BlockNode, base: BlockNode): Promise<Overlay> {
  // Who makes a node has to close it, after those who use it.
  try {
    const stack = { driver: "qcow2", file, backing: base };
    const image = await openImage(stack, { gate: "deny" });
    return {
      image,
      async close() {
        await image.close();
        await file.close();
      },
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

export { removeFile as removeOverlay } from "./opfs.ts";

/** The most bytes that are written by one edit. */
const MAX_BYTES = 2 ** 20;

/**
 * The bytes that a user means: pairs of hexadecimal digits, or text in quotes.
 *
 * @throws {BlockError} EINVAL if it is neither.
 */
export function parseBytes(text: string): Uint8Array<ArrayBuffer> {
  const quoted = /^\s*"(.*)"\s*$/s.exec(text)?.[1];
  const digits = text.replaceAll(/\s/g, "");
  const bytes = quoted !== undefined
    ? new TextEncoder().encode(quoted)
    : /^([0-9a-f]{2})+$/i.test(digits)
    ? Uint8Array.from(digits.match(/../g)!, (pair) => parseInt(pair, 16))
    : undefined;
  if (bytes && bytes.length > 0 && bytes.length <= MAX_BYTES) return bytes;
  throw new BlockError(
    "EINVAL",
    'Bytes are pairs of hexadecimal digits, such as 55 aa, or text in quotes, "so"',
  );
}

/**
 * An offset that a user means.
 *
 * @throws {BlockError} EINVAL if it is none.
 */
export function parseOffset(text: string): number {
  const isNumber = /^(0x[0-9a-f]+|\d+)$/i.test(text.trim());
  const offset = isNumber ? Number(text) : NaN;
  if (Number.isSafeInteger(offset)) return offset;
  throw new BlockError("EINVAL", `'${text}' is no offset in bytes`);
}
