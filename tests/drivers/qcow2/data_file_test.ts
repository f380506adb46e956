/**
 * Guest data in an external file: what is written where, and in which order.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { roundUp } from "../../../core/bytes.ts";
import { filterNode } from "../../../core/filter.ts";
import { openProtocol } from "../../../core/open.ts";
import type { BlockNode } from "../../../core/node.ts";
import { isEqual } from "../../../core/runtime.ts";
import { memoryDriver } from "../../../drivers/memory.ts";
import type { Behaviour } from "../../../drivers/qcow2/behaviour.ts";
import { QUIET } from "../../../drivers/qcow2/create.ts";
import { checkImage } from "../../../drivers/qcow2/check.ts";
import { makeEmpty } from "../../../drivers/qcow2/empty.ts";
import { Autoclear, Incompatible } from "../../../drivers/qcow2/format.ts";
import { readHeader } from "../../../drivers/qcow2/header.ts";
import { resize } from "../../../drivers/qcow2/resize.ts";
import { Qcow2State } from "../../../drivers/qcow2/state.ts";
import { discardGuest, zeroGuest } from "../../../drivers/qcow2/unmap.ts";
import { writeCompressedGuest } from "../../../drivers/qcow2/write_compressed.ts";
import { BlockError, MemoryStore } from "../../../mod.ts";
import { faultyNode } from "../../fault_disk.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { contentOf, newImage, storeOf } from "./bytes.ts";

const CLUSTER = 4096;
const SIZE = 65536;

/** An image whose header announces a data file. */
async function imageBytes(): Promise<Uint8Array> {
  const bytes = await newImage();
  bytes[79] |= Incompatible.DATA_FILE;
  return bytes;
}

async function stateOf(
  file: BlockNode,
  dataFile: BlockNode,
  passesDiscard = true,
): Promise<Qcow2State> {
  const header = await readHeader(file, {
    readOnly: false,
    forCheck: false,
    warn: () => {},
  });
  const { passDiscard } = QUIET;
  const request = passesDiscard;
  const behaviour: Behaviour = {
    ...QUIET,
    passDiscard: { ...passDiscard, request },
  };
  const caches = { l2: 1024, l2Entry: 512, refcount: 2 * CLUSTER };
  const state = new Qcow2State(
    file,
    header,
    false,
    caches,
    behaviour,
    dataFile,
  );
  await state.openData();
  await state.load();
  return state;
}

function memoryNode(store: MemoryStore): Promise<BlockNode> {
  return openProtocol({ driver: "memory", store });
}

/** A new image, with its two files in memory. */
async function newState(dataSize = 0) {
  const store = storeOf(await imageBytes());
  const dataStore = new MemoryStore();
  if (dataSize > 0) dataStore.write(0, new Uint8Array(dataSize).fill(0xee));
  const dataFile = await memoryNode(dataStore);
  const state = await stateOf(await memoryNode(store), dataFile);
  return { state, store, dataStore, dataFile };
}

async function flush(state: Qcow2State): Promise<void> {
  using _ = await state.metadata.lock();
  await state.flushCaches();
}

async function diskOf(state: Qcow2State): Promise<Uint8Array> {
  const bytes = new Uint8Array(SIZE);
  await state.access.readv(0, [bytes]);
  return bytes;
}

async function assertSound(state: Qcow2State): Promise<void> {
  await flush(state);
  const said: string[] = [];
  const { leaks, corruptions } = await checkImage(state, {
    report: (line) => said.push(line),
  });
  assertEquals([leaks, corruptions, said], [0, 0, []]);
}

const filled = (length: number, value: number) =>
  new Uint8Array(length).fill(value);

