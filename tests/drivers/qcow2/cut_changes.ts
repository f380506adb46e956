/**
 * Cuts the power during a change of an image, and looks at what that leaves.
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

/** Cuts of a change, spread evenly over its steps. */
const CUTS = 150;

/** A change, and what comes before it. */
export interface Change {
  /** What the image is made with. */
  readonly create: OptionValues;
  /** What lies below it. */
  readonly backing?: Uint8Array;
  /** What it is opened with. */
  readonly options?: OptionValues;
  /** Done before, and durable. */
  prepare(image: Image, random: Random): Promise<void>;
  /** Damage done to the file. */
  damage?(bytes: Uint8Array): void;
  /** Whether it is opened to be repaired. */
  readonly isRepair?: boolean;
  /** What is cut off. */
  change(image: Image): Promise<unknown>;
}

/** Repair all that can be. */
export async function repair(image: Image): Promise<void> {
  const all = { leaks: true, corruptions: true };
  await image.check({ repair: all });
}

/**
 * Do a change, and open what power cuts may leave of it: it is sound or says that
 * it is not, and holds what it held before or what it is to hold.
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
        // As much as was damaged may still be, unless no mark says so any more.
        const isMended = wasDirty && !await isDirty(store);
        await assertNoWorse(file, isMended ? [] : damage);
        // It may have to be done again, and then is done.
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

/** Nothing is left to repair, not even a leak. */
async function assertWhole(store: MemoryStore): Promise<void> {
  const file = { driver: "memory", store };
  const stack = { driver: "qcow2", file, backing: null };
  await using image = await openImage(stack, { readOnly: true });
  const { corruptions, leaks, checkErrors } = await image.check();
  assertEquals([corruptions, leaks, checkErrors], [0, 0, 0]);
}

/** Nothing is mapped past the end: QEMU shows it again when the disk grows. */
async function assertEnds(store: MemoryStore): Promise<void> {
  const node = await openBytes(contentOf(store), { readOnly: true });
  const { allocatedClusters, totalClusters } = await node.image!.check!();
  await node.close();
  assert(allocatedClusters <= totalClusters, "more clusters than the disk has");
}

/** What a check says of an image, leaks apart. */
async function damageOf(bytes: Uint8Array): Promise<string[]> {
  const lines: string[] = [];
  const node = await openBytes(bytes, { purpose: "check", readOnly: true });
  // Where bitmaps are damaged, it ends early.
  await node.image!.check!({ report: (line) => lines.push(line) })
    .catch((error) => lines.push(String(error)));
  await node.close();
  return lines.filter((line) => !line.startsWith("Leaked cluster"));
}

/** A repair that was cut off has broken nothing that was whole. */
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

/** What it reads as, damaged or not. */
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

/** Each byte is what it was or what it is to be; and so is the size. */
function assertEither(
  found: Uint8Array,
  before: Uint8Array,
  after: Uint8Array,
): void {
  assertEquals([before.length, after.length].includes(found.length), true);
  for (let at = 0; at < found.length; at++) {
    // What is past the end of either is zeroes there.
    if (found[at] === (before[at] ?? 0)) continue;
    if (found[at] === (after[at] ?? 0)) continue;
    throw new Error(`byte ${at} is ${found[at]}: neither old nor new`);
  }
}
