/**
 * Moving data where a format's map says it lies: splitting requests into runs,
 * reading backing files, copying what a new unit keeps of the old one.
 *
 * A request holds the whole range of the disk that it touches, from looking it
 * up to the end of the move, and queues once for all of it: one that waited for
 * a range while it held another could wait for somebody who waits for it. What
 * is mapped cannot change while it is held.
 *
 * @module
 */
import { unlessAborted } from "./abort.ts";
import type { Allocation, BlockMap, Run } from "./block_map.ts";
import {
  allocate,
  fillVector,
  type IoVector,
  roundDown,
  roundUp,
  sliceVector,
  vectorLength,
} from "./bytes.ts";
import { InFlight } from "./in_flight.ts";
import { type HeldRange, RangeLock, type RangePlace } from "./lock.ts";
import type { BlockNode, Extent, ReadFlags } from "./node.ts";
import { readPadded } from "./requests.ts";

/** What is moved for. */
export interface AccessHost {
  /** Bytes of the disk now. */
  readonly size: number;
  /** What unallocated ranges are left to. */
  readonly backing?: BlockNode;
}

/** The data verbs of a node, by way of its map. */
export class Access {
  readonly #host: AccessHost;
  readonly #map: BlockMap;
  readonly #ranges = new RangeLock();

  constructor(host: AccessHost, map: BlockMap) {
    this.#host = host;
    this.#map = map;
  }

  /** Fill `iov` with the bytes from `offset` on, all of them of the disk. */
  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const { unit } = this.#map;
    const end = offset + vectorLength(iov);
    const held = await this.#ranges.acquire(
      roundDown(offset, unit),
      roundUp(end, unit),
      false,
      flags?.signal,
    );
    try {
      await this.#readHeld(offset, iov, flags);
    } finally {
      held[Symbol.dispose]();
    }
  }

  async #readHeld(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    const moves = new InFlight(flags?.signal);
    for (let done = 0; done < length && !moves.hasFailed;) {
      const at = offset + done;
      const run = this.#map.lookup(at, length - done);
      if (!run) {
        // The others go on meanwhile; if this fails they must have ended.
        await moves.whileUnderWay(this.#map.load(at));
        continue;
      }
      const part = sliceVector(iov, done, run.length);
      const reading = this.#readRun(run, at, part, flags);
      if (reading) await moves.add(reading);
      done += run.length;
    }
    await moves.end();
  }

  #readRun(
    run: Run,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> | undefined {
    const { backing } = this.#host;
    switch (run.kind) {
      case "data":
        return run.child!.readv(run.childOffset!, iov, flags);
      case "special":
        return this.#map.readSpecial!(run, offset, iov);
      case "unallocated":
        if (backing) return readPadded(backing, offset, iov, flags);
    }
    fillVector(iov, 0, run.length);
  }

  /** Write to a range of the disk; what is being allocated is done with first. */
  async writev(
    offset: number,
    iov: IoVector,
    signal?: AbortSignal,
  ): Promise<void> {
    const length = vectorLength(iov);
    const held = await this.#holdForWriting(offset, length, signal);
    try {
      const moves = new InFlight(signal);
      for (let done = 0; done < length && !moves.hasFailed;) {
        const at = offset + done;
        const run = this.#map.lookup(at, length - done);
        if (!run) {
          await moves.whileUnderWay(this.#map.load(at));
        } else if (run.isOwned) {
          const part = sliceVector(iov, done, run.length);
          await moves.add(run.child!.writev!(run.childOffset!, part));
          done += run.length;
        } else {
          const room = await moves.whileUnderWay(
            this.#map.allocate(at, run.length),
          );
          const take = Math.min(run.length, room.start + room.length - at);
          const part = sliceVector(iov, done, take);
          await moves.add(this.#writeInto(room, at, part));
          done += take;
        }
      }
      await moves.end();
    } finally {
      held[Symbol.dispose]();
    }
  }

  /**
   * Hold a range with others if it can be written in place, or else alone.
   * From looking to holding is one turn: nothing changes in between.
   */
  async #holdForWriting(
    offset: number,
    length: number,
    signal?: AbortSignal,
  ): Promise<HeldRange> {
    const { unit } = this.#map;
    const start = roundDown(offset, unit);
    const end = roundUp(offset + length, unit);
    let place: RangePlace | undefined;
    try {
      for (;;) {
        const run = this.#map.lookup(offset, length);
        const isInPlace = run?.isOwned === true && run.length >= length;
        place = this.#ranges.conflict(start, end, !isInPlace, place);
        if (!place) return this.#ranges.hold(start, end, !isInPlace);
        await unlessAborted(place.turn!, signal);
      }
    } finally {
      place?.[Symbol.dispose]();
    }
  }

  /** Write into new units, with what they keep of the old ones, and commit. */
  async #writeInto(
    room: Allocation,
    offset: number,
    iov: IoVector,
  ): Promise<void> {
    try {
      const end = offset + vectorLength(iov);
      const head = await this.#kept(room, room.start, offset);
      const tail = await this.#kept(room, end, room.start + room.length);
      const first = head ? room.start : offset;
      await room.child.writev!(
        room.childOffset + first - room.start,
        [...head ? [head] : [], ...iov, ...tail ? [tail] : []],
      );
    } catch (error) {
      await room.abort();
      throw error;
    }
    await room.commit();
  }

  /** What a new unit keeps of the old one; nothing if it is there already. */
  async #kept(
    { isZero }: Allocation,
    start: number,
    end: number,
  ): Promise<Uint8Array | undefined> {
    if (start === end) return undefined;
    if (isZero && await this.#readsAsZeroes(start, end)) return undefined;
    const bytes = allocate(end - start);
    await this.#readHeld(start, [bytes]);
    return bytes;
  }

  async #readsAsZeroes(start: number, end: number): Promise<boolean> {
    const { backing } = this.#host;
    while (start < end) {
      const run = this.#map.lookup(start, end - start);
      if (!run) {
        await this.#map.load(start);
        continue;
      }
      const isEmpty = run.kind === "unallocated" &&
        (!backing || start >= backing.size);
      if (run.kind !== "zero" && !isEmpty) return false;
      start += run.length;
    }
    return true;
  }

  /** What a range holds, in the terms of all nodes. */
  async status(offset: number, length: number): Promise<Extent> {
    let run: Run | undefined;
    while (!(run = this.#map.lookup(offset, length))) {
      await this.#map.load(offset);
    }
    const { kind, child, childOffset, mayHaveHoles } = run;
    return {
      length: run.length,
      allocated: kind !== "unallocated",
      zero: kind === "zero",
      compressed: kind === "special",
      ...(child && { file: child, hostOffset: childOffset }),
      ...(mayHaveHoles && { recurse: true }),
    };
  }
}
