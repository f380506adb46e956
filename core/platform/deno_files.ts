/**
 * Files by way of `Deno.FsFile`, which works wherever Deno does, without
 * holes: there a file is all data.
 *
 * @module
 */
import type { IoVector } from "../bytes.ts";
import { BlockError } from "../errors.ts";
import { attempt, type FileInfo, type Files, type HostFile } from "./files.ts";

export const files: Files = {
  stat: (path) => infoOf(attempt(() => Deno.statSync(path))),
  open: (path, write) =>
    new DenoFile(attempt(() => Deno.openSync(path, { read: true, write }))),

  create(path) {
    // It will be read as well: who may not do that is not left an empty file.
    // Who may do neither is told of writing, which is what this is for.
    const { state } = Deno.permissions.querySync({ name: "write", path });
    const read = state === "granted";
    const options = { read, write: true, create: true, mode: 0o644 };
    attempt(() => Deno.openSync(path, options)).close();
  },

  realPath: (path) => attempt(() => Deno.realPathSync(path)),
  readLink: (path) => attempt(() => Deno.readLinkSync(path)),
  readText: (path) => attempt(() => Deno.readTextFileSync(path)),
  workingFolder: () => attempt(() => Deno.cwd()),
  whyUnlocked: "that needs Linux and --allow-ffi",
};

function infoOf(info: Deno.FileInfo): FileInfo {
  const { isFile, isDirectory, rdev, blocks } = info;
  return {
    isFile,
    isDirectory,
    isBlockDevice: info.isBlockDevice === true,
    isCharDevice: info.isCharDevice === true,
    isSocket: info.isSocket === true,
    rdev: rdev ?? 0,
    // POSIX counts blocks of 512 bytes, whatever the file system's own are.
    ...(blocks !== null && { actualSize: blocks * 512 }),
  };
}

/** Seeking and moving follow each other synchronously: nobody comes between. */
class DenoFile implements HostFile {
  readonly #file: Deno.FsFile;

  constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  #seek(offset: number, whence: Deno.SeekMode): number {
    return attempt(() => this.#file.seekSync(offset, whence));
  }

  preadv(offset: number, iov: IoVector): void {
    try {
      this.#seek(offset, Deno.SeekMode.Start);
    } catch (error) {
      // So far that the file system could not have a file of that size.
      if (offset < this.size()) throw error;
      for (const part of iov) part.fill(0);
      return;
    }
    for (const part of iov) this.#read(part);
  }

  #read(part: Uint8Array): void {
    for (let done = 0; done < part.length;) {
      const rest = part.subarray(done);
      const count = attempt(() => this.#file.readSync(rest));
      if (count === null || count === 0) {
        part.fill(0, done);
        return;
      }
      done += count;
    }
  }

  pwritev(offset: number, iov: IoVector): void {
    this.#seek(offset, Deno.SeekMode.Start);
    for (const part of iov) this.#write(part);
  }

  #write(part: Uint8Array): void {
    for (let done = 0; done < part.length;) {
      const rest = part.subarray(done);
      const count = attempt(() => this.#file.writeSync(rest));
      if (count === 0) throw new BlockError("ENOSPC");
      done += count;
    }
  }

  size(): number {
    return this.#seek(0, Deno.SeekMode.End);
  }

  truncate(size: number): void {
    attempt(() => this.#file.truncateSync(size));
  }

  sync(): void {
    attempt(() => this.#file.syncDataSync());
  }

  close(): void {
    this.#file.close();
  }
}
