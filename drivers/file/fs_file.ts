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
  try {
    const file = Deno.openSync(path, { read: true, write: !readOnly });
    if (!readOnly) heedSizeLimit();
    return new DenoFile(file);
  } catch (error) {
    throw denoError(error);
  }
}

/** Make a call until no signal interrupts it. The other calls do so by themselves. */
function retry<T>(call: () => T): T {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (!(error instanceof Deno.errors.Interrupted)) throw error;
    }
  }
}

/** Seeking and moving follow each other synchronously: nobody comes between. */
class DenoFile implements HostFile {
  readonly #file: Deno.FsFile;

  constructor(file: Deno.FsFile) {
    this.#file = file;
  }

  preadv(offset: number, iov: IoVector): void {
    try {
      this.#file.seekSync(offset, Deno.SeekMode.Start);
      for (const part of iov) this.#read(part);
    } catch (error) {
      throw denoError(error);
    }
  }

  #read(part: Uint8Array): void {
    for (let done = 0; done < part.length;) {
      const count = retry(() => this.#file.readSync(part.subarray(done)));
      if (count === null || count === 0) {
        part.fill(0, done);
        return;
      }
      done += count;
    }
  }

  pwritev(offset: number, iov: IoVector): void {
    try {
      this.#file.seekSync(offset, Deno.SeekMode.Start);
      for (const part of iov) this.#write(part);
    } catch (error) {
      throw denoError(error);
    }
  }

  #write(part: Uint8Array): void {
    for (let done = 0; done < part.length;) {
      const count = retry(() => this.#file.writeSync(part.subarray(done)));
      if (count === 0) throw new BlockError("ENOSPC");
      done += count;
    }
  }

  size(): number {
    try {
      return this.#file.seekSync(0, Deno.SeekMode.End);
    } catch (error) {
      throw denoError(error);
    }
  }

  truncate(size: number): void {
    try {
      this.#file.truncateSync(size);
    } catch (error) {
      throw denoError(error);
    }
  }

  sync(): void {
    try {
      this.#file.syncDataSync();
    } catch (error) {
      throw denoError(error);
    }
  }

  close(): void {
    this.#file.close();
  }
}
