/**
 * Moving data between requests and the places that a format's map gives:
 * splitting requests into runs, reading backing files, copy-on-write.
 *
 * A request locks the whole range it touches, from lookup to the end of the
 * transfer, and takes it all at once: waiting for one range while holding
 * another could deadlock. A mapping cannot change while its range is held.
 *
 * Nothing creates a promise unless it has to wait: for small requests with
 * cached tables, each promise is noticeable.
 *
 * @module
 */
import { checkSignal, lockUnlessAborted, unlessAborted } from "./abort.ts";
import type { Allocation, BlockMap, Place, Run } from "./block_map.ts";
import {
  allocate,
  fillVector,
  type IoVector,
  roundDown,
  roundUp,
  sliceVector,
  vectorLength,
} from "./bytes.ts";
import type { OpenContext } from "./driver.ts";
import type { Encryption } from "./encryption.ts";
import { BlockError } from "./errors.ts";
import { InFlight, readPadded } from "./requests.ts";
import { type Held, RangeLock, type RangePlace } from "./lock.ts";
import type {
  BlockNode,
  Extent,
  ReadFlags,
  RequestFlags,
  WriteFlags,
} from "./node.ts";

/** The node on whose behalf data is moved. */
export interface AccessHost {
  /** The current size of the disk, in bytes. */
  readonly size: number;
  /** Where unallocated ranges are read from. */
  readonly backing?: BlockNode;
  /** How the stored data is encrypted, if it is. */
  readonly encryption?: Encryption;
  /** Announces the next step, by `blkdebug`'s name for it. */
  event?(name: string): void | Promise<void>;
}

/**
 * The announcer of steps of moving data, to debug filters among the files that
 * hold it and to whoever opened the image; `undefined` if nobody listens.
 */
export function eventOf(
  files: readonly BlockNode[],
  context: OpenContext,
): AccessHost["event"] {
  const debugged = files.filter(({ debug }) => debug);
  if (!context.event && debugged.length === 0) return undefined;
  return async (name: string) => {
    context.event?.(name);
    for (const file of debugged) await file.debug!.event(name);
  };
}

/** A range of a protocol node. */
interface FileRange {
  readonly source: BlockNode;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
}

/** The data of a write: bytes, or a range of a file that the system copies. */
type Payload = IoVector | FileRange;

const NOTHING: IoVector = [];

/** The data verbs of a node, implemented on its map. */
export class Access<R extends Run = Run> {
  readonly #host: AccessHost;
  readonly #map: BlockMap<R>;
  /**
   * Ranges of the disk in use; held exclusively while their mapping changes, or
   * while compressed data is written to them.
   */
  readonly ranges = new RangeLock();

  constructor(host: AccessHost, map: BlockMap<R>) {
    this.#host = host;
    this.#map = map;
  }

