/**
 * The filter `preallocate`: a file grows in large steps, and is truncated to
 * the end of its data when closed.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE, vectorLength } from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { asBlockError, BlockError } from "../core/errors.ts";
import { childSlot, filterNode } from "../core/filter.ts";
import type { BlockNode, TruncateOptions } from "../core/node.ts";
import { type OptionTable, parseOptions } from "../core/options.ts";
import { ACCESS } from "../core/permissions.ts";

const MIB = 1024 * 1024;

const OPEN_OPTIONS: OptionTable = {
  "prealloc-align": {
    type: "size",
    default: MIB,
    help: "On preallocation, align the file's length to this number",
  },
  "prealloc-size": {
    type: "size",
    default: 128 * MIB,
    help: "How much to preallocate",
  },
};

/** A filter between a format and the protocol `file`, its child. */
export const preallocateDriver: BlockDriver = {
  name: "preallocate",
  role: "filter",
  openOptions: OPEN_OPTIONS,

  /** Only this filter knows where the data ends. */
  childPermissions(_name, { needs, shares }) {
    const growing = ACCESS.WRITE | ACCESS.RESIZE;
    const grows = (needs & growing) === growing;
    return { needs, shares: grows ? shares & ~growing : shares };
  },

  async open(options, context) {
    const parsed = parseOptions(OPEN_OPTIONS, options, ["file"]);
    const file = childSlot(await context.openChild("file"));
    const align = parsed["prealloc-align"] as number | undefined ?? MIB;
    const size = parsed["prealloc-size"] as number | undefined ?? 128 * MIB;
    const refuse = (what: string) =>
      new BlockError(
        "EINVAL",
        `prealloc-align parameter of preallocate filter is not aligned to ${what}`,
      );
    if (align % SECTOR_SIZE !== 0) throw refuse(`${SECTOR_SIZE}`);
    const { requestAlignment = 1 } = file.limits ?? {};
    if (align % requestAlignment !== 0) {
      throw refuse(`underlying node request alignment (${requestAlignment})`);
    }
    if (context.readOnly) return filterNode(preallocateDriver, file, {});
    return growingNode(new Growth(file, align, size));
  },
};

function growingNode(growth: Growth): BlockNode {
  const { file } = growth;
  return filterNode(preallocateDriver, file, {
    get size() {
      return growth.dataEnd;
    },
    async writev(offset, iov, flags) {
      await growth.reach(offset + vectorLength(iov));
      await file.writev!(offset, iov, flags);
    },
    async writeZeroes(offset, length, flags) {
      await growth.reach(offset + length);
      await file.writeZeroes!(offset, length, flags);
    },
    truncate: (size, options) => growth.truncate(size, options),
    close: () => growth.crop(),
  });
}

/** A file that extends beyond its data. */
class Growth {
  readonly file: BlockNode;
  /** The end of the data: the size that others see. */
  dataEnd: number;
  readonly #align: number;
  readonly #step: number;
  /** The end of the space that is, or is being, preallocated. */
  #reserved: number;
  /** The preallocation under way; writes wait for it. */
  #growing: Promise<void> = Promise.resolve();

  constructor(file: BlockNode, align: number, step: number) {
    this.file = file;
    this.#align = Math.max(1, align);
    this.#step = step;
    this.dataEnd = file.size;
    this.#reserved = file.size;
  }

  /** Prepare a write up to `end`: preallocate beyond it. */
  async reach(end: number): Promise<void> {
    this.dataEnd = Math.max(this.dataEnd, end);
    if (end > this.#reserved && this.file.writeZeroes) {
      const start = this.#reserved;
      const stop = roundUp(end + this.#step, this.#align);
      this.#reserved = stop;
      this.#growing = this.#growing.then(() => this.#reserve(start, stop));
    }
    await this.#growing;
  }

  async #reserve(start: number, stop: number): Promise<void> {
    try {
      const flags = { noFallback: true };
      await this.file.writeZeroes!(start, stop - start, flags);
    } catch (error) {
      // Preallocation is optional: the write itself fails if there is no space.
      asBlockError(error);
    }
  }

  /** Free the preallocated space past the data. */
  async crop(): Promise<void> {
    await this.#growing;
    if (this.dataEnd < this.file.size) await this.file.truncate?.(this.dataEnd);
    this.#reserved = this.dataEnd;
  }

  async truncate(size: number, options?: TruncateOptions): Promise<void> {
    await this.crop();
    await this.file.truncate!(size, options);
    this.dataEnd = this.#reserved = size;
  }
}