Deno.test("guest data has the same offset in the data file as on the disk", async () => {
  const { state, store, dataStore, dataFile } = await newState();
  const disk = new Uint8Array(SIZE);
  for (const [offset, length] of [[0, 10_000], [30_000, 100], [4000, 200]]) {
    const bytes = filled(length, 1 + offset % 255);
    await state.access.writev(offset, [bytes]);
    disk.set(bytes, offset);
  }
  await flush(state);
  assertEquals(contentOf(dataStore), disk.subarray(0, 30_100));
  assertEquals(await diskOf(state), disk);
  const first = await state.access.status(0, SIZE);
  assertEquals([first.hostOffset, first.length], [0, 3 * CLUSTER]);
  assertEquals(first.file, dataFile);
  // Offset 0 is valid; entries have COPIED set, but data clusters no refcounts.
  const file = contentOf(store);
  const view = new DataView(file.buffer);
  const l2 = Number(view.getBigUint64(view.getUint32(44)) & 0xffffffffffff00n);
  assertEquals(view.getBigUint64(l2), 1n << 63n);
  assertEquals(view.getBigUint64(l2 + 8), 1n << 63n | BigInt(CLUSTER));
  // Only the L2 table was added to the image.
  assertEquals(file.length, l2 + CLUSTER);
  await assertSound(state);
  const again = await stateOf(
    await memoryNode(store),
    await memoryNode(dataStore),
  );
  assertEquals(await diskOf(again), disk);
});

Deno.test("old content of the data file does not show", async () => {
  const { state } = await newState(SIZE);
  assertEquals(await diskOf(state), new Uint8Array(SIZE));
  await state.access.writev(5000, [filled(10, 7)]);
  const disk = new Uint8Array(SIZE);
  disk.fill(7, 5000, 5010);
  assertEquals(await diskOf(state), disk);
});

Deno.test("zeroing and discarding clusters of a data file", async () => {
  const { state, dataStore } = await newState();
  await state.access.writev(0, [filled(SIZE, 5)]);
  await zeroGuest(state, 0, CLUSTER);
  await zeroGuest(state, CLUSTER, CLUSTER, { unmap: true });
  await discardGuest(state, 2 * CLUSTER, CLUSTER);
  const disk = filled(SIZE, 5).fill(0, 0, 3 * CLUSTER);
  assertEquals(await diskOf(state), disk);
  // The first one stays allocated; the others are freed.
  const data = disk.slice().fill(5, 0, CLUSTER);
  assertEquals(contentOf(dataStore), data);
  await state.access.writev(CLUSTER + 1, [filled(1, 6)]);
  disk[CLUSTER + 1] = 6;
  assertEquals(await diskOf(state), disk);
  await assertSound(state);
});

Deno.test("holes are punched in a data file only once no durable entry refers to them", async () => {
  const file = new PowerLog(await imageBytes());
  let atDiscard: number | undefined;
  const data = filterNode(memoryDriver, new PowerLog(new Uint8Array()), {
    discard() {
      atDiscard = file.now;
      return Promise.resolve();
    },
  });
  const state = await stateOf(file, data);
  await state.access.writev(0, [filled(CLUSTER, 1)]);
  await flush(state);
  await discardGuest(state, 0, CLUSTER);
  assert(atDiscard !== undefined);
  for (let seed = 0; seed < 20; seed++) {
    const bytes = file.cut(atDiscard, new Random(seed));
    const left = await stateOf(await memoryNode(storeOf(bytes)), data);
    assertEquals((await left.clusters.map(0, CLUSTER)).kind, "zero");
  }
});

Deno.test("a write waits for the discard of its cluster in the data file", async () => {
  const begun = Promise.withResolvers<void>();
  const discarding = Promise.withResolvers<void>();
  const below = await memoryNode(new MemoryStore());
  const data = filterNode(memoryDriver, below, {
    async discard(offset, length) {
      begun.resolve();
      await discarding.promise;
      await below.discard!(offset, length);
    },
  });
  const state = await stateOf(
    await memoryNode(storeOf(await imageBytes())),
    data,
  );
  await state.access.writev(0, [filled(2 * CLUSTER, 1)]);
  const discard = discardGuest(state, 0, CLUSTER);
  await begun.promise;
  const write = state.access.writev(100, [filled(10, 2)]);
  // The discard of another cluster does not hold it up.
  await state.access.writev(CLUSTER, [filled(10, 3)]);
  discarding.resolve();
  await Promise.all([discard, write]);
  const disk = new Uint8Array(SIZE).fill(1, CLUSTER, 2 * CLUSTER);
  disk.fill(2, 100, 110).fill(3, CLUSTER, CLUSTER + 10);
  assertEquals(await diskOf(state), disk);
});

