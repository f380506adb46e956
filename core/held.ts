/**
 * Sources that a program holds rather than names: bytes, and open files.
 *
 * @module
 */

import type { BlockNode, Extent } from "./node.ts";

/** The driver for each kind of such an object, by what engines call it. */
const DRIVERS: { readonly [tag: string]: HeldKind } = {
  Blob: "blob",
  File: "blob",
  ArrayBuffer: "blob",
  SharedArrayBuffer: "blob",
  FileSystemFileHandle: "opfs",
  FileSystemSyncAccessHandle: "opfs",
};

/** The drivers of what is held. */
export type HeldKind = "blob" | "opfs" | "handle";

/**
 * Bytes or an open file, as a program holds it.
 *
 * @category Stacks
 */
export type HeldSource =
  | Blob
  | ArrayBuffer
  | ArrayBufferView<ArrayBufferLike>
  | HeldBrowserFile
  | HeldFile;

/**
 * A `FileSystemFileHandle` of a browser, as far as it tells what it is.
 *
 * @category Stacks
 */
export interface HeldBrowserFile {
  /** What it is: a file. */
  readonly kind: "file";
  /** Its name, without a folder. */
  readonly name: string;
  /** The file as it is now. */
  getFile(): Promise<Blob>;
}

/**
 * A `Deno.FsFile`, or a `FileHandle` of `node:fs/promises`.
 *
 * @category Stacks
 */
export interface HeldFile {
  /** Read some bytes. */
  read(...given: never[]): Promise<unknown>;
  /** What it is. */
  stat(...given: never[]): Promise<unknown>;
  /** Change its size. */
  truncate(size?: number): Promise<unknown>;
}

/** Which driver opens an object; `undefined` if none does. */
export function heldKind(value: unknown): HeldKind | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  if (ArrayBuffer.isView(value)) return "blob";
  // Not by class: it may come from another window.
  const tag = Object.prototype.toString.call(value).slice(
    "[object ".length,
    -1,
  );
  if (Object.hasOwn(DRIVERS, tag)) return DRIVERS[tag];
  const { read, stat, truncate, close } = value as {
    readonly [verb: string]: unknown;
  };
  return [read, stat, truncate, close].every((it) => typeof it === "function")
    ? "handle"
    : undefined;
}

/** The description of a held object; `undefined` for anything else. */
export function heldStack(
  value: unknown,
): { driver: string; [option: string]: unknown } | undefined {
  const driver = heldKind(value);
  return driver && { driver, [driver === "blob" ? "blob" : "handle"]: value };
}

/** What messages call it: its name, if it has one. */
export function heldName(value: unknown): string | undefined {
  const { name } = value as { name?: unknown };
  return typeof name === "string" && name !== "" ? name : undefined;
}

/** The extent of a file that is all data; past its end are zeroes. */
export function dataExtent(
  file: BlockNode,
  offset: number,
  length: number,
): Extent {
  const inside = Math.min(length, file.size - offset);
  const place = { allocated: true, hostOffset: offset, file };
  return inside > 0
    ? { length: inside, zero: false, ...place }
    : { length, zero: true, ...place };
}
