/// <reference lib="dom" />
/**
 * Files that the browser keeps for this page, as nodes that can be written to.
 * (Source: "File System", section "FileSystemSyncAccessHandle".)
 *
 * @module
 */
import type { IoVector } from "../core/bytes.ts";
import { BlockError } from "../core/errors.ts";
import type { BlockNode, Extent } from "../core/node.ts";

/** The part of a sync access handle that is used. */
interface SyncHandle {
  getSize(): number;
  read(target: Uint8Array, at: { at: number }): number;
  write(bytes: Uint8Array, at: { at: number }): number;
  truncate(size: number): void;
  flush(): void;
  close(): void;
}

/** Whether this browser keeps files for this page. */
export function hasFiles(): boolean {
  return typeof navigator.storage?.getDirectory === "function" &&
    typeof FileSystemFileHandle !== "undefined" &&
    "createSyncAccessHandle" in FileSystemFileHandle.prototype;
}

/**
 * Open a file that the browser keeps.
 *
 * @throws {BlockError} ENOENT if there is none of that name, and it is not to
 * be made; EAGAIN if another window of this page has it open; EIO if the browser
 * keeps no files for this page.
 */
export async function openFile(
  name: string,
  create: boolean,
): Promise<BlockNode> {
  try {
    const root = await navigator.storage.getDirectory();
    const file = await root.getFileHandle(name, { create });
    const handle = await (file as unknown as {
      createSyncAccessHandle(): Promise<SyncHandle>;
    }).createSyncAccessHandle();
    return new FileNode(handle, name);
  } catch (error) {
    const { name: kind, message } = error as Error;
    if (kind === "NotFoundError") throw new BlockError("ENOENT");
    if (kind === "NoModificationAllowedError") {
      throw new BlockError(
        "EAGAIN",
        "The edits of this image are open in another window",
      );
    }
    throw new BlockError("EIO", `This browser keeps no files: ${message}`);
  }
}

/** Remove a file that the browser keeps; none is fine. */
export async function removeFile(name: string): Promise<void> {
  const root = await navigator.storage.getDirectory();
  try {
    await root.removeEntry(name);
  } catch (error) {
    if ((error as Error).name === "NotFoundError") return;
    throw error;
  }
}

class FileNode implements BlockNode {
  readonly driver = { name: "opfs", role: "protocol" } as const;
  readonly filename: string;
  readonly readOnly = false;
  readonly children = {};
  readonly #handle: SyncHandle;

  constructor(handle: SyncHandle, filename: string) {
    this.#handle = handle;
    this.filename = filename;
  }

  get size(): number {
    return this.#handle.getSize();
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async readv(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      part.fill(0, this.#handle.read(part, { at: offset }));
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async writev(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      let written = 0;
      try {
        written = this.#handle.write(part, { at: offset });
      } catch {
        // It says no more of why.
      }
      if (written < part.length) throw new BlockError("ENOSPC");
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async truncate(size: number): Promise<void> {
    this.#handle.truncate(size);
  }

  // deno-lint-ignore require-await
  async flush(): Promise<void> {
    this.#handle.flush();
  }

  // deno-lint-ignore require-await
  async status(offset: number, length: number): Promise<Extent> {
    const place = { allocated: true, hostOffset: offset, file: this };
    const inside = this.size - offset;
    if (inside <= 0) return { length, zero: true, ...place };
    return { length: Math.min(length, inside), zero: false, ...place };
  }

  // deno-lint-ignore require-await
  async close(): Promise<void> {
    this.#handle.close();
  }
}
