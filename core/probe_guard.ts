/**
 * Keeping a disk that was probed as raw from looking like any other format.
 *
 * Otherwise its guest could write an image header that names any file of the
 * host as backing file, and read that file the next time.
 *
 * @module
 */
import { allocate, type IoVector, sliceVector, vectorLength } from "./bytes.ts";
import { BlockError } from "./errors.ts";
import { HEAD_LENGTH, TAIL_LENGTH } from "./formats.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode, WriteFlags } from "./node.ts";
import { guessFormat, type Sample, takeSample } from "./probe.ts";

/** Bytes about to be written, and their offset in the file. */
type Patch = readonly [offset: number, bytes: Uint8Array];

/**
 * Passes on changes to a file, unless they would change the result of probing.
 * Changes to bytes that probing does not look at are not delayed.
 *
 * QEMU checks only the first sector. Our probing looks at more, so more is
 * refused: footers, and headers that QEMU takes for raw. Archives, which are
 * raw with a warning, may be written.
 */
export class ProbeGuard {
  #file: BlockNode;
  /** Held from the check until the file has been changed. */
  readonly #lock = new Mutex();
  /** Number of unwatched changes under way. */
  #others = 0;
  /** Called when the last of them ends. */
  #whenAlone?: () => void;
  /** Whether the file, and with it the place of a footer, is being resized. */
  #isResizing = false;

  /** Guard a file. */
  constructor(file: BlockNode) {
    this.#file = file;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /**
   * Whether probing looks at any part of a range, before or after the write.
   */
  watches(offset: number, length: number): boolean {
    return length > 0 &&
      (this.#isResizing || offset < HEAD_LENGTH ||
        offset + length > this.#file.size - TAIL_LENGTH);
  }

  /**
   * Begin a change of a range that was just found not to be watched; end it
   * with {@linkcode ProbeGuard.leave}.
   */
  enter(): void {
    this.#others++;
  }

  /** End an unwatched change. */
  leave(): void {
    if (--this.#others === 0) this.#whenAlone?.();
  }

  /** Write to a watched range. */
  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    const file = this.#file;
    using _held = await this.#lock.lock();
    const size = Math.max(file.size, offset + length);
    const head = clamp(HEAD_LENGTH - offset, 0, length);
    const tail = clamp(size - TAIL_LENGTH - offset, head, length);
    // Check and write a copy: the owner of the buffers, perhaps the guest,
    // could change them in between.
    const first = copyOf(sliceVector(iov, 0, head));
    const last = copyOf(sliceVector(iov, tail, length - tail));
    await this.#check(size, [[offset, first], [offset + tail, last]]);
    const middle = sliceVector(iov, head, tail - head);
    const parts = [first, ...middle, last].filter((part) => part.length > 0);
    await file.writev!(offset, parts, flags);
  }

  /**
   * Run `change`, which makes a watched range read as zeroes.
   *
   * @param grows Whether the file grows to the end of the range.
   */
  async zero(
    offset: number,
    length: number,
    grows: boolean,
    change: () => Promise<void>,
  ): Promise<void> {
    using _held = await this.#lock.lock();
    const size = Math.max(this.#file.size, grows ? offset + length : 0);
    const head = clamp(HEAD_LENGTH - offset, 0, length);
    const tail = clamp(size - TAIL_LENGTH - offset, 0, length);
    await this.#check(size, [
      [offset, allocate(head)],
      [offset + tail, allocate(Math.min(TAIL_LENGTH, length - tail))],
    ]);
    await change();
  }

  /** Run `change`, which resizes the file to `size` bytes. */
  async resize(size: number, change: () => Promise<void>): Promise<void> {
    using _held = await this.#lock.lock();
    this.#isResizing = true;
    try {
      // Unwatched writes may be under way where the new end will be.
      if (this.#others > 0) {
        await new Promise<void>((alone) => this.#whenAlone = alone);
      }
      await this.#check(size, []);
      await change();
    } finally {
      this.#whenAlone = undefined;
      this.#isResizing = false;
    }
  }

  /** The result of probing a sample, as text to be compared. */
  #verdict(sample: Sample): string {
    const { filename } = this.#file;
    const { formats, hasVhdFooter } = guessFormat(sample, filename);
    const names = formats.map(({ name }) => name).join(" ");
    return hasVhdFooter ? `${names} with a footer` : names;
  }

  async #check(size: number, patches: readonly Patch[]): Promise<void> {
    const sample = await takeSample(this.#file, size);
    for (const patch of patches) apply(sample, patch);
    const after = this.#verdict(sample);
    if (after === "raw") return;
    if (after === this.#verdict(await takeSample(this.#file))) return;
    throw new BlockError(
      "EPERM",
      "The format was not given but guessed to be raw, and this write " +
        "would make it look like another",
      { hint: "Open the image with the format 'raw' to permit it." },
    );
  }
}

/** Apply a write to a sample. */
function apply({ head, tail, size }: Sample, patch: Patch): void {
  overlay(head, 0, patch);
  overlay(tail, size - tail.length, patch);
}

/** Copy the part of a patch that lies in `target`, which begins at `start`. */
function overlay(target: Uint8Array, start: number, patch: Patch): void {
  const [offset, bytes] = patch;
  const from = Math.max(offset, start);
  const to = Math.min(offset + bytes.length, start + target.length);
  if (from >= to) return;
  target.set(bytes.subarray(from - offset, to - offset), from - start);
}

function clamp(value: number, least: number, most: number): number {
  return Math.min(Math.max(value, least), most);
}

function copyOf(iov: IoVector): Uint8Array {
  const copy = allocate(vectorLength(iov));
  let at = 0;
  for (const part of iov) {
    copy.set(part, at);
    at += part.length;
  }
  return copy;
}
