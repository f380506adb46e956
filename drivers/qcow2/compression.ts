/**
 * The compressed clusters of an image. Their codecs are loaded on demand.
 * (Specification: "Compressed Clusters Descriptor".)
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import type { ReadFlags } from "../../core/node.ts";
import type { Mapping } from "./cluster_map.ts";
import type { CompressedReader, CompressionHost } from "./compressed_reader.ts";
import type { CompressionQueue } from "./compression_queue.ts";

/** Most bytes read or decompressed at once, unless one cluster is larger. */
const MAX_RUN = 2 * 1024 * 1024;

/**
 * Most clusters of it: mappings of small ones take more memory than their data.
 */
const MAX_CLUSTERS = 128;

/** What works on the data. */
type Codecs = typeof import("../../core/compression.ts");

/** Compresses clusters, and has compressed ones read. */
export class CompressedClusters {
  /** Clusters being compressed; created when needed. */
  queue?: CompressionQueue;
  readonly #state: CompressionHost;
  /** Created when needed: most images have no compressed clusters. */
  #reader?: CompressedReader;
  #codecs?: Promise<Codecs>;
  #workers?: Disposable;

  constructor(state: CompressionHost) {
    this.#state = state;
  }

  /**
   * The mapping of a compressed cluster, and of those after it whose tables are
   * cached.
   */
  run(first: Mapping, offset: number, length: number): Mapping[] {
    const run = [first];
    const most = Math.min(length, MAX_RUN);
    for (let end = first.length; end < most && run.length < MAX_CLUSTERS;) {
      const next = this.#state.clusters.lookup(offset + end, length - end);
      if (next?.kind !== "compressed") break;
      run.push(next);
      end += next.length;
    }
    return run;
  }

  /** Read the bytes from `offset` on; each mapping describes one cluster. */
  read(
    mappings: readonly Mapping[],
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    return this.#reader
      ? this.#reader.read(mappings, offset, iov, flags)
      : this.#readFirst(mappings, offset, iov, flags);
  }

  async #readFirst(
    mappings: readonly Mapping[],
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const { CompressedReader } = await import("./compressed_reader.ts");
    this.#reader ??= new CompressedReader(
      this.#state,
      MAX_RUN,
      () => this.load(),
    );
    await this.#reader.read(mappings, offset, iov, flags);
  }

  /**
   * Compress a cluster.
   *
   * @returns `undefined` if that saves nothing.
   */
  async compress(
    cluster: Uint8Array,
    level: number | undefined,
  ): Promise<Uint8Array | undefined> {
    const { compress } = await this.load();
    return await compress(this.#state.header.compressionType, cluster, level);
  }

  /** Load the codecs, and the workers they may use. */
  load(): Promise<Codecs> {
    return this.#codecs ??= import("../../core/compression.ts").then(
      (codecs) => {
        this.#workers = codecs.holdWorkers();
        return codecs;
      },
    );
  }

  /** Empty the cache: clusters have been freed or rewritten. */
  forget(): void {
    this.#reader?.forget();
  }

  /** Release everything. */
  close(): void {
    this.#reader = undefined;
    this.#workers?.[Symbol.dispose]();
    this.#workers = undefined;
    this.#codecs = undefined;
  }
}
