/**
 * Downloading complete objects from servers without range support.
 *
 * @module
 */
import { unlessAborted } from "../../core/abort.ts";
import { type IoVector, sliceVector, vectorLength } from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { HostFile } from "../../core/platform/files.ts";
import { localFiles } from "../../core/platform/mod.ts";
import type { Opened } from "../../core/remote/ranged_object.ts";
import {
  type Patience,
  retrying,
  TransientError,
} from "../../core/remote/retry.ts";

/** A downloaded object. */
export interface Downloaded {
  /** Bytes. */
  readonly size: number;
  /** Fill `iov` from `offset` on, within the object. */
  readv(offset: number, iov: IoVector): void;
  /** Release it; a file is kept. */
  close(): void;
}

/** Where an object is downloaded to. */
interface Store extends Downloaded {
  append(bytes: Uint8Array): void;
  /** Discard everything, to start over. */
  empty(): void;
}

type Whole = Extract<Opened, { whole: unknown }>;

/**
 * Download an object.
 *
 * @param first The response being received.
 * @param again Requests it again from the beginning.
 * @param target `memory`, or the path of a new file.
 * @param limit Most bytes.
 * @throws {BlockError} EFBIG if it is larger than `limit`, EEXIST if the file
 * is not empty.
 */
export async function download(
  first: Whole,
  again: (signal: AbortSignal) => Promise<Opened>,
  target: string,
  limit: number,
  patience: Patience,
  signal?: AbortSignal,
): Promise<Downloaded> {
  let store: Store | undefined;
  try {
    store = target === "memory" ? new MemoryStore() : new FileStore(target);
    let current: Whole | undefined = first;
    await retrying(patience, signal, async (signal, progress) => {
      store!.empty();
      const opened = current ?? await again(signal);
      current = undefined;
      if (!("whole" in opened)) {
        throw new BlockError("EIO", "The server now responds differently");
      }
      // Each attempt starts over: received bytes are no progress.
      await fill(store!, opened, limit, signal, () => progress(0));
    });
    return store;
  } catch (error) {
    if (!first.whole.locked) first.whole.cancel().catch(() => {});
    // An incomplete file must not be mistaken for the object.
    store?.empty();
    store?.close();
    throw error;
  }
}

async function fill(
  store: Store,
  { whole, version: { size }, hasEnd }: Whole,
  limit: number,
  signal: AbortSignal,
  alive: () => void,
): Promise<void> {
  const reader = whole.getReader();
  try {
    const tooLarge = () =>
      new BlockError(
        "EFBIG",
        `It is larger than the ${limit} bytes that download-limit permits`,
      );
    if (!hasEnd) {
      throw new BlockError(
        "EIO",
        "The server announces neither the size of the object nor its end",
      );
    }
    if (size !== undefined && size > limit) throw tooLarge();
    for (;;) {
      const next = unlessAborted(reader.read(), signal);
      const { value, done } = await next.catch(() => {
        throw new TransientError("ECONNRESET", "The connection broke");
      });
      if (done) break;
      if (store.size + value.length > limit) throw tooLarge();
      store.append(value);
      alive();
    }
    if (size !== undefined && store.size !== size) {
      throw new TransientError(
        "EIO",
        "The server has sent less than it announced",
      );
    }
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error;
  }
}

/** Bytes of a chunk of memory. */
const PIECE = 1024 * 1024;

class MemoryStore implements Store {
  size = 0;
  #pieces: Uint8Array[] = [];

  append(bytes: Uint8Array): void {
    for (let taken = 0; taken < bytes.length;) {
      const at = this.size % PIECE;
      if (at === 0) this.#pieces.push(new Uint8Array(PIECE));
      const take = Math.min(PIECE - at, bytes.length - taken);
      this.#pieces.at(-1)!.set(bytes.subarray(taken, taken + take), at);
      taken += take;
      this.size += take;
    }
  }

  readv(offset: number, iov: IoVector): void {
    for (const part of iov) {
      for (let done = 0; done < part.length;) {
        const at = offset % PIECE;
        const piece = this.#pieces[Math.floor(offset / PIECE)];
        const bytes = piece.subarray(at, at + part.length - done);
        part.set(bytes, done);
        done += bytes.length;
        offset += bytes.length;
      }
    }
  }

  empty(): void {
    this.size = 0;
    this.#pieces = [];
  }

  close(): void {
    this.empty();
  }
}

class FileStore implements Store {
  size = 0;
  readonly #file: HostFile;

  /** The file must not exist, or be empty. */
  constructor(path: string) {
    const files = localFiles();
    files.create(path);
    if (!files.stat(path).isFile) {
      throw invalid(`download: '${path}' is not a file`);
    }
    this.#file = files.open(path, true);
    if (this.#file.size() === 0) return;
    this.#file.close();
    throw new BlockError(
      "EEXIST",
      `download: '${path}' is not empty; it would be overwritten`,
    );
  }

  append(bytes: Uint8Array): void {
    this.#file.pwritev(this.size, [bytes]);
    this.size += bytes.length;
  }

  readv(offset: number, iov: IoVector): void {
    const inside = Math.min(vectorLength(iov), this.size - offset);
    this.#file.preadv(offset, sliceVector(iov, 0, inside));
  }

  empty(): void {
    this.#file.truncate(0);
    this.size = 0;
  }

  close(): void {
    this.#file.close();
  }
}
