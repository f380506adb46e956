/**
 * Reading compressed clusters, and a memory of the last ones. (Specification:
 * "Compressed Clusters Descriptor"; deflate streams have no header and a
 * window of 4 KiB.)
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { compress, decompress } from "../../core/compression.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import { holdWorkers } from "../../core/zlib_workers.ts";
import type { Mapping } from "./cluster_map.ts";
import type { CompressedCluster } from "./format.ts";
import type { Qcow2State } from "./state.ts";

/** Clusters to remember: sequential readers ask for parts of the same one. */
const REMEMBERED = 4;

/** Most bytes that are read or decompressed at once, if it is not one cluster. */
const MAX_RUN = 2 * 1024 * 1024;

/** Bytes between compressed clusters that are read rather than skipped. */
const MAX_GAP = 4096;

/** The halves of an L2 entry. */
type Entry = Pick<Mapping, "high" | "low">;

/** A cluster that is to be read, and who waits for it. */
interface Wanted extends CompressedCluster {
  resolve(cluster: Uint8Array): void;
  reject(error: BlockError): void;
}

/** Compresses clusters, and reads compressed ones. */
export class CompressedClusters {
  /** Held to store a compressed cluster; places in line are given early. */
  readonly storing = new Mutex();
  readonly #state: Qcow2State;
  readonly #clusters = new Map<string, Promise<Uint8Array>>();
  #workers?: Disposable;

  constructor(state: Qcow2State) {
    this.#state = state;
  }

  /** A compressed cluster's mapping, and those after it that are in memory. */
  run(first: Mapping, offset: number, length: number): Mapping[] {
    const run = [first];
    const most = Math.min(length, MAX_RUN);
    for (let end = first.length; end < most;) {
      const next = this.#state.clusters.lookup(offset + end, length - end);
      if (next?.kind !== "compressed") break;
      run.push(next);
      end += next.length;
    }
    return run;
  }

  /** The contents of clusters by their L2 entries. */
  read(entries: readonly Entry[]): Promise<Uint8Array[]> {
    const wanted: Wanted[] = [];
    const clusters = entries.map(({ high, low }) => {
      const key = `${high}:${low}`;
      let cluster = this.#clusters.get(key);
      if (!cluster) {
        const { promise, ...settle } = Promise.withResolvers<Uint8Array>();
        const place = this.#state.geometry.compressedCluster(high, low);
        wanted.push({ ...place, ...settle });
        cluster = promise;
        this.#remember(key, cluster);
      }
      return cluster;
    });
    this.#workers ??= holdWorkers();
    this.#readRuns(wanted);
    return Promise.all(clusters);
  }

  /**
   * Compress a cluster.
   *
   * @returns `undefined` if that saves nothing.
   */
  compress(
    cluster: Uint8Array,
    level: number | undefined,
  ): Promise<Uint8Array | undefined> {
    this.#workers ??= holdWorkers();
    return compress(this.#state.header.compressionType, cluster, level);
  }

  /** Forget what was read: clusters have been freed or written anew. */
  forget(): void {
    this.#clusters.clear();
  }

  /** Nothing more is wanted. */
  close(): void {
    this.forget();
    this.#workers?.[Symbol.dispose]();
    this.#workers = undefined;
  }

  #remember(key: string, cluster: Promise<Uint8Array>): void {
    // A failure is not remembered: the next reader tries again.
    cluster.catch(() => this.#clusters.delete(key));
    this.#clusters.set(key, cluster);
    if (this.#clusters.size > REMEMBERED) {
      this.#clusters.delete(this.#clusters.keys().next().value!);
    }
  }

  async #readRuns(wanted: readonly Wanted[]): Promise<void> {
    for (const run of inRuns(wanted)) {
      try {
        await this.#readRun(run);
      } catch (error) {
        for (const { reject } of run) reject(asBlockError(error));
      }
    }
  }

  /** Read clusters that lie together at once, and have them decompressed. */
  async #readRun(run: readonly Wanted[]): Promise<void> {
    const { file, geometry, header } = this.#state;
    const start = run[0].hostOffset;
    const ends = run.map(({ hostOffset, length }) => hostOffset + length);
    const end = Math.max(...ends);
    if (end >= 2 ** 53) throw new BlockError("EIO");
    for (const _ of run) await this.#state.event("read_compressed");
    const bytes = allocate(end - start);
    await file.readv(start, [bytes]);
    for (const { hostOffset, length, resolve, reject } of run) {
      const at = hostOffset - start;
      const stored = bytes.subarray(at, at + length);
      decompress(header.compressionType, stored, geometry.clusterSize)
        .then(resolve, (error) => reject(readError(error)));
    }
  }
}

/** What to tell of data that cannot be decompressed. */
function readError(thrown: unknown): BlockError {
  const error = asBlockError(thrown);
  if (error.code === "ENOTSUP") return error;
  return new BlockError("EIO", undefined, { cause: error });
}

/** Split into groups that lie so close, in order, that one request reads them. */
function inRuns(wanted: readonly Wanted[]): Wanted[][] {
  const runs: Wanted[][] = [];
  for (const cluster of wanted) {
    const run = runs.at(-1);
    if (run && continues(run, cluster)) run.push(cluster);
    else runs.push([cluster]);
  }
  return runs;
}

/** Whether a cluster follows the last one of a run, and the run may grow. */
function continues(run: readonly Wanted[], next: CompressedCluster): boolean {
  const last = run[run.length - 1];
  const end = next.hostOffset + next.length;
  // The next one may begin in the sector in which the last one ends.
  return next.hostOffset > last.hostOffset &&
    next.hostOffset <= last.hostOffset + last.length + MAX_GAP &&
    end - run[0].hostOffset <= MAX_RUN;
}
