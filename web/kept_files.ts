/// <reference lib="dom" />
/**
 * Files that the browser stores for this page, in its private file system.
 * (Source: "File System", section "Storage".)
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";

/**
 * The name of an image that is being created. The user may still be downloading
 * it when the page is closed.
 */
export const UNFINISHED = "compact.qcow2";

/** Whether this browser keeps files that a worker can write to in place. */
export function hasFiles(): boolean {
  return typeof navigator.storage?.getDirectory === "function" &&
    typeof FileSystemFileHandle !== "undefined" &&
    "createSyncAccessHandle" in FileSystemFileHandle.prototype;
}

/**
 * Open a stored file; with `create`, create it if need be.
 *
 * @returns `undefined` if there is none, and none was created.
 * @throws {BlockError} ENOTSUP if the browser stores no files for this page.
 */
export async function findFile(
  name: string,
  create = false,
): Promise<FileSystemFileHandle | undefined> {
  if (!hasFiles() && !create) return undefined;
  try {
    const root = await navigator.storage.getDirectory();
    return await root.getFileHandle(name, { create });
  } catch (error) {
    if (!create) return undefined;
    const { message } = error as Error;
    throw new BlockError("ENOTSUP", `This browser keeps no files: ${message}`);
  }
}

/** Remove a file that is kept; none is fine. */
export async function removeFile(name: string): Promise<void> {
  const root = await navigator.storage.getDirectory();
  try {
    await root.removeEntry(name);
  } catch (error) {
    if ((error as Error).name === "NotFoundError") return;
    throw error;
  }
}
