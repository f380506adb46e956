/**
 * Keeping a disk that was probed to be raw from looking like anything else.
 *
 * Its guest could otherwise write the header of an image that names any file
 * of the host as its backing file, and read that the next time.
 *
 * @module
 */
import { allocate, type IoVector, sliceVector, vectorLength } from "./bytes.ts";
import { BlockError } from "./errors.ts";
import { HEAD_LENGTH, TAIL_LENGTH } from "./formats.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode, WriteFlags } from "./node.ts";
import { guessFormat, type Sample, takeSample } from "./probe.ts";

/** Bytes that are about to be written, and where in the file. */
type Patch = readonly [offset: number, bytes: Uint8Array];

/**
 * Passes changes of a file on, unless probing would take it for something that
 * it does not take it for now. What probing does not look at is not held up.
 *
 * QEMU looks at the first sector alone. Here every byte counts that our probing
 * looks at, so more is refused: footers, and headers that QEMU takes for raw.
 * Archives, which are raw with a warning, may be written as anywhere.
 */
export class ProbeGuard {
  #file: BlockNode;
  /** Held from looking at the file until it has been changed. */
  readonly #lock = new Mutex();
  /** How many changes are under way of what probing does not look at. */
  #others = 0;
  /** Called when the last of them has ended. */
  #whenAlone?: () => void;
  /** Whether the end of the file, where footers are, is about to move. */
  #isResizing = false;

  /** Guard a file. */
  constructor(file: BlockNode) {
    this.#file = file;
  }

  /** Go on with a file that holds the same as the one before. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** Whether probing looks at any of a range, now or once it is written. */
  watches(offset: number, length: number): boolean {
    return length > 0 &&
      (this.#isResizing || offset < HEAD_LENGTH ||
        offset + length > this.#file.size - TAIL_LENGTH);
  }

  /**
   * A change of a range that is not watched begins, as was just found out. To
   * be followed by {@linkcode ProbeGuard.leave}.
   */
  enter(): void {
    this.#others++;
  }

  /** It has ended. */
  leave(): void {
    if (--this.#others === 0) this.#whenAlone?.();
  }

  /** Write to a range that is watched. */
  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    const file = this.#file;
    using _held = await this.#lock.lock();
    const size = Math.max(file.size, offset + length);
    const head = within(HEAD_LENGTH - offset, 0, length);
    const tail = within(size - TAIL_LENGTH - offset, head, length);
    // Copies are checked and written: the owner of the buffers, the guest
    // perhaps, may change them in between.
    const first = copyOf(sliceVector(iov, 0, head));
    const last = copyOf(sliceVector(iov, tail, length - tail));
    await this.#check(size, [[offset, first], [offset + tail, last]]);
    const middle = sliceVector(iov, head, tail - head);
    const parts = [first, ...middle, last].filter((part) => part.length > 0);
    await file.writev!(offset, parts, flags);
  }

  /**
   * Do what makes a range that is watched read as zeroes.
   *
   * @param grows Whether the file goes on to the end of the range then.
   */
  async zero(
    offset: number,
    length: number,
    grows: boolean,
    change: () => Promise<void>,
  ): Promise<void> {
    using _held = await this.#lock.lock();
    const size = Math.max(this.#file.size, grows ? offset + length : 0);
    const head = within(HEAD_LENGTH - offset, 0, length);
    const tail = within(size - TAIL_LENGTH - offset, 0, length);
    await this.#check(size, [
      [offset, allocate(head)],
      [offset + tail, allocate(Math.min(TAIL_LENGTH, length - tail))],
    ]);
    await change();
  }

  /** Do what gives the file another size, in bytes. */
  async resize(size: number, change: () => Promise<void>): Promise<void> {
    using _held = await this.#lock.lock();
    this.#isResizing = true;
    try {
      // They may write to what is going to be the end.
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

  /** What probing makes of a sample, in words to be compared. */
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

/** Let a sample be what it is after a write. */
function apply({ head, tail, size }: Sample, patch: Patch): void {
  overlay(head, 0, patch);
  overlay(tail, size - tail.length, patch);
}

/** Copy what of a patch lies in `target`, which is at `start` of the file. */
function overlay(target: Uint8Array, start: number, patch: Patch): void {
  const [offset, bytes] = patch;
  const from = Math.max(offset, start);
  const to = Math.min(offset + bytes.length, start + target.length);
  if (from >= to) return;
  target.set(bytes.subarray(from - offset, to - offset), from - start);
}

function within(value: number, least: number, most: number): number {
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
