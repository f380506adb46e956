/**
 * Snapshots: creating, applying, deleting and loading them.
 *
 * A snapshot is a copy of the L1 table and one more reference to each cluster
 * that it leads to. The snapshot table in the file is replaced as a whole, by a
 * header that refers to the new one. (Specification: "Snapshots".)
 *
 * All functions require exclusive access to the image.
 *
 * @module
 */
import {
  allocate,
  padded,
  roundUp,
  SECTOR_SIZE,
  viewOf,
} from "../../core/bytes.ts";
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import type { Snapshot, SnapshotRequest } from "../../core/node.ts";
import { clearCopied, ENTRY_SIZE, MAX_SNAPSHOTS, NO_ICOUNT } from "./format.ts";
import { hasBitmaps } from "./header.ts";
import {
  clearCopiedFlags,
  countTree,
  updateCopiedFlags,
} from "./references.ts";
import { resize } from "./resize.ts";
import { describeSnapshot } from "./snapshot_list.ts";
import {
  encodeSnapshotTable,
  readSnapshotL1,
  type SnapshotEntry,
} from "./snapshot_table.ts";
import type { Qcow2State, UndoSteps } from "./state.ts";
import { cutOff } from "./unmap.ts";

/** Find a snapshot by id, or else by name. */
function find(state: Qcow2State, idOrName: string): SnapshotEntry {
  const known = state.hasDataFile ? [] : state.snapshots;
  const found = known.find(({ id }) => id === idOrName) ??
    known.find(({ name }) => name === idOrName);
  if (!found) throw new BlockError("ENOENT", "Can't find the snapshot");
  return found;
}

/** Take a snapshot of the disk. */
export async function createSnapshot(
  state: Qcow2State,
  request: SnapshotRequest,
): Promise<Snapshot> {
  const { geometry, clusters, refcounts, header, file } = state;
  // Its clusters have no refcounts.
  if (state.hasDataFile) throw new BlockError("ENOTSUP");
  if (state.snapshots.length >= MAX_SNAPSHOTS) throw new BlockError("EFBIG");
  const now = request.date ?? Date.now();
  const entry: SnapshotEntry = {
    id: String(
      1 + Math.max(0, ...state.snapshots.map(({ id }) => toNumber(id))),
    ),
    name: request.name,
    l1TableOffset: 0,
    l1Size: header.l1Size,
    dateSeconds: Math.floor(now / 1000),
    dateNanoseconds: Math.floor(now % 1000 * 1e6),
    vmClockNanoseconds: request.vmClockNanoseconds ?? 0n,
    vmStateSize: request.vmStateSize ?? 0,
    diskSize: header.size,
    icount: request.icount ?? NO_ICOUNT,
    extraDataSize: 0,
    unknownExtraData: new Uint8Array(),
  };
  {
    using _ = await state.metadata.lock();
    await state.flushCaches();
    const l1 = clusters.l1Bytes;
    // An empty disk has no L1 table.
    const length = roundUp(l1.length, geometry.clusterSize);
    await state.changeAsOne(async (undo) => {
      entry.l1TableOffset = await refcounts.allocate(
        length / geometry.clusterSize,
      );
      // From here on, a failure leaks the new table, as in QEMU.
      const copy = allocate(length);
      copy.set(l1);
      clearCopied(copy);
      await state.overlap.check(entry.l1TableOffset, length);
      await file.writev!(entry.l1TableOffset, [copy]);
      await countTree(state, viewOf(l1), 1);
      undo.push(async () => {
        await countTree(state, viewOf(l1), -1);
        await updateCopiedFlags(state);
      });
      // In any order: an entry without the flag has its cluster copied before
      // it is written to. Both are durable before the header refers to the
      // table.
      await clearCopiedFlags(state);
      await writeTable(state, [...state.snapshots, entry]);
    });
  }
  // The VM state belongs to the snapshot now; in the active tables, it would
  // have to be copied when the next one is written.
  const start = geometry.vmStateOffset(state.header.size);
  await cutOff(
    state,
    start,
    start + roundUp(entry.vmStateSize, geometry.clusterSize),
    "never",
  );
  return describeSnapshot(entry);
}

function toNumber(id: string): number {
  return /^\d+$/.test(id) ? Number(id) : 0;
}

