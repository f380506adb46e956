/**
 * The snapshots of an image as its users see them.
 *
 * @module
 */
import type { Snapshot } from "../../core/node.ts";
import { Incompatible, NO_ICOUNT } from "./format.ts";
import type { SnapshotEntry } from "./snapshot_table.ts";
import type { Qcow2State } from "./state.ts";

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