  /**
   * Fill `iov` with the bytes from `offset` on; the range lies within the disk.
   *
   * @param admission The caller's lock, released when the request ends: a
   * wrapping function that did so would slow small reads down.
   */
  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
    admission?: Held | Promise<Held>,
  ): Promise<void> {
    const signal = flags?.signal;
    const admitted = admission instanceof Promise
      ? await lockUnlessAborted(admission, signal)
      : admission;
    try {
      const { unit } = this.#map;
      const taken = this.ranges.acquire(
        roundDown(offset, unit),
        roundUp(offset + vectorLength(iov), unit),
        false,
        signal,
      );
      const held = taken instanceof Promise ? await taken : taken;
      try {
        await this.#readRuns(offset, iov, flags);
      } finally {
        held[Symbol.dispose]();
      }
    } finally {
      admitted?.[Symbol.dispose]();
    }
  }

  /** Read a range that is held and lies within the disk. */
  #readRuns(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): void | Promise<void> {
    const length = vectorLength(iov);
    if (length === 0) return;
    const run = this.#map.lookup(offset, length);
    if (run?.length === length) return this.#readRun(run, offset, iov, flags);
    return this.#readManyRuns(run, offset, iov, flags);
  }

  async #readManyRuns(
    first: R | undefined,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    const moves = new InFlight(flags?.signal);
    for (let done = 0, known = first; !moves.hasFailed;) {
      const at = offset + done;
      const run = known ??
        await moves.whileUnderWay(
          unlessAborted(this.#map.find(at, length - done), flags?.signal),
        );
      const part = sliceVector(iov, done, run.length);
      const reading = this.#readRun(run, at, part, flags);
      if (
        reading && run.kind === "special" && run.length > SMALL_SPECIAL
      ) {
        // Decoding takes memory: one run at a time.
        await moves.whileUnderWay(reading);
      } else if (reading) {
        const full = moves.add(reading);
        if (full) await full;
      }
      done += run.length;
      if (done === length) break;
      known = this.#map.lookup(offset + done, length - done);
    }
    await moves.end();
  }

  #readRun(
    run: R,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): void | Promise<void> {
    const { backing, size } = this.#host;
    switch (run.kind) {
      case "data": {
        const event = this.#host.event?.("read_aio");
        return event
          ? this.#readLater(event, run, offset, iov, flags)
          : this.#readData(run, offset, iov, flags);
      }
      case "special":
        return this.#map.readSpecial!(run, offset, iov, flags);
      case "unallocated":
        if (backing && offset < size) {
          const event = this.#host.event?.("read_backing_aio");
          return event
            ? readBackingLater(event, backing, offset, iov, flags)
            : readBacking(backing, offset, iov, flags);
        }
    }
    fillVector(iov, 0, run.length);
  }

  // A function of its own: closures take time even where nobody listens.
  async #readLater(
    event: Promise<void>,
    run: Run,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    await event;
    await this.#readData(run, offset, iov, flags);
  }

  #readData(
    { child, childOffset }: Run,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const { encryption } = this.#host;
    return encryption
      ? encryption.readv(child!, childOffset!, offset, iov, flags)
      : child!.readv(childOffset!, iov, flags);
  }

  /**
   * Write to a range of the disk; flushing is up to the caller. On abort, an
   * allocation under way is finished first.
   */
  async writev(
    offset: number,
    payload: Payload,
    flags: WriteFlags = {},
  ): Promise<void> {
    const { unit } = this.#map;
    const length = payloadLength(payload);
    if (length === 0) return;
    const start = roundDown(offset, unit);
    const end = roundUp(offset + length, unit);
    let place: Place | undefined;
    let isInPlace: boolean;
    // No `await` between lookup and lock: nothing can change in between.
    let inLine: RangePlace | undefined;
    try {
      for (;;) {
        place = this.#map.inPlace(offset, length);
        isInPlace = place !== undefined && place.length >= length;
        inLine = this.ranges.conflict(start, end, !isInPlace, inLine);
        if (!inLine) break;
        await unlessAborted(inLine.turn!, flags.signal);
      }
    } finally {
      inLine?.[Symbol.dispose]();
    }
    const held = this.ranges.hold(start, end, !isInPlace);
    try {
      if (isInPlace) {
        flags.placed?.();
        await this.#writeTo(place!, offset, payload, flags);
      } else {
        await this.#writeHeld(place, offset, payload, flags);
      }
    } finally {
      held[Symbol.dispose]();
    }
  }

  /** Write to a range that is held exclusively. */
  async #writeHeld(
    first: Place | undefined,
    offset: number,
    payload: Payload,
    flags: WriteFlags,
  ): Promise<void> {
    const length = payloadLength(payload);
    const moves = new InFlight(flags.signal);
    let place = first;
    let replaces = false;
    for (let done = 0; !moves.hasFailed;) {
      const at = offset + done;
      const rest = length - done;
      let room: Allocation | undefined;
      if (!place) {
        const found = this.#map.allocate(at, rest);
        room = found instanceof Promise
          ? await moves.whileUnderWay(found)
          : found;
        replaces ||= room.replaces;
      }
      const take = place
        ? place.length
        : Math.min(rest, room!.start + room!.length - at);
      // What `commit` frees may be reused by a later write.
      if (take === rest && !replaces) flags.placed?.();
      const part = slicePayload(payload, done, take);
      const writing = place
        ? this.#writeTo(place, at, part, flags)
        : this.#writeInto(room!, at, part, flags);
      if (take === length) return await writing;
      const full = moves.add(writing);
      if (full) await full;
      done += take;
      if (done === length) break;
      place = this.#map.inPlace(offset + done, length - done);
    }
    await moves.end();
  }

  #writeTo(
    place: Place,
    offset: number,
    payload: Payload,
    flags: WriteFlags,
  ): Promise<void> {
    const event = this.#host.event?.("write_aio");
    const { background, signal } = flags;
    const own = background || signal ? { background, signal } : undefined;
    const write = () =>
      this.#put(place.child, place.childOffset, offset, payload, own);
    return event ? event.then(write) : write();
  }

  /**
   * Write into newly allocated space, copying what the request leaves
   * unchanged, and commit. No signal reaches the child: an allocation under way
   * is finished.
   */
  async #writeInto(
    room: Allocation,
    offset: number,
    payload: Payload,
    flags: WriteFlags,
  ): Promise<void> {
    const { start, length, child, childOffset } = room;
    try {
      const end = offset + payloadLength(payload);
      const head = offset > start && await this.#kept(room, start, offset);
      const tail = end < start + length &&
        await this.#kept(room, end, start + length);
      const event = this.#host.event?.("write_aio");
      if (event) await event;
      const first = head ? start : offset;
      await this.#put(
        child,
        childOffset + first - start,
        first,
        payload,
        flags.background ? { background: true } : undefined,
        head ? [head] : NOTHING,
        tail ? [tail] : NOTHING,
      );
    } catch (error) {
      await room.abort();
      throw error;
    }
    await room.commit();
  }

  /**
   * The old content to copy into new space; `undefined` if it is zero and the
   * new space reads as zeroes already.
   */
  #kept(
    { isZero }: Allocation,
    start: number,
    end: number,
  ): Promise<Uint8Array | undefined> | undefined {
    const wasZero = this.readsAsZeroes(start, end);
    if (wasZero === true && isZero) return undefined;
    return this.#readKept(wasZero, isZero, start, end);
  }

  async #readKept(
    wasZero: boolean | Promise<boolean>,
    isZero: boolean,
    start: number,
    end: number,
  ): Promise<Uint8Array | undefined> {
    if (await wasZero) return isZero ? undefined : allocate(end - start);
    const bytes = allocate(end - start);
    const event = this.#host.event?.("cow_read");
    if (event) await event;
    const inside = this.#bytesWithin(start, end);
    await this.#readRuns(start, [bytes.subarray(0, inside)]);
    return bytes;
  }

  /**
   * Whether a range is known to read as zeroes without reading its data; without
   * waiting if the map need not be read. The part of the last unit past the end
   * of the disk counts as zero.
   */
  readsAsZeroes(start: number, end: number): boolean | Promise<boolean> {
    const stop = start + this.#bytesWithin(start, end);
    while (start < stop) {
      const run = this.#map.lookup(start, stop - start);
      if (!run) return this.#findsZeroes(start, stop);
      if (!this.#isZero(run, start)) return false;
      start += run.length;
    }
    return true;
  }

  async #findsZeroes(start: number, stop: number): Promise<boolean> {
    const run = await this.#map.find(start, stop - start);
    return this.#isZero(run, start) &&
      await this.readsAsZeroes(start + run.length, stop);
  }

  #isZero({ kind }: R, start: number): boolean {
    const { backing, size } = this.#host;
    return kind === "zero" ||
      kind === "unallocated" &&
        (!backing || start >= Math.min(backing.size, size));
  }

  /**
   * Bytes of a range that are in use: those of the disk, or what a format keeps
   * past its last unit (VM state).
   */
  #bytesWithin(start: number, end: number): number {
    const { size } = this.#host;
    if (start >= roundUp(size, this.#map.unit)) return end - start;
    return Math.max(0, Math.min(end, size) - start);
  }

  /**
   * Write to the child, together with the old content before and after.
   *
   * @param offset The disk offset of the first byte written.
   * @param flags Those for the child.
   * @throws {BlockError} ENOTSUP for a file range to an encrypted disk.
   */
  #put(
    child: BlockNode,
    childOffset: number,
    offset: number,
    payload: Payload,
    flags: WriteFlags | undefined,
    before: IoVector = NOTHING,
    after: IoVector = NOTHING,
  ): Promise<void> {
    if (isFileRange(payload)) {
      return this.#putRange(child, childOffset, payload, before, after);
    }
    const { encryption } = this.#host;
    const all = before.length || after.length
      ? [...before, ...payload, ...after]
      : payload;
    return encryption
      ? encryption.writev(child, childOffset, offset, all, flags)
      : child.writev!(childOffset, all, flags);
  }

  async #putRange(
    child: BlockNode,
    childOffset: number,
    payload: FileRange,
    before: IoVector,
    after: IoVector,
  ): Promise<void> {
    if (this.#host.encryption || !child.copyFrom) {
      throw new BlockError("ENOTSUP");
    }
    const start = childOffset + vectorLength(before);
    const end = start + payload.length;
    if (before.length) await child.writev!(childOffset, before);
    await child.copyFrom(start, payload.source, payload.offset, payload.length);
    if (after.length) await child.writev!(end, after);
  }

  /** The extent at `offset`, as `BlockNode.status` describes it. */
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const run = this.#map.lookup(offset, length) ??
      await this.#map.find(offset, length, true);
    const { kind, child, childOffset } = run;
    if (kind === "special") {
      const { unit } = this.#map;
      const end = offset + Math.min(length, MAX_SPECIAL);
      const more = this.#specialAfter(offset + run.length, end);
      const state = { allocated: true, zero: false, compressed: true };
      return { length: run.length + more, ...state, unit };
    }
    // Encrypted data has no plain place in the child.
    const isPlain = child !== undefined && !this.#host.encryption;
    const holes = kind === "data" && isPlain && this.#map.mayHaveHoles?.(run);
    const recurse = holes instanceof Promise ? await holes : holes;
    return {
      length: run.length,
      allocated: kind !== "unallocated",
      zero: kind === "zero",
      ...(isPlain && { file: child, hostOffset: childOffset }),
      ...(recurse && { recurse }),
      ...(kind === "data" && this.#map.isSparse && { sparse: true }),
    };
  }

  /** Length of the special runs from `start` on whose tables are in memory. */
  #specialAfter(start: number, end: number): number {
    let at = start;
    while (at < end) {
      const run = this.#map.lookup(at, end - at);
      if (run?.kind !== "special") break;
      at += run.length;
    }
    return at - start;
  }
}

