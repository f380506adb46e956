import { assert, assertEquals } from "@std/assert";
import {
  type Held,
  Mutex,
  RangeLock,
  type RangePlace,
  SharedLock,
} from "../../core/lock.ts";
import { Random, seedsToRun } from "../model.ts";

/** Let everything proceed that can. */
async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await null;
}

/** Records when locks are granted, and releases them. */
class Log {
  readonly granted: string[] = [];
  readonly #held = new Map<string, Held>();

  async ask(name: string, asked: Held | Promise<Held>): Promise<void> {
    const held = await asked;
    this.granted.push(name);
    this.#held.set(name, held);
  }

  async release(...names: string[]): Promise<void> {
    for (const name of names) {
      this.#held.get(name)![Symbol.dispose]();
      this.#held.delete(name);
      await settle();
    }
  }
}

Deno.test("Mutex has one holder at a time, in the order of arrival", async () => {
  const mutex = new Mutex();
  const log = new Log();
  for (const name of ["a", "b", "c"]) log.ask(name, mutex.lock());
  await settle();
  assertEquals(log.granted, ["a"]);
  await log.release("a");
  assertEquals(log.granted, ["a", "b"]);
  // A newcomer does not get in between.
  log.ask("d", mutex.lock());
  await log.release("b", "c");
  assertEquals(log.granted, ["a", "b", "c", "d"]);
  await log.release("d");
  assert(!(mutex.lock() instanceof Promise));
});

Deno.test("SharedLock has many sharers, or one exclusive holder", async () => {
  const lock = new SharedLock();
  const log = new Log();
  log.ask("r1", lock.share());
  log.ask("r2", lock.share());
  log.ask("w", lock.drain());
  log.ask("r3", lock.share());
  log.ask("r4", lock.share());
  await settle();
  // Later sharers wait behind the one that wants it exclusively.
  assertEquals(log.granted, ["r1", "r2"]);
  await log.release("r1", "r2");
  assertEquals(log.granted, ["r1", "r2", "w"]);
  await log.release("w");
  assertEquals(log.granted, ["r1", "r2", "w", "r3", "r4"]);
});

Deno.test("RangeLock lets requests run together that share or do not overlap", async () => {
  const lock = new RangeLock();
  const log = new Log();
  log.ask("r1", lock.acquire(0, 10, false));
  log.ask("r2", lock.acquire(5, 15, false));
  log.ask("w1", lock.acquire(15, 20, true));
  log.ask("w2", lock.acquire(20, 25, true));
  log.ask("w3", lock.acquire(9, 16, true));
  await settle();
  assertEquals(log.granted, ["r1", "r2", "w1", "w2"]);
  await log.release("r1", "r2");
  assertEquals(log.granted.length, 4);
  await log.release("w1");
  assertEquals(log.granted.at(-1), "w3");
});

Deno.test("RangeLock serves a writer among readers that overlap each other", async () => {
  const lock = new RangeLock();
  const log = new Log();
  log.ask("r0", lock.acquire(0, 10, false));
  await settle();
  log.ask("writer", lock.acquire(0, 10, true));
  await settle();
  // There is always a reader: each comes before the last one has left.
  for (let i = 1; i < 5; i++) log.ask(`r${i}`, lock.acquire(0, 10, false));
  await settle();
  await log.release("r0");
  assertEquals(log.granted, ["r0", "writer"]);
  await log.release("writer");
  assertEquals(log.granted, ["r0", "writer", "r1", "r2", "r3", "r4"]);
});

Deno.test("RangeLock lets requests pass that nobody ahead conflicts with", async () => {
  const lock = new RangeLock();
  const log = new Log();
  log.ask("w1", lock.acquire(0, 10, true));
  log.ask("w2", lock.acquire(0, 20, true));
  log.ask("w3", lock.acquire(15, 30, true));
  log.ask("w4", lock.acquire(20, 30, true));
  log.ask("w5", lock.acquire(40, 50, true));
  await settle();
  assertEquals(log.granted, ["w1", "w5"]);
  await log.release("w1");
  await log.release("w2", "w3");
  assertEquals(log.granted, ["w1", "w5", "w2", "w3", "w4"]);
});

Deno.test("RangeLock lets a waiting request be overtaken a limited number of times", async () => {
  const lock = new RangeLock(2);
  const log = new Log();
  log.ask("w1", lock.acquire(0, 10, true));
  log.ask("w2", lock.acquire(0, 20, true));
  await settle();
  for (const name of ["r1", "r2", "r3"]) {
    log.ask(name, lock.acquire(10, 20, false));
  }
  // These do not conflict with the waiting request, and do not count.
  log.ask("apart", lock.acquire(30, 40, true));
  await settle();
  assertEquals(log.granted, ["w1", "r1", "r2", "apart"]);
  await log.release("w1", "r1", "r2");
  assertEquals(log.granted.slice(4), ["w2"]);
  await log.release("w2");
  assertEquals(log.granted.slice(4), ["w2", "r3"]);
});

Deno.test("RangeLock forgets whoever leaves the queue", async () => {
  const lock = new RangeLock();
  const log = new Log();
  log.ask("r1", lock.acquire(0, 10, false));
  await settle();
  const place = lock.conflict(0, 10, true)!;
  log.ask("r2", lock.acquire(0, 10, false));
  await settle();
  assertEquals(log.granted, ["r1"]);
  place[Symbol.dispose]();
  place[Symbol.dispose]();
  await settle();
  assertEquals(log.granted, ["r1", "r2"]);
});

Deno.test("RangeLock keeps a place whose range changes", async () => {
  const lock = new RangeLock();
  const log = new Log();
  log.ask("w1", lock.acquire(0, 10, true));
  await settle();
  let place: RangePlace | undefined = lock.conflict(0, 10, true);
  log.ask("w2", lock.acquire(0, 30, true));
  await log.release("w1");
  // It stays ahead of the second one, even for a range it had not asked for.
  place = lock.conflict(20, 30, true, place);
  assertEquals(place, undefined);
  log.ask("w3", Promise.resolve(lock.hold(20, 30, true)));
  await settle();
  assertEquals(log.granted, ["w1", "w3"]);
  await log.release("w3");
  assertEquals(log.granted, ["w1", "w3", "w2"]);
});

Deno.test("RangeLock grants every request eventually, and never conflicting ones", async () => {
  for (const seed of seedsToRun(50)) {
    const random = new Random(seed);
    const lock = new RangeLock(random.below(3));
    const held: { start: number; end: number; alone: boolean }[] = [];
    let granted = 0;
    const request = async () => {
      const start = random.below(50);
      const own = {
        start,
        end: start + 1 + random.below(20),
        alone: random.oneIn(3),
      };
      using _ = await lock.acquire(own.start, own.end, own.alone);
      for (const { start, end, alone } of held) {
        const overlaps = start < own.end && own.start < end;
        assert(!overlaps || !(alone || own.alone), `seed ${seed}`);
      }
      held.push(own);
      for (let ticks = random.below(10); ticks > 0; ticks--) await null;
      held.splice(held.indexOf(own), 1);
      granted++;
    };
    const requests: Promise<void>[] = [];
    for (let i = 0; i < 100; i++) {
      requests.push(request());
      for (let ticks = random.below(4); ticks > 0; ticks--) await null;
    }
    await Promise.all(requests);
    assertEquals(granted, 100);
  }
});
