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
      data.change(
        offset,
        length,
        (start, length) => node.writeZeroes!(start, length, flags),
        (start, length) => data.write(start, [allocate(length)], flags),
        flags?.signal,
      ),
    discard: (offset, length, flags) =>
      data.change(
        offset,
        length,
        (start, length) => node.discard!(start, length, flags),
        () => Promise.resolve(),
        flags?.signal,
      ),
    ...(state && { vmState: { load: state.read, save: state.write } }),
  });
}

/** An address space whose requests are rounded: the disk, or its VM state. */
class AlignedArea {
  readonly #unit: number;
  readonly #read: Read;
  readonly #write: Write | undefined;
  readonly #debug: DebugOperations | undefined;
  /** Units in use; held exclusively by whoever rewrites one whole. */
  readonly #ranges = new RangeLock();

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
    const first = await this.#unitAt(offset, "head", flags);
    const shared = first.length > 0 && stop - start === this.#unit;
    const last = shared ? first : await this.#unitAt(end, "tail", flags);
    const before = first.subarray(0, offset - start);
    const after = last.subarray(last.length - (stop - end));
    await this.#write!(start, [before, ...iov, after].filter(isFilled), flags);
  };

  /**
   * Change a range: `whole` handles the units inside it, `part` the partial
   * ones at its ends.
   */
  async change(
    offset: number,
    length: number,
    whole: (offset: number, length: number) => Promise<void>,
    part: (offset: number, length: number) => Promise<void>,
    signal?: AbortSignal,
  ): Promise<void> {
    const end = offset + length;
    const start = roundUp(offset, this.#unit);
    const stop = roundDown(end, this.#unit);
    if (start > stop) return await part(offset, length);
    if (offset < start) await part(offset, start - offset);
    if (start < stop) {
      using _ = await this.#ranges.acquire(start, stop, false, signal);
      await whole(start, stop - start);
    }
    if (stop < end) await part(stop, end - stop);
  }

  /** The units that a range touches. */
  #around(offset: number, end: number): [start: number, stop: number] {
    return [roundDown(offset, this.#unit), roundUp(end, this.#unit)];
  }

  /** The content of the unit that an offset splits; empty at a boundary. */
  async #unitAt(
    offset: number,
    which: "head" | "tail",
    flags?: RequestFlags,
  ): Promise<Uint8Array> {
    const start = roundDown(offset, this.#unit);
    if (start === offset) return allocate(0);
    const unit = allocate(this.#unit);
    await this.#debug?.event(`pwritev_rmw_${which}`);
    await this.#read(start, [unit], flags && { signal: flags.signal });
    await this.#debug?.event(`pwritev_rmw_after_${which}`);
    return unit;
  }
}

function isFilled(part: Uint8Array): boolean {
  return part.length > 0;
}