/** Most bytes of a special run that is read beside others. */
const SMALL_SPECIAL = 64 * 1024;

/** Most bytes of special runs reported as one extent. */
const MAX_SPECIAL = 2 * 1024 * 1024;

/** Nested reads of backing files made before the stack is unwound. */
const MAX_NESTED = 100;
let nested = 0;

/** Read from a backing file, without overflowing the stack on long chains. */
function readBacking(
  backing: BlockNode,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  if (nested >= MAX_NESTED) {
    return readBackingLater(Promise.resolve(), backing, offset, iov, flags);
  }
  nested++;
  try {
    return readPadded(backing, offset, iov, flags);
  } finally {
    nested--;
  }
}

async function readBackingLater(
  event: Promise<void>,
  backing: BlockNode,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  await event;
  await readBacking(backing, offset, iov, flags);
}

/** Whether the system copies a payload. */
function isFileRange(payload: Payload): payload is FileRange {
  return "source" in payload;
}

/** The length of a payload, in bytes. */
function payloadLength(payload: Payload): number {
  return isFileRange(payload) ? payload.length : vectorLength(payload);
}

/** The part `[start, start + length)` of a payload. */
function slicePayload(
  payload: Payload,
  start: number,
  length: number,
): Payload {
  if (!isFileRange(payload)) return sliceVector(payload, start, length);
  const { source, offset } = payload;
  return { source, offset: offset + start, length };
}

/** Space that the disk already has from `start` on. */
export function roomInPlace(start: number, place: Place): Allocation {
  const { length, child, childOffset } = place;
  return {
    start,
    length,
    child,
    childOffset,
    isZero: false,
    replaces: false,
    commit: async () => {},
    abort: async () => {},
  };
}

/** Where the data of a run lies, which can be written there; of data only. */
export function placeOfData(run: Run | undefined): Place | undefined {
  return run?.kind === "data" ? run as Place : undefined;
}
