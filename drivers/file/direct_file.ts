/**
 * Files that bypass the page cache (`O_DIRECT`): offsets, lengths and memory
 * addresses must be multiples of a unit.
 *
 * @module
 */
import {
  copyIntoVector,
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import type { Libc } from "../../core/platform/libc.ts";
import {
  EINTR,
  throwUnlessInterrupted,
} from "../../core/platform/system_calls.ts";
import { localFiles, platform } from "../../core/platform/mod.ts";
import { LibcFile, openLibcDescriptor } from "./libc_file.ts";

/** The alignment of all addresses, and the unit assumed if it is unknown. */
const PAGE = 4096;
/**
 * Possible units, the smallest first; success with 1 means that it is unknown.
 */
const UNITS = [1, 512, 1024, 2048, PAGE];
/** Most bytes transferred at once. */
const MOST = 1024 * 1024;

const EINVAL = 22;

/**
 * Open an existing file, bypassing the page cache.
 *
 * @throws {BlockError} EINVAL if the file system does not support that, or
 * there is no C library.
 */
export function openDirectFile(path: string, readOnly: boolean): DirectFile {
  const library = platform().libc();
  if (!library) throw notDirect(localFiles().whyNoLibc);
  let descriptor: number;
  try {
    descriptor = openLibcDescriptor(library, path, readOnly, library.O_DIRECT);
  } catch (error) {
    throw asBlockError(error).code === "EINVAL" ? notDirect() : error;
  }
  return new DirectFile(library, descriptor);
}

/** The error for a file that cannot bypass the page cache. */
export function notDirect(why?: string): BlockError {
  return new BlockError("EINVAL", "filesystem does not support O_DIRECT", {
    hint: why && `To bypass the page cache: ${why}.`,
  });
}

/**
 * A file opened with `O_DIRECT`. Only its asynchronous requests take any
 * offset.
 */
export class DirectFile extends LibcFile {
  readonly #libc: Libc;
  readonly alignment: number;

  constructor(library: Libc, descriptor: number) {
    super(library, descriptor);
    this.#libc = library;
    this.alignment = this.#findAlignment();
  }

  /** Only trying finds the unit on every file system. */
  #findAlignment(): number {
    const buffer = this.#takeBuffer();
    try {
      for (const unit of UNITS) {
        const part = buffer.subarray(0, unit);
        let result: number;
        do result = this.#libc.pread(
          this.descriptor,
          part,
          BigInt(unit),
          0n,
        ); while (result === -EINTR);
        // In memory, or at the end of a file, any unit may succeed.
        if (result !== -EINVAL) return unit === 1 ? PAGE : unit;
      }
    } finally {
      spare.push(buffer);
    }
    super.close();
    throw new BlockError(
      "EINVAL",
      "Could not find working O_DIRECT alignment",
      { hint: "Try cache.direct=off" },
    );
  }

  override async preadvLater(offset: number, iov: IoVector): Promise<void> {
    const length = vectorLength(iov);
    const buffer = this.#takeBuffer();
    try {
      for (let done = 0; done < length;) {
        const part = buffer.subarray(0, Math.min(MOST, length - done));
        const count = await this.#move("pread", offset + done, part);
        copyIntoVector(iov, done, part.subarray(0, count));
        done += count;
        // Otherwise the file ends here.
        if (count > 0 && count % this.alignment === 0) continue;
        fillVector(iov, done, length - done);
        return;
      }
    } finally {
      spare.push(buffer);
    }
  }

  override async pwritevLater(offset: number, iov: IoVector): Promise<void> {
    const length = vectorLength(iov);
    const buffer = this.#takeBuffer();
    try {
      for (let done = 0; done < length;) {
        const part = buffer.subarray(0, Math.min(MOST, length - done));
        let filled = 0;
        for (const from of sliceVector(iov, done, part.length)) {
          part.set(from, filled);
          filled += from.length;
        }
        const count = await this.#move("pwrite", offset + done, part);
        if (count === 0) throw new BlockError("ENOSPC");
        done += count;
      }
    } finally {
      spare.push(buffer);
    }
  }

  /**
   * Read or write once; if that fails in the other thread, repeat it here to
   * get the reason.
   */
  async #move(
    call: "pread" | "pwrite",
    offset: number,
    part: Uint8Array,
  ): Promise<number> {
    const [length, at] = [BigInt(part.length), BigInt(offset)];
    let count = await this.#libc[`${call}Later`](
      this.descriptor,
      part,
      length,
      at,
    );
    while (count < 0) {
      count = this.#libc[call](this.descriptor, part, length, at);
      if (count < 0) throwUnlessInterrupted(count);
    }
    return count;
  }

  /** A page-aligned buffer, to be returned to `spare`. */
  #takeBuffer(): Uint8Array {
    const known = spare.pop();
    if (known) return known;
    const room = new Uint8Array(MOST + PAGE);
    const rest = Number(this.#libc.addressOf(room) % BigInt(PAGE));
    return room.subarray(PAGE - rest, PAGE - rest + MOST);
  }
}

/** Unused buffers, for reuse. */
const spare: Uint8Array[] = [];
