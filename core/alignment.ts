/**
 * Unaligned requests to nodes that work in units: an encrypted image whose
 * sectors are encrypted whole, a file opened to bypass the page cache.
 *
 * A write that covers part of a unit reads the whole unit and writes it back.
 * No other request may touch the unit meanwhile, or one of the two is lost.
 *
 * @module
 */
import {
  allocate,
  type IoVector,
  roundDown,
  roundUp,
  vectorLength,
} from "./bytes.ts";
import { wrapNode } from "./filter.ts";
import { RangeLock } from "./lock.ts";
import type {
  BlockNode,
  DebugOperations,
  ReadFlags,
  RequestFlags,
  WriteFlags,
  ZeroFlags,
} from "./node.ts";

type Read = (
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
) => Promise<void>;
type Write = (
  offset: number,
  iov: IoVector,
  flags?: WriteFlags,
) => Promise<void>;

/**
 * A node that takes requests of any offset and length and rounds them to
 * `limits.requestAlignment` of `node`; `node` itself if that is 1.
 *
 * `status` moves no data and is passed on as it is. A discard leaves out the
 * units that it covers only in part.
 */
export function alignRequests(node: BlockNode): BlockNode {
  const unit = node.limits?.requestAlignment ?? 1;
  if (unit === 1) return node;
  const { debug, vmState } = node;
  const data = new AlignedArea(
    unit,
    node.readv.bind(node),
    node.writev?.bind(node),
    debug,
  );
  const state = vmState && new AlignedArea(
    unit,
    vmState.load.bind(vmState),
    vmState.save.bind(vmState),
  );
  return wrapNode(node, {
    readv: data.read,
    writev: data.write,
    writeZeroes: (offset, length, flags) =>
      data.zero(
        offset,
        length,
        (start, length) => node.writeZeroes!(start, length, flags),
        flags,
      ),
    discard: (offset, length, flags) =>
      data.inside(
        offset,
        length,
        (start, length) => node.discard!(start, length, flags),
        flags?.signal,
      ),
    ...(state && { vmState: { load: state.read, save: state.write } }),
  });
}

/**
 * How many requests may overtake a waiting one; enough to reach breakpoints.
 */
const PATIENCE = 16;

/** An address space whose requests are rounded: the disk, or its VM state. */
class AlignedArea {
  readonly #unit: number;
  readonly #read: Read;
  readonly #write: Write | undefined;
  readonly #debug: DebugOperations | undefined;
  /**
   * Units in use; held exclusively by whoever rewrites one whole. A request
   * that waits does not hold back what touches other units of its range, which
   * matters when its obstacle is suspended at a breakpoint.
   */
  readonly #ranges = new RangeLock(PATIENCE);

  constructor(
    unit: number,
    read: Read,
    write: Write | undefined,
    debug?: DebugOperations,
  ) {
    this.#unit = unit;
    this.#read = read;
    this.#write = write;
    this.#debug = debug;
  }

  readonly read: Read = async (offset, iov, flags) => {
    const end = offset + vectorLength(iov);
    const [start, stop] = this.#around(offset, end);
    using _ = await this.#ranges.acquire(start, stop, false, flags?.signal);
    if (start === offset && stop === end) {
      return await this.#read(start, iov, flags);
    }
    const before = allocate(offset - start);
    const after = allocate(stop - end);
    await this.#read(start, [before, ...iov, after].filter(isFilled), flags);
  };

  readonly write: Write = async (offset, iov, flags) => {
    const end = offset + vectorLength(iov);
    const [start, stop] = this.#around(offset, end);
    const whole = start === offset && stop === end;
    using _ = await this.#ranges.acquire(start, stop, !whole, flags?.signal);
    if (whole) return await this.#write!(start, iov, flags);
    const { before, after } = await this.#kept(offset, end, flags);
    await this.#write!(start, [before, ...iov, after].filter(isFilled), flags);
  };

  /**
   * Write zeroes: as data to the units at the ends that are covered only in
   * part, with `zero` to those in between.
   */
  async zero(
    offset: number,
    length: number,
    zero: (offset: number, length: number) => Promise<void>,
    flags?: ZeroFlags,
  ): Promise<void> {
    const end = offset + length;
    const [start, stop] = this.#around(offset, end);
    const whole = start === offset && stop === end;
    using _ = await this.#ranges.acquire(start, stop, !whole, flags?.signal);
    if (whole) return await zero(offset, length);
    const { before, after } = await this.#kept(offset, end, flags);
    const write = (from: number, iov: IoVector) =>
      this.#write!(from, iov.filter(isFilled), flags);
    const first = roundUp(offset, this.#unit);
    const last = roundDown(end, this.#unit);
    if (first >= last && stop - start <= 2 * this.#unit) {
      return await write(start, [before, allocate(length), after]);
    }
    if (start < first) await write(start, [before, allocate(first - offset)]);
    if (first < last) await zero(first, last - first);
    if (last < stop) await write(last, [allocate(end - last), after]);
  }

  /** Discard the units that lie inside a range. */
  async inside(
    offset: number,
    length: number,
    discard: (offset: number, length: number) => Promise<void>,
    signal?: AbortSignal,
  ): Promise<void> {
    const start = roundUp(offset, this.#unit);
    const stop = roundDown(offset + length, this.#unit);
    if (start >= stop) return;
    using _ = await this.#ranges.acquire(start, stop, false, signal);
    await discard(start, stop - start);
  }

  /** The units that a range touches. */
  #around(offset: number, end: number): [start: number, stop: number] {
    return [roundDown(offset, this.#unit), roundUp(end, this.#unit)];
  }

  /**
   * Read what the units at the ends of a range hold outside it: in one request
   * if there is nothing in between.
   */
  async #kept(
    offset: number,
    end: number,
    flags?: RequestFlags,
  ): Promise<{ before: Uint8Array; after: Uint8Array }> {
    const unit = this.#unit;
    const [start, stop] = this.#around(offset, end);
    const head = offset - start;
    const tail = stop - end;
    const isOneRead = stop - start === unit ||
      (head > 0 && tail > 0 && stop - start === 2 * unit);
    let first: Uint8Array | undefined;
    let last: Uint8Array | undefined;
    if (isOneRead) {
      const steps = [...(head ? ["head"] : []), ...(tail ? ["tail"] : [])];
      first = last = await this.#unitsToKeep(start, stop, steps, flags);
    } else {
      if (head) {
        first = await this.#unitsToKeep(start, start + unit, ["head"], flags);
      }
      if (tail) {
        last = await this.#unitsToKeep(stop - unit, stop, ["tail"], flags);
      }
    }
    return {
      before: first?.subarray(0, head) ?? NOTHING,
      after: last?.subarray(last.length - tail) ?? NOTHING,
    };
  }

  async #unitsToKeep(
    start: number,
    stop: number,
    steps: readonly string[],
    flags?: RequestFlags,
  ): Promise<Uint8Array> {
    const units = allocate(stop - start);
    for (const step of steps) await this.#debug?.event(`pwritev_rmw_${step}`);
    await this.#read(start, [units], flags && { signal: flags.signal });
    for (const step of steps) {
      await this.#debug?.event(`pwritev_rmw_after_${step}`);
    }
    return units;
  }
}

const NOTHING = allocate(0);

function isFilled(part: Uint8Array): boolean {
  return part.length > 0;
}
