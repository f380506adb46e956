/**
 * The map of guest data for `core/access.ts`.
 *
 * @module
 */
import type { Allocation, BlockMap, Place, Run } from "../../core/block_map.ts";
import type { IoVector } from "../../core/bytes.ts";
import type { Mutex } from "../../core/lock.ts";
import type { BlockNode, ReadFlags } from "../../core/node.ts";
import type { AllocationHost } from "./allocation.ts";
import type { ClusterMap, Mapping } from "./cluster_map.ts";
import type { CompressedClusters } from "./compression.ts";
import type { Geometry } from "./geometry.ts";
import type { Refcounts } from "./refcounts.ts";

/** Loaded with the first write: most programs only read. */
type Writing = typeof import("./allocation.ts");

/** What finding out whether data clusters may be holes depends on. */
interface HolesHost {
  readonly plainFile: BlockNode;
  readonly geometry: Geometry;
  readonly metadata: Mutex;
  /**
   * Whether data clusters may be holes in the file; `undefined` until asked.
   */
  hasHoles?: boolean | Promise<boolean>;
  /** Load the refcounts, also of a read-only image. */
  loadRefcounts(): Promise<Refcounts>;
}

/** What the map needs of the image. */
export interface GuestMapHost extends AllocationHost, HolesHost {
  readonly clusters: ClusterMap;
  readonly compressed: CompressedClusters;
  /** Where guest data is, for reading. */
  readonly plainDataFile: BlockNode;
  /** Whether damage was found while writing. */
  readonly unusable: boolean;
}

/** A run of clusters; compressed ones worth reading together form one. */
interface GuestRun extends Run {
  readonly compressed?: readonly Mapping[];
}

/** The guest clusters of an image. */
export class GuestMap implements BlockMap<GuestRun> {
  readonly #host: GuestMapHost;
  #writing?: Writing;

  constructor(host: GuestMapHost) {
    this.#host = host;
  }

  get unit(): number {
    return this.#host.geometry.clusterSize;
  }

  lookup(offset: number, length: number): GuestRun | undefined {
    const { clusters } = this.#host;
    const mapping = clusters.lookup(offset, length);
    if (!mapping || !clusters.isSound(mapping, offset)) return undefined;
    return this.#runOf(mapping, offset, length);
  }

  async find(
    offset: number,
    length: number,
    readThrough?: boolean,
  ): Promise<GuestRun> {
    const mapping = await this.#host.clusters.map(offset, length, readThrough);
    return this.#runOf(mapping, offset, length);
  }

  #runOf(mapping: Mapping, offset: number, length: number): GuestRun {
    const { plainDataFile: child, compressed } = this.#host;
    const { kind, hostOffset: childOffset } = mapping;
    switch (kind) {
      case "normal":
        // Past the end of any file: reads as zeroes.
        if (childOffset >= 2 ** 53) break;
        return { length: mapping.length, kind: "data", child, childOffset };
      case "zeroAllocated":
        return { length: mapping.length, kind: "zero", child, childOffset };
      case "compressed": {
        const run = compressed.run(mapping, offset, length);
        let sum = 0;
        for (const { length } of run) sum += length;
        return { length: sum, kind: "special", compressed: run };
      }
      case "unallocated":
        return { length: mapping.length, kind };
      case "unallocatedPlaced":
        return {
          length: mapping.length,
          kind: "unallocated",
          child,
          childOffset,
        };
    }
    return { length: mapping.length, kind: "zero" };
  }

  inPlace(offset: number, length: number): Place | undefined {
    // If anything is wrong, `allocate` reports it.
    if (this.#host.unusable) return undefined;
    return this.#writing?.placeOf(this.#host, offset, length);
  }

  allocate(offset: number, length: number): Promise<Allocation> {
    return this.#writing
      ? this.#writing.allocateClusters(this.#host, offset, length)
      : this.#allocateFirst(offset, length);
  }

  async #allocateFirst(offset: number, length: number): Promise<Allocation> {
    this.#writing = await import("./allocation.ts");
    return await this.#writing.allocateClusters(this.#host, offset, length);
  }

  readSpecial(
    { compressed }: GuestRun,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    return this.#host.compressed.read(compressed!, offset, iov, flags);
  }

  mayHaveHoles(): boolean | Promise<boolean> {
    return hasHoles(this.#host);
  }
}

/**
 * Whether the file takes up far less space than its clusters in use, as after
 * preallocation of metadata.
 */
function hasHoles(host: HolesHost): boolean | Promise<boolean> {
  return host.hasHoles ??= findHoles(host)
    // If that cannot be determined, holes are read as data.
    .catch(() => false)
    .then((found) => host.hasHoles = found);
}

async function findHoles(host: HolesHost): Promise<boolean> {
  const { plainFile, geometry } = host;
  const { actualSize } = await plainFile.info?.() ?? {};
  if (actualSize === undefined) return false;
  const real = Math.floor(actualSize / geometry.clusterSize);
  const threshold = Math.max(Math.floor(real * 10 / 9), real + 2);
  const clusters = geometry.clustersFor(plainFile.size);
  if (clusters < threshold) return false;
  using _ = await host.metadata.lock();
  const refcounts = await host.loadRefcounts();
  let used = 0;
  for (let index = 0; index < clusters && used < threshold; index++) {
    if (await refcounts.get(index, false) > 0) used++;
  }
  return used >= threshold;
}
