/** The snapshot table: entries survive encoding and decoding. @module */
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { openProtocol } from "../../../core/open.ts";
import { BlockError, type BlockNode, MemoryStore } from "../../../mod.ts";
import type { Header } from "../../../drivers/qcow2/header.ts";
import {
  encodeSnapshotTable,
  isIncomplete,
  readSnapshotTable,
  type SnapshotEntry,
} from "../../../drivers/qcow2/snapshot_table.ts";

const ENTRY: SnapshotEntry = {
  id: "1",
  name: "before the update",
  l1TableOffset: 0x30000,
  l1Size: 4,
  dateSeconds: 1700000000,
  dateNanoseconds: 123456789,
  vmClockNanoseconds: 2n ** 62n + 1n,
  vmStateSize: 5 * 2 ** 32,
  diskSize: 64 * 2 ** 30,
  icount: 2n ** 64n - 1n,
  extraDataSize: 24,
  unknownExtraData: new Uint8Array(),
};

/** A file with the table at offset 65536. */
async function fileWith(table: Uint8Array): Promise<BlockNode> {
  const store = new MemoryStore();
  store.write(65536, table);
  return await openProtocol({ driver: "memory", store });
}

function headerOf(snapshotCount: number): Header {
  return {
    version: 3,
    size: 2 ** 20,
    snapshotCount,
    snapshotsOffset: 65536,
  } as Header;
}

async function roundTrip(entries: SnapshotEntry[]) {
  const table = encodeSnapshotTable(entries);
  const header = headerOf(entries.length);
  return await readSnapshotTable(await fileWith(table), header);
}

Deno.test("readSnapshotTable() returns what encodeSnapshotTable() was given", async () => {
  const second = { ...ENTRY, id: "2", name: "ünïcode", vmStateSize: 7 };
  const { entries, byteLength } = await roundTrip([ENTRY, second]);
  assertEquals(entries, [ENTRY, second]);
  assertEquals(byteLength, encodeSnapshotTable([ENTRY, second]).length);
});

Deno.test("readSnapshotTable() keeps unknown extra data", async () => {
  const unknownExtraData = Uint8Array.of(1, 2, 3, 4, 5);
  const entry = { ...ENTRY, extraDataSize: 29, unknownExtraData };
  const { entries } = await roundTrip([entry, ENTRY]);
  assertEquals(entries, [entry, ENTRY]);
});

Deno.test("readSnapshotTable() keeps names that are not UTF-8", async () => {
  const rawName = Uint8Array.of(0x41, 0xff, 0x42);
  const entry = { ...ENTRY, name: "A\ufffdB", rawName };
  assertEquals((await roundTrip([entry])).entries, [entry]);
});

Deno.test("readSnapshotTable() keeps fields too large for a number", async () => {
  const { entries } = await roundTrip([{
    ...ENTRY,
    huge: { diskSize: 2n ** 63n + 1n },
  }]);
  assertEquals(entries[0].huge, { diskSize: 2n ** 63n + 1n });
});

Deno.test("readSnapshotTable() takes entries of version 2 for disk snapshots", async () => {
  const table = encodeSnapshotTable([{ ...ENTRY, vmStateSize: 9 }]);
  // Without extra data, as programs before QEMU 0.14 wrote them.
  const old = new Uint8Array(table.length - 24);
  old.set(table.subarray(0, 40));
  old.set(table.subarray(64), 40);
  new DataView(old.buffer).setUint32(36, 0);
  const { entries } = await readSnapshotTable(
    await fileWith(old),
    headerOf(1),
  );
  assertEquals(entries[0].name, ENTRY.name);
  assertEquals(entries[0].vmStateSize, 9);
  assertEquals(entries[0].diskSize, 2 ** 20);
  assertEquals(isIncomplete(entries[0], 2), false);
  assertEquals(isIncomplete(entries[0], 3), true);
});

Deno.test("readSnapshotTable() refuses too much extra data, or truncates it", async () => {
  const table = encodeSnapshotTable([ENTRY]);
  new DataView(table.buffer, table.byteOffset).setUint32(36, 2000);
  const file = await fileWith(table);
  const error = await assertRejects(
    () => readSnapshotTable(file, headerOf(1)),
    BlockError,
    "Too much extra metadata in snapshot table entry 0",
  );
  assertEquals(error.code, "EFBIG");
  const lines: string[] = [];
  const repair = {
    discarded: 0,
    shortened: 0,
    report: (line: string) => void lines.push(line),
  };
  const { entries } = await readSnapshotTable(file, headerOf(1), repair);
  assertEquals(entries[0].extraDataSize, 1024);
  assertEquals(repair.shortened, 1);
  assertEquals(lines.length, 1);
});

Deno.test("encodeSnapshotTable() refuses what does not fit", () => {
  const name = "x".repeat(65536);
  assertThrows(() => encodeSnapshotTable([{ ...ENTRY, name }]), BlockError);
});
