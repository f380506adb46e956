/**
 * The user's changes to an image: an overlay that the browser keeps. The image
 * stays as it is, and a reload of the page does not lose the changes.
 *
 * @module
 */
import { createImage } from "../core/create.ts";
import { asBlockError, BlockError } from "../core/errors.ts";
import { type Image, openImage } from "../core/image.ts";
import type { BlockNode } from "../core/node.ts";
import "../subpaths/opfs.ts";
import "../subpaths/qcow2.ts";
import { findFile, hasFiles, removeFile } from "./kept_files.ts";
import type { Place } from "./messages.ts";

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
  passphrase?: string,
): Promise<Overlay | undefined> {
  // Without storage there are no edits.
  const handle = await findFile(name);
  return handle && await onTop(handle, base, passphrase);
}

/**
 * Make an overlay for the changes of an image.
 *
 * @param passphrase The image's, if it is encrypted: copy-on-write copies its data
 * into the overlay, which therefore is encrypted too.
 */
export async function makeOverlay(
  name: string,
  base: BlockNode,
  passphrase?: string,
): Promise<Overlay> {
  if (!hasFiles()) {
    throw new BlockError("ENOTSUP", "This browser keeps no files for pages");
  }
  try {
    const handle = await findFile(name, true);
    const file = { driver: "opfs", handle };
    const { size } = base;
    await (passphrase === undefined
      ? createImage("qcow2", file, { size })
      : createImage("qcow2", file, { size, ...ENCRYPTED }, {
        secrets: () => passphrase,
      }));
    return await onTop(handle!, base, passphrase);
  } catch (error) {
    await removeFile(name).catch(() => {});
    throw error;
  }
}

/** Options of overlays; every opening takes at least the `iter-time`. */
const ENCRYPTED = {
  "encrypt.format": "luks",
  "encrypt.key-secret": "image",
  "encrypt.iter-time": 1000,
} as const;

async function onTop(
  handle: FileSystemFileHandle,
  base: BlockNode,
  passphrase?: string,
): Promise<Overlay> {
  const stack = {
    driver: "qcow2",
    file: { driver: "opfs", handle },
    backing: base,
  };
  try {
    const image = await openImage(stack, {
      gate: "deny",
      secrets: () => passphrase,
    });
    return { image, close: () => image.close() };
  } catch (thrown) {
    const error = asBlockError(thrown);
    if (error.code !== "EAGAIN") throw error;
    throw new BlockError(
      "EAGAIN",
      "The edits of this image are open in another window",
    );
  }
}

export { removeFile as removeOverlay } from "./kept_files.ts";

/** The most bytes that are written by one edit. */
const MAX_BYTES = 2 ** 20;

/**
 * Parse bytes: pairs of hexadecimal digits, or text in quotes.
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
 * Parse an offset.
 *
 * @throws {BlockError} EINVAL if it is none.
 */
export function parseOffset(text: string): number {
  const isNumber = /^(0x[0-9a-f]+|\d+)$/i.test(text.trim());
  const offset = isNumber ? Number(text) : NaN;
  if (Number.isSafeInteger(offset)) return offset;
  throw new BlockError("EINVAL", `'${text}' is no offset in bytes`);
}
