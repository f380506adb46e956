/**
 * Reading compressed clusters, with a cache of the last ones. (Specification:
 * "Compressed Clusters Descriptor"; deflate streams have no header and a window
 * of 4 KiB.)
 *
 * @module
 */
import {
  allocate,
  copyIntoVector,
  type IoVector,
  sliceVector,
} from "../../core/bytes.ts";
import { decompress, decompressNow } from "../../core/compression.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import type { BlockNode, ReadFlags } from "../../core/node.ts";
import { allEnded, readPadded } from "../../core/requests.ts";
import type { ClusterMap, Mapping } from "./cluster_map.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";

/** Clusters to cache: sequential readers ask for parts of the same one. */
const REMEMBERED = 4;

/** Most bytes of compressed data in memory, unless one run is larger. */
const MAX_BUFFERS = 8 * 1024 * 1024;

/** Most buffers kept for reuse. */
const SPARE_BUFFERS = 4;

/** Bytes between compressed clusters that are read rather than skipped. */
const MAX_GAP = 4096;

/** What compressed clusters need of their image. */
export interface CompressionHost {
  readonly dataFile: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly clusters: ClusterMap;
  /** Announce a step that is about to be done. */
  event(name: string): Promise<void> | void;
}

/** A cluster to be read, its target, and who else waits for it. */
interface Wanted {
  /** The first byte of its data, anywhere in the file. */
  readonly hostOffset: number;
  /** Bytes of its data, to the end of the last sector it touches. */
  readonly length: number;
  readonly target: Uint8Array;
  resolve?(cluster: Uint8Array): void;
  reject?(error: BlockError): void;
}

/** A cached cluster, or one being read. */
interface Remembered {
  readonly content: Promise<Uint8Array>;
  /** How many requests are about to copy from it. */
  readers: number;
  /** It has left the cache. */
  isForgotten: boolean;
}

/** Reads the compressed clusters of an image. */
export class CompressedReader {
  readonly #state: CompressionHost;
  readonly #mostAtOnce: number;
  readonly #holdWorkers: () => Promise<unknown>;
  readonly #clusters = new Map<string, Remembered>();
  /** The buffer for the next cluster to cache. */
  #spare?: Uint8Array;
  readonly #buffers = new RunBuffers();

  /**
   * @param mostAtOnce Most bytes read at once, unless one cluster is larger.
   * @param holdWorkers Awaited before anything is decompressed.
   */
  constructor(
    state: CompressionHost,
    mostAtOnce: number,
    holdWorkers: () => Promise<unknown>,
  ) {
    this.#state = state;
    this.#mostAtOnce = mostAtOnce;
    this.#holdWorkers = holdWorkers;
  }

