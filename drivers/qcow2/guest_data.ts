/**
 * What reading and writing guest data needs. `info` does without, and does not
 * load it.
 *
 * @module
 */
import { Access, type AccessHost } from "../../core/access.ts";
import { allocate } from "../../core/bytes.ts";
import { CacheCleaner } from "./cache_cleaner.ts";
import { ClusterMap, type ClusterMapHost } from "./cluster_map.ts";
import type { CompressionHost } from "./compressed_reader.ts";
import { CompressedClusters } from "./compression.ts";
import { GuestMap, type GuestMapHost } from "./guest_map.ts";
import type { RefcountHost } from "./refcount_table.ts";
import { TableCache } from "./table_cache.ts";

/** Sizes of the caches, in bytes. */
export interface CacheSizes {
  l2: number;
  l2Entry: number;
  refcount: number;
}

/** What guest data needs of the image. */
export type GuestDataHost =
  & AccessHost
  & ClusterMapHost
  & CompressionHost
  & GuestMapHost
  & RefcountHost
  & { flushData(): Promise<void> | void };

/** The guest data of an image, and its mapping tables. */
export class GuestData {
  readonly #host: GuestDataHost;
  l2Cache!: TableCache;
  refcountCache!: TableCache;
  readonly cleaner = new CacheCleaner(this);
  readonly clusters: ClusterMap;
  readonly compressed: CompressedClusters;
  /** Moves the data. */
  readonly access: Access;

  constructor(host: GuestDataHost, caches: CacheSizes) {
    this.#host = host;
    this.makeCaches(caches);
    this.clusters = new ClusterMap(host);
    this.compressed = new CompressedClusters(host);
    this.access = new Access(host, new GuestMap(host));
  }

  /** Start with empty caches that fit the header. */
  makeCaches({ l2, l2Entry, refcount }: CacheSizes): void {
    const { file, geometry: { clusterSize } } = this.#host;
    this.l2Cache = new TableCache(file, l2Entry, l2, {
      settling: () => this.#host.flushData(),
      loading: () => this.#host.event("l2_load"),
      writing: async (offset) => {
        await this.#host.overlap.check(offset, l2Entry, "active-l2");
        await this.#host.event("l2_update");
      },
    });
    this.refcountCache = new TableCache(file, clusterSize, refcount, {
      writing: async (offset) => {
        await this.#host.overlap.check(offset, clusterSize, "refcount-block");
        await this.#host.event("refblock_update_part");
      },
    });
  }

  /** Read the refcount table, which must be readable in all images. */
  async readRefcountTable(): Promise<Uint8Array> {
    const { file, header, geometry } = this.#host;
    const length = header.refcountTableClusters * geometry.clusterSize;
    const bytes = allocate(length);
    if (length > 0) await this.#host.event("reftable_load");
    if (length > 0) await file.readv(header.refcountTableOffset, [bytes]);
    return bytes;
  }
}
