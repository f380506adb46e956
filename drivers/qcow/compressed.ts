/**
 * Compressed clusters: raw deflate streams with a window of 4096 bytes, at any
 * byte of the file. Their entries have the highest bit set, then the length of
 * the stream in as many bits as a cluster offset has, then the stream's offset.
 *
 * @module
 */
import type { Access } from "../../core/access.ts";
import {
  allocate,
  copyIntoVector,
  flattenVector,
  type IoVector,
  padded,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import type { BlockNode, CompressOptions } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import type { TwoLevelMap, TwoLevelRun } from "../../core/two_level_map.ts";

/** Most clusters stored at once. */
const GROUP = 64;

/** Loaded on demand: most images have no compressed clusters. */
let codecs: Promise<typeof import("../../core/compression.ts")> | undefined;

function loadCodecs() {
  return codecs ??= import("../../core/compression.ts");
}

/** What compressed clusters need of their image. */
export interface CompressionHost {
  /** Bytes of the disk. */
  readonly size: number;
  /** The current file. */
  file(): BlockNode;
  readonly map: TwoLevelMap;
  readonly access: Access<TwoLevelRun>;
  readonly event?: (name: string) => void | Promise<void>;
}

/** Reads and writes compressed clusters. */
export class CompressedClusters {
  readonly #host: CompressionHost;
  readonly #clusterSize: number;
  /** Bits of an entry's upper half that belong to the offset. */
  readonly #placeBits: number;
  /** The last cluster read: small reads need several parts of it. */
  #last?: { readonly place: number; readonly content: Uint8Array };
  readonly #turn = new Mutex();

  constructor(host: CompressionHost, clusterBits: number) {
    this.#host = host;
    this.#clusterSize = 2 ** clusterBits;
    this.#placeBits = 31 - clusterBits;
  }

  /** Drop cached data: clusters have been freed. */
  forget(): void {
    this.#last = undefined;
  }

  /** Read part of a cluster into `iov`. */
  async read(run: TwoLevelRun, offset: number, iov: IoVector): Promise<void> {
    const { high, low } = run.entry!;
    const size = (high >>> this.#placeBits) % this.#clusterSize;
    const place = high % 2 ** this.#placeBits * 2 ** 32 + low;
    const isWhole = run.length === this.#clusterSize && iov.length === 1;
    let content = this.#last?.place === place ? this.#last.content : undefined;
    if (!content) {
      content = isWhole ? iov[0] : allocate(this.#clusterSize);
      await this.#decompress(place, size, content);
      if (isWhole) return;
      this.#last = { place, content };
    }
    const start = offset % this.#clusterSize;
    copyIntoVector(iov, 0, content.subarray(start, start + run.length));
  }

  async #decompress(
    place: number,
    size: number,
    target: Uint8Array,
  ): Promise<void> {
    const { map, event } = this.#host;
    const file = this.#host.file();
    if (!map.isPlace(place, size)) throw new BlockError("EIO");
    await event?.("read_compressed");
    const data = allocate(Math.min(size, file.size - place));
    await readPadded(file, place, [data]);
    const { decompress, decompressNow } = await loadCodecs();
    if (decompressNow("zlib", data, target)) return;
    await decompress("zlib", data, target);
  }

  /**
   * Store clusters compressed, or plain if they would not become smaller.
   *
   * @throws {BlockError} EINVAL unless they are whole clusters, the disk's last
   * one up to its end; EIO if one is allocated already.
   */
  async write(
    offset: number,
    iov: IoVector,
    { level, onlyEmpty = false }: CompressOptions = {},
  ): Promise<void> {
    const { access, size } = this.#host;
    const length = vectorLength(iov);
    const clusterSize = this.#clusterSize;
    const isWhole = length % clusterSize === 0 || offset + length === size;
    if (offset % clusterSize !== 0 || !isWhole) throw new BlockError("EINVAL");
    // One after the other, so that the file has the order of the calls.
    using _ = await this.#turn.lock();
    let group: Uint8Array[] = [];
    for (let at = 0; at < length; at += clusterSize) {
      const take = Math.min(clusterSize, length - at);
      const part = sliceVector(iov, at, take);
      const compressed = await compressCluster(part, clusterSize, level);
      const start = offset + at - group.length * clusterSize;
      if (!compressed || group.length === GROUP) {
        await this.#store(start, group, onlyEmpty);
        group = [];
      }
      if (compressed) group.push(compressed);
      else await access.writev(offset + at, part);
    }
    const end = offset + Math.ceil(length / clusterSize) * clusterSize;
    await this.#store(end - group.length * clusterSize, group, onlyEmpty);
  }

  /** Store adjacent clusters, from `offset` of the disk on. */
  async #store(
    offset: number,
    group: readonly Uint8Array[],
    onlyEmpty: boolean,
  ): Promise<void> {
    if (group.length === 0) return;
    const { map, access, event } = this.#host;
    const clusterSize = this.#clusterSize;
    const end = offset + group.length * clusterSize;
    using _ = await access.ranges.acquire(offset, end, true);
    for (let at = offset; at < end;) {
      const run = await map.find(at, end - at);
      const isFree = run.kind === "special"
        ? !onlyEmpty
        : run.kind === "unallocated";
      if (!isFree) throw new BlockError("EIO");
      at += run.length;
    }
    const length = vectorLength(group);
    let place = await map.reserve(length, 1);
    if (place + length > 2 ** (32 + this.#placeBits)) {
      throw new BlockError("EFBIG");
    }
    await event?.("write_compressed");
    await this.#host.file().writev!(place, group);
    const cluster = offset / clusterSize;
    for (const [index, { length }] of group.entries()) {
      const high = 2 ** 31 + length * 2 ** this.#placeBits +
        Math.floor(place / 2 ** 32);
      await map.setEntry(cluster + index, high, place >>> 0);
      place += length;
    }
    await map.relieve();
    this.forget();
  }
}

/** Compress a cluster; the disk's last one is padded with zeroes. */
async function compressCluster(
  part: IoVector,
  clusterSize: number,
  level: number | undefined,
): Promise<Uint8Array | undefined> {
  const { compress, compressNow } = await loadCodecs();
  const { MOST_DEFLATED } = await import("../../core/deflater.ts");
  const cluster = flattenVector(padded(flattenVector(part), clusterSize));
  const output = clusterSize > MOST_DEFLATED
    ? null
    : compressNow("zlib", cluster, level);
  if (output === null) return await compress("zlib", cluster, level);
  // The result is valid only until the next call.
  return output?.slice();
}
