/**
 * The filter `compress`: every write is stored compressed.
 *
 * @module
 */
import { checkSignal } from "../core/abort.ts";
import { type IoVector, sliceVector, vectorLength } from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { checkedExtent } from "../core/extents.ts";
import { childSlot, filterNode } from "../core/filter.ts";
import type { BlockNode, Extent } from "../core/node.ts";
import { parseOptions } from "../core/options.ts";
import { readPadded } from "../core/requests.ts";

/** A filter on an image whose format can compress; its child is `file`. */
export const compressDriver: BlockDriver = {
  name: "compress",
  role: "filter",

  async open(options, context) {
    parseOptions({}, options, ["file"]);
    const child = await context.openChild("file");
    const file = childSlot(child, checkCompression);
    const { clusterSize } = await file.info?.() ?? {};
    return filterNode(compressDriver, file, {
      // Only whole clusters can be compressed.
      limits: { requestAlignment: clusterSize },
      readv: (offset, iov, flags) => readPadded(file, offset, iov, flags),
      async writev(offset, iov, flags) {
        await writeCompressed(file, offset, iov, flags?.signal);
        if (flags?.fua) await file.flush?.();
      },
    });
  },
};

/** Refuse a node that cannot store compressed data. */
function checkCompression({ writeCompressed, driver }: BlockNode): void {
  if (writeCompressed) return;
  throw new BlockError(
    "ENOTSUP",
    `Compression is not supported for underlying format: ${driver.name}`,
  );
}

async function writeCompressed(
  file: BlockNode,
  offset: number,
  iov: IoVector,
  signal?: AbortSignal,
): Promise<void> {
  // The disk may end within its last cluster.
  const length = Math.min(vectorLength(iov), file.size - offset);
  for (let done = 0; done < length;) {
    checkSignal(signal);
    const at = offset + done;
    const extent = checkedExtent(
      file,
      await file.status(at, length - done),
    );
    const take = Math.min(extent.length, length - done);
    const part = sliceVector(iov, done, take);
    if (hasPlace(extent)) await file.writev!(at, part);
    else await file.writeCompressed!(at, part);
    done += take;
  }
}

/** Whether a cluster is stored uncompressed; it then stays so. */
function hasPlace(extent: Extent): boolean {
  const { allocated, zero, compressed, hostOffset } = extent;
  return zero ? hostOffset !== undefined : allocated && !compressed;
}
