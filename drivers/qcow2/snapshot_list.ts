/**
 * The snapshots of an image that is open: what opening and describing it need.
 * What takes and applies them is loaded when it is used.
 *
 * @module
 */
import type { Snapshot } from "../../core/node.ts";
import { Incompatible, NO_ICOUNT } from "./format.ts";
import type { SnapshotEntry } from "./snapshot_table.ts";
import type { Qcow2State } from "./state.ts";

/** Read the snapshot table of an image that is being opened. */
export async function loadSnapshotTable(state: Qcow2State): Promise<void> {
  const { file, header } = state;
  // Loaded where there is one to be read.
  const table = header.snapshotCount === 0
    ? { entries: [], byteLength: 0 }
    : await (await import("./snapshot_table.ts"))
      .readSnapshotTable(file, header);
  state.snapshots = table.entries;
  state.snapshotTableLength = table.byteLength;
}

/**
 * The snapshots of an image as everybody sees them. With an external data file
 * there are none, whatever is in the table: nothing was kept for them.
 */
export function listSnapshots(state: Qcow2State): Snapshot[] {
  const hasDataFile = state.header.incompatible.low & Incompatible.DATA_FILE;
  return hasDataFile ? [] : state.snapshots.map(describeSnapshot);
}

/** A snapshot as everybody sees it. */
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

/** Where VM state begins: past all that L2 tables of the disk cover. */
export function vmStateOffset(state: Qcow2State): number {
  const { geometry, header } = state;
  return geometry.l1EntriesFor(header.size) * geometry.l2Coverage;
}
