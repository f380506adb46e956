/**
 * The compressed clusters of an image: what is known of them without looking
 * into any. (Specification: "Compressed Clusters Descriptor".)
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import type { ReadFlags } from "../../core/node.ts";
import type { Mapping } from "./cluster_map.ts";
import type { CompressedReader, CompressionHost } from "./compressed_reader.ts";
import type { CompressionQueue } from "./compression_queue.ts";

/** Most bytes that are read or decompressed at once, if it is not one cluster. */
const MAX_RUN = 2 * 1024 * 1024;

/** Most clusters of it: with small ones, what tells of them takes more memory. */
const MAX_CLUSTERS = 128;

/** What works on the data. */
type Codecs = typeof import("../../core/compression.ts");

/** Compresses clusters, and has compressed ones read. */
export class CompressedClusters {
  /** What is being compressed; made when something is. */
  queue?: CompressionQueue;
  readonly #state: CompressionHost;
  /** Most images have nothing that is compressed, and need none. */
  #reader?: CompressedReader;
  #codecs?: Promise<Codecs>;
  #workers?: Disposable;

  constructor(state: CompressionHost) {
    this.#state = state;
  }

  /** A compressed cluster's mapping, and those after it that are in memory. */
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

  /** Read the bytes from `offset` on; each mapping is about one cluster. */
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

  /** The codecs, and workers that they may use. */
  load(): Promise<Codecs> {
    return this.#codecs ??= import("../../core/compression.ts").then(
      (codecs) => {
        this.#workers = codecs.holdWorkers();
        return codecs;
      },
    );
  }

  /** Forget what was read: clusters have been freed or written anew. */
  forget(): void {
    this.#reader?.forget();
  }

  /** Nothing more is wanted. */
  close(): void {
    this.#reader = undefined;
    this.#workers?.[Symbol.dispose]();
    this.#workers = undefined;
    this.#codecs = undefined;
  }
}
