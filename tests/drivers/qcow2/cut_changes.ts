/**
 * Cuts the power during a change of an image, and examines what is left.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import type { OptionValues } from "../../../core/options.ts";
import { isEqual } from "../../../core/runtime.ts";
import { createImage, MemoryStore, openImage } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { contentOf, openBytes, storeOf } from "./bytes.ts";
import { assertSound, isDirty } from "./soundness.ts";

/** Power cuts during a change, spread evenly over its steps. */
const CUTS = 150;

/** A change, and what precedes it. */
export interface Change {
  /** Options of the image. */
  readonly create: OptionValues;
  /** The content of its backing file. */
  readonly backing?: Uint8Array;
  /** Options to open it with. */
  readonly options?: OptionValues;
  /** Done beforehand, and durable. */
  prepare(image: Image, random: Random): Promise<void>;
  /** Damage to the file. */
  damage?(bytes: Uint8Array): void;
  /** Whether the image is opened for repair. */
  readonly isRepair?: boolean;
  /** The change that the power cut interrupts. */
  change(image: Image): Promise<unknown>;
}

/** Repair everything that can be repaired. */
export async function repair(image: Image): Promise<void> {
  const all = { leaks: true, corruptions: true };
  await image.check({ repair: all });
}

/**
 * Make a change, and open what a power cut at any step may leave: the image is
 * sound or marked as dirty, and holds the old or the new content.
 */
export async function cutEverywhere(
  change: Change,
  random: Random,
): Promise<void> {
  const start = await makeImage(change, random);
  const log = new PowerLog(start);
  const before = await contentBefore(change, start);
  {
    await using image = await open(change, log, change.isRepair);
    await change.change(image);
  }
  const last = storeOf(contentNow(log));
  if (change.isRepair) await assertWhole(last);
  const after = await read(change, last);
  const snapshots = [
    ...change.isRepair ? [] : await snapshotsOf(change, storeOf(start)),
    ...await snapshotsOf(change, last),
  ];
  const damage = await damageOf(start);
  const wasDirty = await isDirty(storeOf(start));
  for (const { what, file } of cutsOf(log, random)) {
    try {
      const store = storeOf(file);
      if (change.isRepair) {
        // The original damage may still be there, unless the mark is gone.
        const isMended = wasDirty && !await isDirty(store);
        await assertNoWorse(file, isMended ? [] : damage);
        // The repair may have to be repeated, which must then succeed.
        await using image = await open(change, { store }, true);
        await repair(image);
        await image.close();
      }
      const isSound = change.isRepair || damage.length === 0;
      if (isSound && !await isDirty(store)) await assertSound(store);
      if (after.length < before.length) await assertEnds(store);
      assertEither(await read(change, store), before, after);
      for (const [id, bytes] of await snapshotsOf(change, store)) {
        const isKnown = snapshots.some(([known, content]) =>
          known === id && isEqual(content, bytes)
        );
        assert(isKnown, `snapshot ${id} has not what it was taken of`);
      }
    } catch (error) {
      throw new Error(`${what}: ${error}`, { cause: error });
    }
  }
}

function* cutsOf(log: PowerLog, random: Random) {
  const moments = Array.from(
    { length: CUTS },
    (_, index) => Math.floor(index * (log.now + 1) / CUTS),
  );
  for (const { moment, file } of log.cuts(moments, random)) {
    yield { what: `cut at ${moment} of ${log.now}`, file };
  }
  yield* log.reordered();
}

/** Assert that nothing is left to repair, not even a leak. */
async function assertWhole(store: MemoryStore): Promise<void> {
  const file = { driver: "memory", store };
  const stack = { driver: "qcow2", file, backing: null };
  await using image = await openImage(stack, { readOnly: true });
  const { corruptions, leaks, checkErrors } = await image.check();
  assertEquals([corruptions, leaks, checkErrors], [0, 0, 0]);
}

/**
 * Assert that nothing is mapped past the end: QEMU would show it when the disk
 * grows.
 */
async function assertEnds(store: MemoryStore): Promise<void> {
  const node = await openBytes(contentOf(store), { readOnly: true });
  const { allocatedClusters, totalClusters } = await node.image!.check!();
  await node.close();
  assert(allocatedClusters <= totalClusters, "more clusters than the disk has");
}

/** What a check reports, except for leaks. */
async function damageOf(bytes: Uint8Array): Promise<string[]> {
  const lines: string[] = [];
  const node = await openBytes(bytes, { purpose: "check", readOnly: true });
  // Where bitmaps are damaged, the check ends early.
  await node.image!.check!({ report: (line) => lines.push(line) })
    .catch((error) => lines.push(String(error)));
  await node.close();
  return lines.filter((line) => !line.startsWith("Leaked cluster"));
}

/** Assert that an interrupted repair has broken nothing that was sound. */
async function assertNoWorse(
  bytes: Uint8Array,
  damage: readonly string[],
): Promise<void> {
  const found = await damageOf(bytes);
  assertEquals(found.filter((line) => !damage.includes(line)), []);
}

async function makeImage(
  change: Change,
  random: Random,
): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, change.create);
  {
    await using image = await open(change, { store });
    await change.prepare(image, random);
  }
  const bytes = contentOf(store);
  change.damage?.(bytes);
  return bytes;
}

/** The content as it reads, damaged or not. */
async function contentBefore(
  change: Change,
  start: Uint8Array,
): Promise<Uint8Array> {
  const store = storeOf(start);
  if (change.isRepair) {
    await using image = await open(change, { store }, true);
    await repair(image);
  }
  return await read(change, store);
}

function contentNow(log: PowerLog): Uint8Array {
  return log.cut(log.now, new Random(1));
}

function open(
  { backing, options }: Change,
  file: PowerLog | { store: MemoryStore },
  isCheck = false,
  readOnly = false,
): Promise<Image> {
  const below = backing && {
    driver: "raw",
    file: { driver: "memory", store: storeOf(backing) },
  };
  return openImage({
    driver: "qcow2",
    file: file instanceof PowerLog ? file : { driver: "memory", ...file },
    backing: below ?? null,
    "pass-discard-other": true,
    ...options,
  }, { readOnly, ...(isCheck && { purpose: "check" as const }) });
}

async function read(change: Change, store: MemoryStore): Promise<Uint8Array> {
  await using image = await open(change, { store });
  return await image.read(0, image.size);
}

/** What the snapshots hold, by their ids. */
async function snapshotsOf(
  change: Change,
  store: MemoryStore,
): Promise<[id: string, content: Uint8Array][]> {
  const found: [string, Uint8Array][] = [];
  const list = async () => {
    await using image = await open(change, { store }, false, true);
    return await image.node.snapshots!.list();
  };
  for (const { id } of await list()) {
    await using image = await open(change, { store }, false, true);
    await image.node.snapshots!.loadTemporary(id);
    found.push([id, await image.read(0, image.size)]);
  }
  return found;
}

/** Assert that each byte is old or new, and so is the size. */
function assertEither(
  found: Uint8Array,
  before: Uint8Array,
  after: Uint8Array,
): void {
  assertEquals([before.length, after.length].includes(found.length), true);
  for (let at = 0; at < found.length; at++) {
    // Past the end of either content, zeroes are expected.
    if (found[at] === (before[at] ?? 0)) continue;
    if (found[at] === (after[at] ?? 0)) continue;
    throw new Error(`byte ${at} is ${found[at]}: neither old nor new`);
  }
}
