/**
 * Allocating space at the end of a file.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode } from "./node.ts";

/** Most bytes by which a file grows ahead of its use. */
const MAX_AHEAD = 64 * 1024 * 1024;

/**
 * Space at the end of a file. The file is extended before anything is written
 * there: doing it later could cut off what others have written beyond.
 *
 * Each change of its size waits for all writes under way, so the file grows
 * ahead of its use in ever larger steps, and is trimmed afterwards.
 */
export class FileEnd {
  #file: BlockNode;
  #next: number;
  readonly #limit: number;
  /** By how much the file grows ahead next time. */
  #ahead = 0;
  /** Whether it extends past the space in use. */
  #isLong = false;
  /**
   * From here on, the file holds only what was written through this object, and
   * zeroes elsewhere. (A device does not end, and may hold anything.)
   */
  #end: number;
  /** Whether space has been allocated since the file was trimmed. */
  #hasTaken = false;
  /** Held while the file changes its size. */
  readonly #changing = new Mutex();

  /**
   * @param next Where the first space begins.
   * @param limit End of the range that the format can address.
   */
  constructor(file: BlockNode, next: number, limit = Infinity) {
    this.#file = file;
    this.#next = next;
    this.#limit = limit;
    this.#end = file.size;
  }

  /** Where the next space begins. */
  get next(): number {
    return this.#next;
  }

  /** Move it; no allocation may be under way. */
  set next(next: number) {
    this.#next = next;
  }

  /** Whether space from `offset` on reads as zeroes when it is allocated. */
  isZeroFrom(offset: number): boolean {
    return offset >= this.#end;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
    // It may be longer, and need not be zero past the content.
    this.#end = file.size;
  }

  /**
   * Allocate space.
   *
   * @throws {BlockError} EFBIG past the limit; or an error of the file.
   */
  async take(length: number): Promise<number> {
    using _ = await this.#changing.lock();
    const place = this.#next;
    const end = place + length;
    if (end > this.#limit) throw new BlockError("EFBIG");
    if (this.#file.size < end) await this.#grow(end, length);
    this.#hasTaken = true;
    this.#next = end;
    return place;
  }

  async #grow(end: number, length: number): Promise<void> {
    const ahead = this.#ahead;
    this.#ahead = Math.min(MAX_AHEAD, 2 * (ahead + length));
    if (ahead > 0) {
      try {
        await this.#file.truncate!(end + ahead);
        this.#isLong = true;
        return;
      } catch {
        // The space may suffice without growing ahead.
      }
    }
    await this.#file.truncate!(end);
  }

  /**
   * Cut off unused space; `tail` then ends the file without being allocated.
   */
  async trim(tail?: Uint8Array): Promise<void> {
    if (!this.#hasTaken) return;
    using _ = await this.#changing.lock();
    const end = this.#next + (tail?.length ?? 0);
    if ((this.#isLong || tail) && this.#file.size > end) {
      try {
        await this.#file.truncate!(end);
      } catch {
        // Some files cannot shrink. The excess does no harm.
      }
    }
    const emptyFrom = Math.min(this.#end, Math.max(end, this.#file.size));
    this.#end = tail ? Math.max(emptyFrom, end) : emptyFrom;
    if (tail) await this.#file.writev!(this.#next, [tail]);
    this.#isLong = this.#hasTaken = false;
    this.#ahead = 0;
  }

  /** Run a task while no space is allocated. */
  async exclusively(task: () => Promise<void>): Promise<void> {
    using _ = await this.#changing.lock();
    await task();
  }
}
