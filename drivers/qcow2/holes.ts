/**
 * Whether data clusters may be holes in the file.
 *
 * @module
 */
import type { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import type { Geometry } from "./geometry.ts";
import type { Refcounts } from "./refcounts.ts";

/** What that depends on. */
export interface HolesHost {
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

/**
 * Whether the file takes up far less space than its clusters in use, as after
 * preallocation of metadata.
 */
export function hasHoles(host: HolesHost): boolean | Promise<boolean> {
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
