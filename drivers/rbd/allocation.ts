/**
 * Which parts of an image hold data, according to Ceph's object map.
 *
 * @module
 */
import { roundDown } from "../../core/bytes.ts";
import { platform } from "../../core/platform/mod.ts";
import { type Handle, type Librbd, Result } from "./librbd.ts";

const FEATURE = { STRIPING: 1n << 1n, FAST_DIFF: 1n << 4n };
/** The object map is being rebuilt, or must be. */
const FAST_DIFF_INVALID = 1n << 1n;
/** Returned by the callback, and then by the call, to end the iteration. */
const ENOUGH = -9000;

/** A run from the requested offset on. */
export interface Run {
  readonly length: number;
  readonly hasData: boolean;
}

/** Determines which parts of an image hold data. */
export class Allocation {
  readonly #library: Librbd;
  readonly #image: Handle;
  readonly #objectSize: number;
  #isExact?: boolean;

  /** For an open image with objects of this many bytes. */
  constructor(library: Librbd, image: Handle, objectSize: number) {
    this.#library = library;
    this.#image = image;
    this.#objectSize = objectSize;
  }

  /**
   * The first run of a range within the image; `undefined` if nothing is known.
   * A clone includes its parent's data.
   */
  async find(offset: number, length: number): Promise<Run | undefined> {
    if (!await this.#isMapped()) return undefined;
    let start = offset;
    if (!this.#knowsOffsets()) {
      if (await this.#cannotRound()) return undefined;
      start = roundDown(offset, this.#objectSize);
    }
    const run = await this.#first(start, offset + length - start);
    if (!run) return undefined;
    const { hasData } = run;
    return { length: run.length - (offset - start), hasData };
  }

  /** Whether there is a valid object map. */
  async #isMapped(): Promise<boolean> {
    const features = await this.#features();
    if ((features & FEATURE.FAST_DIFF) === 0n) return false;
    const flags = new Result();
    const result = await this.#library.rbd_get_flags(this.#image, flags.bytes);
    return result >= 0 && (flags.value & FAST_DIFF_INVALID) === 0n;
  }

  async #features(): Promise<bigint> {
    const features = new Result();
    const result = await this.#library.rbd_get_features(
      this.#image,
      features.bytes,
    );
    return result < 0 ? 0n : features.value;
  }

  /**
   * Whether a range may begin anywhere. Before version 1.17, the library
   * reported wrong offsets unless it began at the start of an object
   * (https://tracker.ceph.com/issues/53784).
   */
  #knowsOffsets(): boolean {
    if (this.#isExact !== undefined) return this.#isExact;
    const [major, minor, extra] = [new Result(), new Result(), new Result()];
    this.#library.rbd_version(major.bytes, minor.bytes, extra.bytes);
    return this.#isExact = major.int > 1 ||
      (major.int === 1 && minor.int >= 17);
  }

  /**
   * Rounding is not enough for clones, whose parents may have larger objects,
   * nor for striped objects.
   */
  async #cannotRound(): Promise<boolean> {
    if ((await this.#features() & FEATURE.STRIPING) !== 0n) return true;
    const overlap = new Result();
    const result = await this.#library.rbd_get_overlap(
      this.#image,
      overlap.bytes,
    );
    return result < 0 || overlap.value > 0n;
  }

  async #first(start: number, length: number): Promise<Run | undefined> {
    let data = 0;
    let hole = 0;
    const callback = platform().libraries!.callback(
      ["u64", "usize", "i32", "usize"],
      (offset, size, exists) => {
        if (!exists) return 0;
        const at = Number(offset) - start;
        if (data === 0 && at > 0) {
          hole = at;
          return ENOUGH;
        }
        if (at > data) return ENOUGH;
        data = at + Number(size);
        return 0;
      },
    );
    if (!callback) return undefined;
    try {
      const result = await this.#library.rbd_diff_iterate2(
        this.#image,
        null,
        start,
        length,
        1,
        1,
        callback.pointer,
        0n,
      );
      if (result < 0 && result !== ENOUGH) return undefined;
    } finally {
      callback.close();
    }
    // The library does not report what follows the last data.
    return data > 0
      ? { length: Math.min(data, length), hasData: true }
      : { length: hole > 0 ? hole : length, hasData: false };
  }
}
