/**
 * Files by way of `Deno.FsFile`, which works wherever Deno does, without
 * holes: there a file is all data.
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { denoError, type HostFile } from "./host.ts";
import { heedSizeLimit } from "./size_limit.ts";

/** Open an existing file. */
export function openFsFile(path: string, readOnly: boolean): HostFile {
  const file = attempt(() =>
    Deno.openSync(path, { read: true, write: !readOnly })
  );
  if (!readOnly) heedSizeLimit();
  return new DenoFile(file);
}

/** Make a call until no signal interrupts it. */
function attempt<T>(call: () => T): T {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (error instanceof Deno.errors.Interrupted) continue;
      throw denoError(error);
    }
  }
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