  /** Read the bytes from `offset` on; each mapping describes one cluster. */
  async read(
    mappings: readonly Mapping[],
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const { geometry } = this.#state;
    const wanted: Wanted[] = [];
    const pending: Promise<void>[] = [];
    let done = 0;
    for (const mapping of mappings) {
      const { length } = mapping;
      const part = sliceVector(iov, done, length);
      // Whoever reads a whole cluster will hardly ask for it again soon.
      const isDirect = length === geometry.clusterSize && part.length === 1 &&
        !(this.#clusters.size > 0 && this.#clusters.has(keyOf(mapping)));
      if (isDirect) {
        wanted.push({ ...placeOf(mapping), target: part[0] });
      } else {
        const start = geometry.offsetInCluster(offset + done);
        pending.push(this.#readPart(mapping, start, part, wanted));
      }
      done += length;
    }
    pending.push(this.#readRuns(wanted, flags));
    await allEnded(pending);
  }

  /** Adds what must be read to `wanted` in the same turn. */
  async #readPart(
    mapping: Mapping,
    start: number,
    iov: IoVector,
    wanted: Wanted[],
  ): Promise<void> {
    const { geometry } = this.#state;
    const { length } = mapping;
    const key = keyOf(mapping);
    let cluster = this.#clusters.get(key);
    if (!cluster) {
      const target = this.#spare ?? allocate(geometry.clusterSize);
      this.#spare = undefined;
      const { promise, ...settle } = Promise.withResolvers<Uint8Array>();
      wanted.push({ ...placeOf(mapping), ...settle, target });
      cluster = { content: promise, readers: 0, isForgotten: false };
      this.#remember(key, cluster);
    }
    cluster.readers++;
    const content = await cluster.content;
    copyIntoVector(iov, 0, content.subarray(start, start + length));
    // Nobody else can reach it any more.
    if (--cluster.readers === 0 && cluster.isForgotten) this.#spare = content;
  }

  /** Empty the cache: clusters have been freed or rewritten. */
  forget(): void {
    this.#clusters.clear();
  }

  #remember(key: string, cluster: Remembered): void {
    // After a read error, the next reader tries again. Corrupt data stays
    // cached as such, so that it is not decompressed for each sector requested.
    cluster.content.catch((error) => {
      if (!(error instanceof CorruptCluster)) this.#clusters.delete(key);
    });
    this.#clusters.set(key, cluster);
    if (this.#clusters.size <= REMEMBERED) return;
    const [oldest, forgotten] = this.#clusters.entries().next().value!;
    this.#clusters.delete(oldest);
    forgotten.isForgotten = true;
    if (forgotten.readers > 0) return;
    forgotten.content.then((content) => this.#spare = content, () => {});
  }

  /** @throws the error of one of the clusters that could not be read. */
  async #readRuns(
    wanted: readonly Wanted[],
    flags?: ReadFlags,
  ): Promise<void> {
    const pending: Promise<void>[] = [];
    const failures: unknown[] = [];
    for (const run of inRuns(wanted, this.#mostAtOnce)) {
      try {
        await this.#readRun(run, pending, failures, flags);
      } catch (error) {
        for (const { reject } of run) reject?.(asBlockError(error));
        failures.push(error);
      }
    }
    await Promise.all(pending);
    if (failures.length > 0) throw failures[0];
  }

  /**
   * Read adjacent clusters at once, and decompress them, which may still be
   * `pending` on return.
   */
  async #readRun(
    run: readonly Wanted[],
    pending: Promise<void>[],
    failures: unknown[],
    flags?: ReadFlags,
  ): Promise<void> {
    const start = run[0].hostOffset;
    const end = run.reduce(
      (end, { hostOffset, length }) => Math.max(end, hostOffset + length),
      0,
    );
    if (end >= 2 ** 53) throw new BlockError("EIO");
    for (const _ of run) {
      const event = this.#state.event("read_compressed");
      if (event) await event;
    }
    const waiting = this.#buffers.reserve(end - start);
    if (waiting) await waiting;
    const buffer = this.#buffers.take(end - start);
    const later: Promise<void>[] = [];
    // Others, who have not cancelled, may wait for the same cluster.
    const isShared = run.some(({ resolve }) => resolve);
    const bytes = buffer.subarray(0, end - start);
    try {
      // The descriptor may claim more than there is; enough to decode will do.
      const own = isShared ? undefined : flags;
      await readPadded(this.#state.dataFile, start, [bytes], own);
      await this.#decompressRun(run, buffer, start, end, later, failures);
    } catch (error) {
      await Promise.all(later);
      this.#buffers.giveBack(buffer);
      throw error;
    }
    pending.push(
      Promise.all(later).then(() => this.#buffers.giveBack(buffer)),
    );
  }

  /** Work that still uses part of `buffer` on return is added to `later`. */
  async #decompressRun(
    run: readonly Wanted[],
    buffer: Uint8Array,
    start: number,
    end: number,
    later: Promise<void>[],
    failures: unknown[],
  ): Promise<void> {
    const { dataFile, header } = this.#state;
    // Zeroes past the end of a cut-off file are not data.
    const inside = Math.max(0, Math.min(end, dataFile.size) - start);
    const type = header.compressionType;
    await this.#holdWorkers();
    for (const cluster of run) {
      const at = cluster.hostOffset - start;
      const stop = Math.max(at, Math.min(at + cluster.length, inside));
      const data = buffer.subarray(at, stop);
      const { target } = cluster;
      // Otherwise thousands of small clusters would have a promise each.
      if (decompressNow(type, data, target)) cluster.resolve?.(target);
      else {
        later.push(
          decompress(type, data, target).then(
            () => cluster.resolve?.(target),
            (error) => {
              failures.push(readError(error));
              cluster.reject?.(readError(error));
            },
          ),
        );
      }
    }
  }
}

/**
 * A pool of buffers for compressed data: allocating one takes as long as
 * reading into it, and it stays until garbage is collected.
 */
class RunBuffers {
  readonly #spare: Uint8Array[] = [];
  readonly #waiting: (() => void)[] = [];
  #bytes = 0;

  /** Reserve bytes; to be awaited if too many are in use. */
  reserve(length: number): Promise<void> | undefined {
    if (this.#bytes === 0 || this.#bytes + sizeFor(length) <= MAX_BUFFERS) {
      this.#bytes += sizeFor(length);
      return undefined;
    }
    return this.#wait(length);
  }

  async #wait(length: number): Promise<void> {
    while (this.#bytes > 0 && this.#bytes + sizeFor(length) > MAX_BUFFERS) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    this.#bytes += sizeFor(length);
  }

  /** A buffer of at least `length` bytes, which have been reserved. */
  take(length: number): Uint8Array {
    const size = sizeFor(length);
    const index = this.#spare.findIndex((spare) => spare.length === size);
    if (index < 0) return allocate(size);
    return this.#spare.splice(index, 1)[0];
  }

  /** Return a buffer to the pool. */
  giveBack(buffer: Uint8Array): void {
    this.#bytes -= buffer.length;
    this.#spare.push(buffer);
    if (this.#spare.length > SPARE_BUFFERS) this.#spare.shift();
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** Rounds sizes, so that one buffer fits the next run as well. */
function sizeFor(length: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(length, 4096)));
}

/** The cache's key for a cluster. */
function keyOf({ hostOffset, compressedLength }: Mapping): string {
  return `${hostOffset}:${compressedLength}`;
}

function placeOf({ hostOffset, compressedLength }: Mapping) {
  return { hostOffset, length: compressedLength };
}

/** The error to report for data that cannot be decompressed. */
function readError(thrown: unknown): BlockError {
  const error = asBlockError(thrown);
  if (error.code === "ENOTSUP") return error;
  return new CorruptCluster("EIO", undefined, { cause: error });
}

/** Compressed data was read but is invalid. */
class CorruptCluster extends BlockError {}

/**
 * Split into groups of clusters so close together that one request reads them.
 */
function inRuns(wanted: readonly Wanted[], most: number): Wanted[][] {
  const runs: Wanted[][] = [];
  for (const cluster of wanted) {
    const run = runs.at(-1);
    if (run && continues(run, cluster, most)) run.push(cluster);
    else runs.push([cluster]);
  }
  return runs;
}

/** Whether a cluster follows the last one of a run, and the run may grow. */
function continues(
  run: readonly Wanted[],
  next: Wanted,
  most: number,
): boolean {
  const last = run[run.length - 1];
  const end = next.hostOffset + next.length;
  // The next one may begin in the sector in which the last one ends.
  return next.hostOffset > last.hostOffset &&
    next.hostOffset <= last.hostOffset + last.length + MAX_GAP &&
    end - run[0].hostOffset <= most;
}