/** Revert the disk to a snapshot. */
export async function applySnapshot(
  state: Qcow2State,
  idOrName: string,
): Promise<void> {
  if (hasBitmaps(state.header) || state.bitmaps?.count) {
    // How the disk differs from the snapshot is not known.
    throw new BlockError("EBUSY", "Device has active dirty bitmaps");
  }
  if (state.hasDataFile) throw new BlockError("ENOTSUP");
  const entry = find(state, idOrName);
  const l1 = await readSnapshotL1(state.file, state.geometry, entry);
  await state.changeAsOne(async (undo) => {
    await makeRoom(state, entry, viewOf(l1), undo);
    using _ = await state.metadata.lock();
    await state.flushCaches();
    const { clusters, header } = state;
    const old = clusters.l1Bytes.slice();
    const replaced = allocate(header.l1Size * ENTRY_SIZE);
    replaced.set(l1);
    // All clusters of the disk are shared now, so no entry has its COPIED flag
    // yet.
    clearCopied(replaced);
    await state.overwrite(header.l1TableOffset, replaced, old);
    undo.push(cannotUndo);
    clusters.replaceL1(replaced);
    state.forgetTables();
    // In any order: refcounts that are too high are leaks, with or without the
    // flag.
    await countTree(state, viewOf(old), -1);
    await updateCopiedFlags(state);
  });
}

/** Do what may fail before the disk changes. */
async function makeRoom(
  state: Qcow2State,
  entry: SnapshotEntry,
  l1: DataView,
  undo: UndoSteps,
): Promise<void> {
  {
    // First of all: narrow refcounts may overflow.
    using _ = await state.metadata.lock();
    await countTree(state, l1, 1).catch((error) => {
      // QEMU reports the error code alone.
      const { code } = asBlockError(error);
      throw new BlockError(code, reasonOf(error), { cause: error });
    });
    undo.push(async () => {
      using _ = await state.metadata.lock();
      await countTree(state, l1, -1);
    });
  }
  if (entry.diskSize !== state.header.size) await resize(state, entry.diskSize);
  using _ = await state.metadata.lock();
  await state.clusters.growL1(entry.l1Size, true);
}

/** Stands for undoing a step that others may have seen. */
function cannotUndo(): Promise<never> {
  return Promise.reject(new Error("it is done"));
}

const FREEING = "Failed to free the cluster and L1 table: ";
const UPDATING = "Failed to update snapshot status in disk: ";

/** Delete a snapshot, and free what only it referred to. */
export async function deleteSnapshot(
  state: Qcow2State,
  idOrName: string,
): Promise<void> {
  const entry = find(state, idOrName);
  const l1 = await readSnapshotL1(state.file, state.geometry, entry);
  using _ = await state.metadata.lock();
  const others = state.snapshots.filter((other) => other !== entry);
  await writeTable(state, others).catch((error) => {
    throw asBlockError(error).prefixed(
      "Failed to remove snapshot from snapshot list: ",
    );
  });
  let step = FREEING;
  await state.changeAsOne(async (undo) => {
    undo.push(cannotUndo);
    await countTree(state, viewOf(l1), -1);
    await state.refcounts.free(entry.l1TableOffset, l1.length);
    step = UPDATING;
    await updateCopiedFlags(state);
  }).catch((error) => {
    throw asBlockError(error).prefixed(step);
  });
}

/** Present a snapshot in place of the disk. */
export async function loadSnapshot(
  state: Qcow2State,
  idOrName: string,
): Promise<void> {
  if (!state.readOnly) {
    throw new BlockError("EINVAL", "Device is not readonly");
  }
  const entry = find(state, idOrName);
  const l1 = await readSnapshotL1(state.file, state.geometry, entry);
  const needed = state.geometry.l1EntriesFor(entry.diskSize);
  if (entry.l1Size < needed) {
    throw new BlockError("EINVAL", "L1 table is too small");
  }
  using _ = await state.metadata.lock();
  state.forgetTables();
  state.clusters.replaceL1(l1);
  state.header.size = entry.diskSize;
}

/** Replace the table in the file; a new header switches to it in one step. */
export async function writeTable(
  state: Qcow2State,
  entries: SnapshotEntry[],
): Promise<void> {
  const { geometry, refcounts, header, file } = state;
  const bytes = encodeSnapshotTable(entries);
  const old = {
    offset: header.snapshotsOffset,
    length: state.snapshotTableLength,
  };
  const offset = bytes.length === 0
    ? 0
    : await refcounts.allocate(geometry.clustersFor(bytes.length));
  try {
    await state.overlap.check(offset, bytes.length);
    // The table may end the file, which must consist of whole sectors.
    if (bytes.length > 0) {
      await file.writev!(offset, padded(bytes, SECTOR_SIZE));
    }
    await state.flushCaches();
    await state.changeHeader({
      snapshotsOffset: offset,
      snapshotCount: entries.length,
    });
  } catch (error) {
    if (bytes.length > 0) await refcounts.add(offset, bytes.length, -1);
    throw error;
  }
  state.snapshots = entries;
  state.overlap.forget();
  state.snapshotTableLength = bytes.length;
  if (old.length === 0) return;
  // The new table is in effect: leaking the old one is no reason to undo it.
  await refcounts.free(old.offset, old.length);
}
