/**
 * The end of a file, where a format puts what is new.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode } from "./node.ts";

/** Most bytes by which a file is made longer than it has to be. */
const MAX_AHEAD = 64 * 1024 * 1024;

/**
 * Space at the end of a file. The file is made longer before anything is written
 * there: doing so later might cut off what others have written meanwhile.
 *
 * Each change of its size waits for all writes under way, so that the file grows
 * ahead, in larger and larger steps, until it is trimmed.
 */
export class FileEnd {
  #file: BlockNode;
  #next: number;
  readonly #limit: number;
  /** By how much the file grows ahead the next time. */
  #ahead = 0;
  /** Whether it is longer than it has to be. */
  #isLong = false;
  /**
   * Where the file ended: from here on, it holds only what was written to space
   * taken here. A device goes on, and may hold anything.
   */
  #end: number;
  /** Whether space has been taken since the file was trimmed. */
  #hasTaken = false;
  /** Held while the file changes its size. */
  readonly #changing = new Mutex();

  /**
   * @param next Where the first space begins.
   * @param limit The end of what the format can address.
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

  /** Begin somewhere else; nothing is being taken. */
  set next(next: number) {
    this.#next = next;
  }

  /** Whether space at `offset`, and behind, reads as zeroes when it is taken. */
  isZeroFrom(offset: number): boolean {
    return offset >= this.#end;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
    // It may be longer, and need not read as zeroes behind the content.
    this.#end = file.size;
  }

  /**
   * Take so many bytes.
   *
   * @throws {BlockError} EFBIG past the limit; or the file's own.
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
        // There may still be room for what is needed.
      }
    }
    await this.#file.truncate!(end);
  }

  /**
   * Cut off the space that nobody has taken. Then the file ends with `tail`, in
   * whose place the next space may begin.
   */
  async trim(tail?: Uint8Array): Promise<void> {
    if (!this.#hasTaken) return;
    using _ = await this.#changing.lock();
    const end = this.#next + (tail?.length ?? 0);
    if ((this.#isLong || tail) && this.#file.size > end) {
      try {
        await this.#file.truncate!(end);
      } catch {
        // Some files cannot become shorter; what stays does no harm.
      }
    }
    const emptyFrom = Math.min(this.#end, Math.max(end, this.#file.size));
    this.#end = tail ? Math.max(emptyFrom, end) : emptyFrom;
    if (tail) await this.#file.writev!(this.#next, [tail]);
    this.#isLong = this.#hasTaken = false;
    this.#ahead = 0;
  }

  /** Do something while nobody takes space. */
  async alone(task: () => Promise<void>): Promise<void> {
    using _ = await this.#changing.lock();
    await task();
  }
}
