/**
 * Sources that are objects of the program rather than names: bytes and open
 * files.
 *
 * @module
 */

import type { BlockNode, Extent } from "./node.ts";

/** The driver for each kind of object, by its `Symbol.toStringTag`. */
const DRIVERS: { readonly [tag: string]: HeldKind } = {
  Blob: "blob",
  File: "blob",
  ArrayBuffer: "blob",
  SharedArrayBuffer: "blob",
  FileSystemFileHandle: "opfs",
  FileSystemSyncAccessHandle: "opfs",
};

/** The drivers of such objects. */
export type HeldKind = "blob" | "opfs" | "handle";

/**
 * Bytes or an open file.
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
 * A browser's `FileSystemFileHandle`, as far as it is used.
 *
 * @category Stacks
 */
export interface HeldBrowserFile {
  /** Always a file, never a folder. */
  readonly kind: "file";
  /** Its name, without a folder. */
  readonly name: string;
  /** The present content of the file. */
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
  /** Describe it. */
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

/** The description of such an object; `undefined` for anything else. */
export function heldStack(
  value: unknown,
): { driver: string; [option: string]: unknown } | undefined {
  const driver = heldKind(value);
  return driver && { driver, [driver === "blob" ? "blob" : "handle"]: value };
}

/** Its name in messages, if it has one. */
export function heldName(value: unknown): string | undefined {
  const { name } = value as { name?: unknown };
  return typeof name === "string" && name !== "" ? name : undefined;
}

/** The extent of a file that is all data; it reads as zeroes past its end. */
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
