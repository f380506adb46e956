/**
 * What a persistent bitmap should have recorded.
 *
 * @module
 */
import type { Image } from "../core/image.ts";
import type { DirtyExtent } from "../core/node.ts";

/** A bitmap as one byte for each of its bits. */
export class BitmapModel {
  readonly name: string;
  readonly granularity: number;
  isEnabled = true;
  #bits: Uint8Array<ArrayBuffer>;
  #size: number;

  constructor(name: string, granularity: number, size: number) {
    this.name = name;
    this.granularity = granularity;
    this.#size = size;
    this.#bits = new Uint8Array(Math.ceil(size / granularity));
  }

  /** A range has been written to. */
  write(offset: number, length: number): void {
    if (this.isEnabled) this.mark(offset, length);
  }

  /** Record a range unconditionally. */
  mark(offset: number, length: number): void {
    if (length === 0) return;
    const first = Math.floor(offset / this.granularity);
    this.#bits.fill(1, first, Math.ceil((offset + length) / this.granularity));
  }

  clear(): void {
    this.#bits.fill(0);
  }

  /** The disk has been resized. */
  resize(size: number): void {
    const old = this.#bits;
    this.#size = size;
    this.#bits = new Uint8Array(Math.ceil(size / this.granularity));
    this.#bits.set(old.subarray(0, this.#bits.length));
  }

  /** What should be recorded. */
  extents(): DirtyExtent[] {
    const extents: DirtyExtent[] = [];
    const { granularity } = this;
    for (let at = 0; at < this.#bits.length;) {
      const start = this.#bits.indexOf(1, at);
      if (start < 0) break;
      const next = this.#bits.indexOf(0, start);
      at = next < 0 ? this.#bits.length : next;
      const offset = start * granularity;
      const end = Math.min(at * granularity, this.#size);
      extents.push({ offset, length: end - offset });
    }
    return extents;
  }

  /**
   * Compare with the bitmap of an image.
   *
   * @throws if it has recorded anything else.
   */
  async check({ bitmaps }: Image): Promise<void> {
    const found = await Array.fromAsync(bitmaps.dirty(this.name));
    const [are, should] = [found, this.extents()].map((extents) =>
      JSON.stringify(extents)
    );
    if (are === should) return;
    throw new Error(`bitmap '${this.name}' has ${are}, but should ${should}`);
  }
}
