/**
 * Files through `Deno.FsFile`, which works wherever Deno does, but has no
 * holes: a file is all data.
 *
 * @module
 */
import type { IoVector } from "../bytes.ts";
import { BlockError } from "../errors.ts";
import type { FileInfo, Files, HostFile } from "./files.ts";
import { attempt, attemptLater, succeeds } from "./system_calls.ts";

export const files: Files = {
  stat: (path) => infoOf(attempt(() => Deno.statSync(path))),
  open: (path, write) =>
    new DenoFile(attempt(() => Deno.openSync(path, { read: true, write }))),

  create(path) {
    // The file will be read as well: without that permission, do not leave an
    // empty file behind. If both are missing, the error names writing, the
    // purpose of this call.
    const { state } = Deno.permissions.querySync({ name: "write", path });
    const read = state === "granted";
    const options = { read, write: true, create: true, mode: 0o644 };
    attempt(() => Deno.openSync(path, options)).close();
  },

  async adopt(handle) {
    if (!(handle instanceof Deno.FsFile)) {
      const { nodeFiles } = await import("./node_files.ts");
      return await nodeFiles()?.adopt(handle);
    }
    const file: Deno.FsFile = handle;
    const isWritable = succeeds(() => file.writeSync(new Uint8Array(0)));
    return { file: new DenoFile(file), isWritable };
  },

  realPath: (path) => attempt(() => Deno.realPathSync(path)),
  readLink: (path) => attempt(() => Deno.readLinkSync(path)),
  readText: (path) => attempt(() => Deno.readTextFileSync(path)),
  workingFolder: () => attempt(() => Deno.cwd()),
  whyNoLibc: "that needs Linux and --allow-ffi",
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
    // POSIX counts blocks of 512 bytes, whatever the file system's block size.
    ...(blocks !== null && { actualSize: blocks * 512 }),
  };
}

/**
 * Each seek and its transfer run synchronously, so nothing can come in between.
 */
class DenoFile implements HostFile {
  readonly #file: Deno.FsFile;
  /** The fixed size of anything but a plain file. */
  readonly #fixedSize: number | undefined;
  /** Fulfilled when other threads have finished all transfers. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(file: Deno.FsFile) {
    this.#file = file;
    const { isFile } = attempt(() => file.statSync());
    if (!isFile) this.#fixedSize = this.#seek(0, Deno.SeekMode.End);
  }

  #seek(offset: number, whence: Deno.SeekMode): number {
    return attempt(() => this.#file.seekSync(offset, whence));
  }

  preadv(offset: number, iov: IoVector): void {
    try {
      this.#seek(offset, Deno.SeekMode.Start);
    } catch (error) {
      // Beyond the largest offset of the file system: there is no data.
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

  preadvLater(offset: number, iov: IoVector): Promise<void> {
    return this.#later(async () => {
      for (const part of iov) {
        let done = 0;
        while (done < part.length && offset + done < this.size()) {
          this.#seek(offset + done, Deno.SeekMode.Start);
          const rest = part.subarray(done);
          const count = await attemptLater<number | null>(() =>
            this.#file.read(rest)
          );
          if (!count) break;
          done += count;
        }
        part.fill(0, done);
        offset += part.length;
      }
    });
  }

  pwritevLater(offset: number, iov: IoVector): Promise<void> {
    return this.#later(async () => {
      for (const part of iov) {
        for (let done = 0; done < part.length;) {
          this.#seek(offset + done, Deno.SeekMode.Start);
          const rest = part.subarray(done);
          const count = await attemptLater<number>(() =>
            this.#file.write(rest)
          );
          if (count === 0) throw new BlockError("ENOSPC");
          done += count;
        }
        offset += part.length;
      }
    });
  }

  syncLater(): Promise<void> {
    return attemptLater(() => this.#file.syncData());
  }

  /** Run transfers one after the other, since they share the file position. */
  #later(transfer: () => Promise<void>): Promise<void> {
    const done = this.#last.then(transfer);
    this.#last = done.catch(() => {});
    return done;
  }

  size(): number {
    return this.#fixedSize ?? attempt(() => this.#file.statSync().size);
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
