/**
 * The filter `copy-on-read`: data read from a backing file is copied into the
 * image above it.
 *
 * @module
 */
import { checkSignal } from "../core/abort.ts";
import {
  allocate,
  copyIntoVector,
  type IoVector,
  roundDown,
  roundUp,
  sliceVector,
  vectorLength,
} from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { checkedExtent, isInherited, skipFilters } from "../core/extents.ts";
import { childSlot, filterNode } from "../core/filter.ts";
import { type Held, RangeLock } from "../core/lock.ts";
import type { BlockNode, ReadFlags } from "../core/node.ts";
import { parseOptions } from "../core/options.ts";
import { ACCESS } from "../core/permissions.ts";
import { writeZeroes } from "../core/requests.ts";
import { isZero } from "../core/runtime.ts";

/** Most bytes copied at once. */
const MAX_COPY = 1024 * 1024;

/** A filter on an image with a backing file; its child is `file`. */
export const copyOnReadDriver: BlockDriver = {
  name: "copy-on-read",
  role: "filter",

  /** Reads write, but leave the content unchanged. */
  childPermissions(_name, { needs, shares }) {
    const own = ACCESS.WRITE_UNCHANGED;
    return { needs: needs | own, shares: shares | own };
  },

  async open(options, context) {
    parseOptions({}, options, ["file"]);
    const file = childSlot(await context.openChild("file"));
    if (context.readOnly) {
      throw new BlockError("EACCES", "Block node is read-only");
    }
    const { clusterSize } = await file.info?.() ?? {};
    return copyingNode(file, clusterSize ?? 1);
  },
};

function copyingNode(file: BlockNode, clusterSize: number): BlockNode {
  const copier = new Copier(file, clusterSize);
  return filterNode(copyOnReadDriver, file, {
    readv: (offset, iov, flags) => copier.read(offset, iov, flags),
    async writev(offset, iov, flags) {
      using _ = await copier.hold(offset, vectorLength(iov), false);
      await file.writev!(offset, iov, flags);
    },
    async writeZeroes(offset, length, flags) {
      using _ = await copier.hold(offset, length, false);
      await file.writeZeroes!(offset, length, flags);
    },
    async discard(offset, length, flags) {
      using _ = await copier.hold(offset, length, false);
      await file.discard!(offset, length, flags);
    },
    async writeCompressed(offset, iov, options) {
      using _ = await copier.hold(offset, vectorLength(iov), false);
      await file.writeCompressed!(offset, iov, options);
    },
  });
}

/** Reads, and copies data of the backing file into the image. */
class Copier {
  readonly #file: BlockNode;
  readonly #clusterSize: number;
  /**
   * Clusters in use: shared by writes, held exclusively while they are copied.
   */
  readonly #ranges = new RangeLock();

  constructor(file: BlockNode, clusterSize: number) {
    this.#file = file;
    this.#clusterSize = clusterSize;
  }

  /** The image itself, below any filters. */
  get #image(): BlockNode {
    return skipFilters(this.#file);
  }

  async read(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    for (let done = 0; done < length;) {
      checkSignal(flags?.signal);
      const at = offset + done;
      const extent = checkedExtent(
        this.#image,
        await this.#image.status(at, length - done),
      );
      const most = isInherited(extent) ? MAX_COPY : Infinity;
      const take = Math.min(extent.length, length - done, most);
      const part = sliceVector(iov, done, take);
      if (isInherited(extent)) await this.#copy(at, part, flags);
      else await this.#file.readv(at, part, flags);
      done += take;
    }
  }

  /** Read unallocated clusters, and copy them into the image. */
  async #copy(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    const start = roundDown(offset, this.#clusterSize);
    const end = Math.min(
      roundUp(offset + length, this.#clusterSize),
      this.#file.size,
    );
    using _ = await this.hold(start, end - start, true);
    const extent = await this.#image.status(start, end - start);
    if (!isInherited(extent) || extent.length < end - start) {
      // Written to meanwhile: do not overwrite that.
      return await this.#file.readv(offset, iov, flags);
    }
    const bytes = allocate(end - start);
    await this.#file.readv(start, [bytes], flags);
    await this.#file.debug?.event("cor_write");
    if (isZero(bytes)) await writeZeroes(this.#file, start, bytes.length);
    else await this.#file.writev!(start, [bytes]);
    const at = offset - start;
    copyIntoVector(iov, 0, bytes.subarray(at, at + length));
  }

  hold(
    offset: number,
    length: number,
    alone: boolean,
  ): Held | Promise<Held> {
    return this.#ranges.acquire(offset, offset + length, alone);
  }
}