Deno.test("preallocation reserves space in the data file", async () => {
  const { state, store, dataStore } = await newState();
  const before = store.size;
  await resize(state, 2 * SIZE, { preallocation: "full" });
  assertEquals(dataStore.size, 2 * SIZE);
  // In the image itself, only the L2 table.
  assertEquals(store.size, roundUp(before, CLUSTER) + CLUSTER);
  assertEquals((await state.access.status(SIZE, SIZE)).hostOffset, SIZE);
  await assertSound(state);
});

Deno.test("clusters in a data file cannot be compressed", async () => {
  const { state } = await newState();
  const error = await assertRejects(
    () => writeCompressedGuest(state, 0, [filled(CLUSTER, 1)]),
    BlockError,
  );
  assertEquals(error.code, "ENOTSUP");
});

Deno.test("a failing data file leaves the disk as it was", async () => {
  const store = storeOf(await imageBytes());
  const { node } = faultyNode(await memoryNode(new MemoryStore()), {
    kind: "writev",
    after: 1,
    code: "ENOSPC",
    once: true,
  });
  const state = await stateOf(await memoryNode(store), node);
  await state.access.writev(0, [filled(CLUSTER, 1)]);
  const before = await diskOf(state);
  await assertRejects(
    () => state.access.writev(CLUSTER, [filled(CLUSTER, 2)]),
    BlockError,
  );
  assertEquals(await diskOf(state), before);
  await assertSound(state);
});

/** A raw data file, and its image, in which all clusters are allocated. */
async function rawImage(extended: boolean): Promise<Uint8Array> {
  const bytes = await newImage({
    preallocation: "metadata",
    ...(extended && { extended_l2: true, cluster_size: 16384 }),
  });
  bytes[79] |= Incompatible.DATA_FILE;
  bytes[95] |= Autoclear.RAW_EXTERNAL_DATA;
  const view = new DataView(bytes.buffer);
  const cluster = 2 ** view.getUint32(20);
  const l1 = view.getUint32(44);
  const l2 = Number(view.getBigUint64(l1) & 0xffffffffffff00n);
  for (let at = 0; at < SIZE; at += cluster) {
    const entry = l2 + at / cluster * (extended ? 16 : 8);
    view.setBigUint64(entry, 1n << 63n | BigInt(at));
  }
  // The clusters preallocated in the image itself are no longer used.
  return bytes.subarray(0, l2 + cluster);
}

for (const extended of [false, true]) {
  const what = extended ? "subclusters" : "clusters";
  Deno.test(`a raw data file has the disk's content, whatever becomes of ${what}`, async () => {
    const random = new Random(7);
    const disk = new Uint8Array(SIZE);
    const dataStore = storeOf(disk);
    const state = await stateOf(
      await memoryNode(storeOf(await rawImage(extended))),
      await memoryNode(dataStore),
      extended,
    );
    for (let step = 0; step < 100; step++) {
      const requests = Array.from({ length: 1 + random.below(4) }, () => {
        const offset = random.below(SIZE);
        const length = Math.min(SIZE - offset, 1 + random.below(30_000));
        switch (random.below(3)) {
          case 0:
            return state.access.writev(offset, [filled(length, step)]);
          case 1:
            return zeroGuest(state, offset, length, {
              unmap: random.oneIn(2),
            });
          default:
            return discardGuest(state, offset, length);
        }
      });
      await Promise.all(requests);
      assertEquals(await diskOf(state), contentOf(dataStore));
    }
    await makeEmpty(state);
    assertEquals(contentOf(dataStore), new Uint8Array(SIZE));
  });
}

