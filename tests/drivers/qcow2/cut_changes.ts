/**
 * Cuts the power during a change of an image, and looks at what that leaves.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import type { OptionValues } from "../../../core/options.ts";
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
  const after = await read(change, storeOf(contentNow(log)));
  const damage = await damageOf(start);
  const wasDirty = await isDirty(storeOf(start));
  for (const { what, file } of cutsOf(log, random)) {
    try {
      const store = storeOf(file);
      if (change.isRepair) {
        // As much as was damaged may still be, unless no mark says so any more.
        const isMended = wasDirty && !await isDirty(store);
        await assertNoWorse(file, isMended ? 0 : damage);
        // It may have to be done again, and then is done.
        await using image = await open(change, { store }, true);
        await repair(image);
        await image.close();
      }
      const isSound = change.isRepair || damage === 0;
      if (isSound && !await isDirty(store)) await assertSound(store);
      assertEither(await read(change, store), before, after);
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

/** Corruptions of an image, and what could not be checked. */
async function damageOf(bytes: Uint8Array): Promise<number> {
  const node = await openBytes(bytes, { purpose: "check", readOnly: true });
  const { corruptions, checkErrors } = await node.image!.check!();
  await node.close();
  return corruptions + checkErrors;
}

/** What a repair leaves that was cut off may be used without another one. */
async function assertNoWorse(
  bytes: Uint8Array,
  damage: number,
): Promise<void> {
  const found = await damageOf(bytes);
  if (found > damage) throw new Error(`${damage} corruptions became ${found}`);
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
  }, { ...(isCheck && { purpose: "check" as const }) });
}

async function read(change: Change, store: MemoryStore): Promise<Uint8Array> {
  await using image = await open(change, { store });
  return await image.read(0, image.size);
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
