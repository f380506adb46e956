/**
 * The user's handle to the bitmaps of an image.
 *
 * @module
 */
import { cannotWrite, checkNode, checkOptions } from "./checks.ts";
import { BlockError, invalid } from "./errors.ts";
import type {
  BitmapInfo,
  BitmapOperations,
  BitmapOptions,
  BlockNode,
  DirtyExtent,
} from "./node.ts";
import { valueText } from "./values.ts";

/**
 * Bitmaps kept in an image, which record the parts of its disk that are
 * written: those to be copied to bring a backup up to date.
 *
 * Each is known by its name. While it is enabled, it records writes, zeroes and
 * discards in units of its granularity. It is stored when the image is closed.
 * As long as an image is open for writing, its file marks all bitmaps as in
 * use; if the program ends without closing the image, they stay so, and can
 * only be removed.
 *
 * Every method rejects with ENOTSUP if the format keeps no bitmaps. Those that
 * change a bitmap reject with EACCES if the image is read-only; those that name
 * one, with ENOENT if there is none of that name; those that use its bits, with
 * EINVAL if it is in use.
 *
 * @example What was written since a bitmap was made
 * ```ts
 * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 20 });
 * {
 *   await using image = await openImage({ driver: "qcow2", file });
 *   await image.bitmaps.add("since-monday", { granularity: 4096 });
 *   await image.write(10_000, new Uint8Array(1000));
 * }
 * await using image = await openImage({ driver: "qcow2", file });
 * const dirty = await Array.fromAsync(image.bitmaps.dirty("since-monday"));
 * assertEquals(dirty, [{ offset: 8192, length: 4096 }]);
 * ```
 *
 * @category Bitmaps
 */
export class ImageBitmaps {
  readonly #nodeOf: () => BlockNode;
  readonly #run: Runner;

  /**
   * Called by an image.
   *
   * @param nodeOf Gets the node that keeps the bitmaps, which may be replaced.
   */
  constructor(nodeOf: () => BlockNode, run: Runner) {
    this.#nodeOf = nodeOf;
    this.#run = run;
  }

  get #node(): BlockNode {
    return this.#nodeOf();
  }

  /** All bitmaps, oldest first. */
  list(): Promise<BitmapInfo[]> {
    return this.#run(() => operationsOf(this.#node).list());
  }

  /**
   * Add an empty bitmap.
   *
   * @param name 1 to 1023 bytes of UTF-8.
   * @throws {BlockError} EINVAL if the name is taken, or the image cannot keep
   * the bitmap.
   */
  add(name: string, options: BitmapOptions = {}): Promise<void> {
    return this.#change([name], (bitmaps) => {
      checkOptions("add a bitmap", options, {
        granularity: { least: 1 },
        enabled: "boolean",
      });
      return bitmaps.add(name, options);
    });
  }

  /** Remove a bitmap, whatever its state. */
  remove(name: string): Promise<void> {
    return this.#change([name], (bitmaps) => bitmaps.remove(name));
  }

  /** Clear a bitmap. */
  clear(name: string): Promise<void> {
    return this.#change([name], (bitmaps) => bitmaps.clear(name));
  }

  /** Start recording writes in a bitmap. */
  enable(name: string): Promise<void> {
    return this.#change([name], (bitmaps) => bitmaps.enable(name));
  }

  /** Stop recording writes in a bitmap; its bits stay. */
  disable(name: string): Promise<void> {
    return this.#change([name], (bitmaps) => bitmaps.disable(name));
  }

  /**
   * Merge another bitmap into a bitmap.
   *
   * @param from The image that keeps the other bitmap. Default: this one.
   * @throws {BlockError} EINVAL if that image has another size.
   */
  merge(
    name: string,
    other: string,
    from?: { readonly node: BlockNode },
  ): Promise<void> {
    return this.#change([name, other], () => {
      const source = from === undefined ? this.#node : from?.node;
      checkNode("What a bitmap is merged from", source);
      return mergeBitmap(this.#node, name, source, other);
    });
  }

  /**
   * The dirty extents of a range, in order, rounded to the granularity and cut
   * to the range. Writes made meanwhile may be missed.
   *
   * @param offset First byte. Default: 0.
   * @param length Bytes. Default: up to the end.
   */
  async *dirty(
    name: string,
    offset = 0,
    length: number = Math.max(0, this.#node.size - offset),
  ): AsyncIterable<DirtyExtent> {
    const isRange = Number.isSafeInteger(offset) && offset >= 0 &&
      Number.isSafeInteger(length) && length >= 0;
    if (!isRange) {
      throw invalid(
        `Cannot look for ${valueText(length)} bytes at ${valueText(offset)}`,
      );
    }
    checkNames([name]);
    const extents = operationsOf(this.#node)
      .dirty(name, offset, length)[Symbol.asyncIterator]();
    for (;;) {
      const { done, value } = await this.#run(() => extents.next());
      if (done) return;
      yield value;
    }
  }

  #change(
    names: readonly unknown[],
    act: (bitmaps: BitmapOperations) => Promise<void>,
  ): Promise<void> {
    return this.#run(() => {
      checkNames(names);
      const bitmaps = operationsOf(this.#node);
      if (this.#node.readOnly) {
        throw cannotWrite("Cannot change bitmaps", this.#node);
      }
      return act(bitmaps);
    });
  }
}

/** Runs an operation on an open image, and converts its errors. */
type Runner = <T>(act: () => T) => Promise<Awaited<T>>;

function checkNames(names: readonly unknown[]): void {
  for (const name of names) {
    if (typeof name === "string") continue;
    throw invalid(`The name of a bitmap cannot be ${valueText(name)}`);
  }
}

/**
 * The bitmap operations of a node.
 *
 * @throws {BlockError} ENOTSUP if its format keeps none.
 */
export function operationsOf(node: BlockNode): BitmapOperations {
  const bitmaps = node.image?.bitmaps;
  if (bitmaps) return bitmaps;
  throw new BlockError(
    "ENOTSUP",
    `Can't store persistent bitmaps to ${node.filename}: ` +
      "Operation not supported",
  );
}

/**
 * Merge a bitmap of a node, or of another node, into one.
 *
 * @throws {BlockError} ENOENT if one of them does not exist, EINVAL if one is
 * in use, or the disks differ in size.
 */
export async function mergeBitmap(
  target: BlockNode,
  name: string,
  source: BlockNode,
  sourceName: string,
): Promise<void> {
  await findBitmap(target, name);
  await findBitmap(source, sourceName);
  if (target.size !== source.size) {
    throw invalid(
      `Bitmaps are of different sizes (destination size is ${target.size}, ` +
        `source size is ${source.size}) and can't be merged`,
    );
  }
  const dirty = operationsOf(source).dirty(sourceName, 0, source.size);
  await operationsOf(target).merge(name, dirty);
}

/**
 * Find a bitmap.
 *
 * @throws {BlockError} ENOENT if a node has none of that name.
 */
export async function findBitmap(node: BlockNode, name: string): Promise<void> {
  const list = await node.image?.bitmaps?.list() ?? [];
  if (list.some((bitmap) => bitmap.name === name)) return;
  throw new BlockError("ENOENT", `Dirty bitmap '${name}' not found`);
}
