/**
 * Compressed clusters: what is stored in them, and a memory of the last ones
 * read. (Specification: "Compressed Clusters Descriptor"; deflate streams have
 * no header and a window of 4 KiB.)
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import { deflateRaw, inflateRaw, unzstd, zstd } from "../../core/runtime.ts";
import type { Qcow2State } from "./state.ts";

/** Clusters to remember: sequential readers ask for parts of the same one. */
const REMEMBERED = 4;

/** Reads compressed clusters. */
export class CompressedReader {
  readonly #state: Qcow2State;
  readonly #clusters = new Map<string, Promise<Uint8Array>>();

  constructor(state: Qcow2State) {
    this.#state = state;
  }

  /** The content of the cluster that the halves of an L2 entry describe. */
  read(high: number, low: number): Promise<Uint8Array> {
    const key = `${high}:${low}`;
    let cluster = this.#clusters.get(key);
    if (!cluster) {
      cluster = this.#inflate(high, low);
      // A failure is not remembered: the next reader tries again.
      cluster.catch(() => this.#clusters.delete(key));
      this.#clusters.set(key, cluster);
      if (this.#clusters.size > REMEMBERED) {
        this.#clusters.delete(this.#clusters.keys().next().value!);
      }
    }
    return cluster;
  }

  /** Forget what was read: clusters have been freed or written anew. */
  forget(): void {
    this.#clusters.clear();
  }

  async #inflate(high: number, low: number): Promise<Uint8Array> {
    const { file, geometry, header } = this.#state;
    const { hostOffset, length } = geometry.compressedCluster(high, low);
    if (hostOffset >= 2 ** 53) throw new BlockError("EIO");
    const stored = allocate(length);
    await this.#state.event("read_compressed");
    await file.readv(hostOffset, [stored]);
    const { clusterSize } = geometry;
    try {
      return header.compressionType === "zstd"
        ? await unzstd(stored, clusterSize)
        : await inflateRaw(stored, clusterSize);
    } catch (thrown) {
      const error = asBlockError(thrown);
      if (error.code === "ENOTSUP") throw error;
      throw new BlockError("EIO", undefined, { cause: error });
    }
  }
}

/**
 * Compress a whole cluster.
 *
 * @returns the compressed bytes, or `undefined` if they are no fewer.
 */
export async function compressCluster(
  cluster: Uint8Array,
  type: "zlib" | "zstd",
): Promise<Uint8Array | undefined> {
  const compressed = type === "zstd"
    ? await zstd(cluster)
    : await deflateRaw(cluster);
  if (!compressed) {
    throw new BlockError(
      "ENOTSUP",
      `Cannot compress: this runtime has no ${type} that qcow2 could use`,
    );
  }
  return compressed.length < cluster.length ? compressed : undefined;
}
