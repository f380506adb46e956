/**
 * Listing the snapshots of an open image, for opening and describing it. Taking
 * and applying them is loaded on demand.
 *
 * @module
 */
import type { Snapshot } from "../../core/node.ts";
import { Incompatible, NO_ICOUNT } from "./format.ts";
import type { SnapshotEntry } from "./snapshot_table.ts";
import type { Qcow2State } from "./state.ts";

/** Load the snapshot table of an image that is being opened. */
export async function loadSnapshotTable(state: Qcow2State): Promise<void> {
  const { file, header } = state;
  // Loaded only if there is one.
  const table = header.snapshotCount === 0
    ? { entries: [], byteLength: 0 }
    : await (await import("./snapshot_table.ts"))
      .readSnapshotTable(file, header);
  state.snapshots = table.entries;
  state.snapshotTableLength = table.byteLength;
}

/**
 * Describe the snapshots of an image. With an external data file there are
 * none, whatever the table says: no data was kept for them.
 */
export function listSnapshots(state: Qcow2State): Snapshot[] {
  const hasDataFile = state.header.incompatible.low & Incompatible.DATA_FILE;
  return hasDataFile ? [] : state.snapshots.map(describeSnapshot);
}

/** Describe a snapshot. */
export function describeSnapshot(entry: SnapshotEntry): Snapshot {
  const { id, name, dateSeconds, dateNanoseconds, vmClockNanoseconds } = entry;
  const { vmStateSize, diskSize, icount } = entry;
  return {
    id,
    name,
    dateSeconds,
    dateNanoseconds,
    vmClockNanoseconds,
    vmStateSize,
    diskSize,
    ...(icount === NO_ICOUNT ? {} : { icount }),
  };
}

/** Where VM state begins: past everything that the disk's L2 tables cover. */
export function vmStateOffset(state: Qcow2State): number {
  const { geometry, header } = state;
  return geometry.l1EntriesFor(header.size) * geometry.l2Coverage;
}