Deno.test("zeroes that a raw data file refuses change neither it nor the disk", async () => {
  type Request = (state: Qcow2State) => Promise<unknown>;
  const requests: { [name: string]: Request } = {
    "zeroes": (state) => zeroGuest(state, 0, SIZE / 2),
    "zeroes that free clusters": (state) =>
      zeroGuest(state, 0, SIZE / 2, { unmap: true }),
    "zeroes in part of a cluster": (state) => zeroGuest(state, 512, 3072),
    "a discard": (state) => discardGuest(state, 0, SIZE / 2),
  };
  for (const [what, request] of Object.entries(requests)) {
    for (const extended of [false, true]) {
      const store = storeOf(await rawImage(extended));
      const dataStore = new MemoryStore();
      const data = await memoryNode(dataStore);
      const full = await stateOf(await memoryNode(store), data);
      await full.access.writev(0, [filled(SIZE, 1)]);
      await flush(full);
      const { node } = faultyNode(data, {
        kind: "writev",
        after: 0,
        code: "EIO",
        once: false,
      });
      const state = await stateOf(await memoryNode(store), node);
      await assertRejects(() => request(state), BlockError, undefined, what);
      const same = isEqual(await diskOf(state), contentOf(dataStore));
      assertEquals([what, same], [what, true]);
    }
  }
});

/** Random requests; what the disk may hold at each moment of two power logs. */
async function recordHistory(random: Random, passesDiscard: boolean) {
  /** The contents of the disk since the last flush, and at it. */
  let disks = [new Uint8Array(SIZE)];
  const moments: { at: [file: number, data: number]; disks: Uint8Array[] }[] =
    [];
  const note = () => moments.push({ at: [file.now, data.now], disks });
  const file = new PowerLog(await imageBytes(), note);
  const data = new PowerLog(filled(SIZE, 0xee), note);
  const state = await stateOf(file, data, passesDiscard);
  for (let step = 0; step < 60; step++) {
    const disk = disks.at(-1)!.slice();
    const offset = 512 * random.below(SIZE / 512);
    const length = Math.min(SIZE - offset, 512 * (1 + random.below(40)));
    disks.push(disk);
    switch (random.below(5)) {
      case 0:
        disk.fill(0, offset, offset + length);
        await zeroGuest(state, offset, length, { unmap: random.oneIn(2) });
        break;
      case 1: {
        const start = Math.ceil(offset / CLUSTER) * CLUSTER;
        const end = offset + length - (offset + length) % CLUSTER;
        if (start < end) disk.fill(0, start, end);
        await discardGuest(state, offset, length);
        break;
      }
      case 2:
        await flush(state);
        disks = [disk];
        break;
      default:
        disk.fill(step + 1, offset, offset + length);
        await state.access.writev(offset, [filled(length, step + 1)]);
    }
    assertEquals(await diskOf(state), disks.at(-1));
  }
  return { file, data, moments };
}

for (const seed of seedsToRun(4)) {
  Deno.test(`with a data file, the power may fail at any step (seed ${seed})`, async () => {
    const random = new Random(seed);
    const passesDiscard = seed % 2 === 0;
    const { file, data, moments } = await recordHistory(random, passesDiscard);
    assert(moments.length > 0);
    for (const { at: [fileNow, dataNow], disks } of moments) {
      const left = await stateOf(
        await memoryNode(storeOf(file.cut(fileNow, random))),
        await memoryNode(storeOf(data.cut(dataNow, random))),
      );
      const disk = await diskOf(left);
      for (let at = 0; at < SIZE; at += 512) {
        const found = disk[at];
        const may = disks.map((disk) => disk[at]);
        assert(may.includes(found), `${found} at ${at}, not among ${may}`);
      }
    }
  });
}
