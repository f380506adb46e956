/**
 * A file that remembers what was written to it and when it was flushed, and
 * from that tells what a power cut may leave of it.
 *
 * The model of a disk with a cache: what a flush covers is there. Of each
 * sector written since, any version may be there, whatever the order of the
 * writes; a sector is never torn, and neither is the header. What changes the
 * file's extents (holes, zeroes without data, its size) may be there at once,
 * however late the writes before it come: file systems have a journal for it.
 *
 * @module
 */
import { type IoVector, SECTOR_SIZE } from "../core/bytes.ts";
import type { BlockNode } from "../core/node.ts";
import { memoryDriver } from "../drivers/memory.ts";
import type { Random } from "./model.ts";

/** What happened to the file. A new size is the `offset`, without `bytes`. */
interface Event {
  kind: "write" | "zero" | "truncate" | "flush";
  offset: number;
  bytes: Uint8Array;
}

const NOTHING = new Uint8Array(0);

/** Bytes of a file that grows where it is written to. */
class GrowingBytes {
  #buffer: Uint8Array<ArrayBuffer>;
  length: number;

  constructor(start: Uint8Array) {
    this.#buffer = new Uint8Array(start);
    this.length = start.length;
  }

  /** The bytes; valid until the next change. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#buffer.subarray(0, this.length);
  }

  write(offset: number, bytes: Uint8Array): void {
    if (offset + bytes.length > this.length) {
      this.resize(offset + bytes.length);
    }
    this.#buffer.set(bytes, offset);
  }

  resize(size: number): void {
    if (size > this.#buffer.length) {
      const larger = new Uint8Array(2 * size);
      larger.set(this.bytes);
      this.#buffer = larger;
    }
    if (size < this.length) this.#buffer.fill(0, size, this.length);
    this.length = size;
  }

  apply({ kind, offset, bytes }: Event): void {
    if (kind === "write" || kind === "zero") this.write(offset, bytes);
    else if (kind === "truncate") this.resize(offset);
  }
}

/** A protocol node in memory, with its past. */
export class PowerLog implements BlockNode {
  readonly driver = memoryDriver;
  readonly filename = "power-log";
  readonly readOnly = false;
  readonly children = {};
  readonly #start: Uint8Array;
  readonly #events: Event[] = [];
  readonly #file: GrowingBytes;
  readonly #recorded: () => void;

  /**
   * @param start What the file holds, durably, at first.
   * @param recorded Called after each event: for logs that are cut together.
   */
  constructor(start: Uint8Array, recorded: () => void = () => {}) {
    this.#start = start;
    this.#recorded = recorded;
    this.#file = new GrowingBytes(start);
  }

  /** How much has happened so far: a moment at which the power may fail. */
  get now(): number {
    return this.#events.length;
  }

  get size(): number {
    return this.#file.length;
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async readv(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      part.fill(0);
      part.set(this.#file.bytes.subarray(offset, offset + part.length));
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async writev(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      this.#record({ kind: "write", offset, bytes: part.slice() });
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async writeZeroes(offset: number, length: number): Promise<void> {
    const bytes = new Uint8Array(length);
    this.#record({ kind: "zero", offset, bytes });
  }

  // deno-lint-ignore require-await
  async discard(offset: number, length: number): Promise<void> {
    const bytes = new Uint8Array(Math.min(length, this.size - offset));
    this.#record({ kind: "zero", offset, bytes });
  }

  // deno-lint-ignore require-await
  async truncate(size: number): Promise<void> {
    this.#record({ kind: "truncate", offset: size, bytes: NOTHING });
  }

  // deno-lint-ignore require-await
  async flush(): Promise<void> {
    this.#record({ kind: "flush", offset: 0, bytes: NOTHING });
  }

  #record(event: Event): void {
    this.#events.push(event);
    this.#file.apply(event);
    this.#recorded();
  }

  // deno-lint-ignore require-await
  async status(offset: number, length: number) {
    const place = { hostOffset: offset, file: this };
    return { length, allocated: true, zero: false, ...place };
  }

  async close(): Promise<void> {}

  /** Files that power cuts may leave: one for each of the ascending moments. */
  *cuts(
    moments: readonly number[],
    random: Random,
  ): Generator<{ moment: number; file: Uint8Array<ArrayBuffer> }> {
    const durable = new GrowingBytes(this.#start);
    let flushed = 0;
    for (const moment of moments) {
      const last = this.#events.findLastIndex(({ kind }, index) =>
        index < moment && kind === "flush"
      );
      for (; flushed <= last; flushed++) durable.apply(this.#events[flushed]);
      const late = this.#events.slice(flushed, moment);
      yield { moment, file: survivors(durable.bytes, late, random) };
    }
  }

  /** A file that a power cut at one moment may leave. */
  cut(moment: number, random: Random): Uint8Array<ArrayBuffer> {
    return this.cuts([moment], random).next().value!.file;
  }
}

/** What may be there if `late` came after the last flush. */
function survivors(
  durable: Uint8Array,
  late: readonly Event[],
  random: Random,
): Uint8Array<ArrayBuffer> {
  const arrives = arrival(late, random);
  const extentsAtOnce = random.oneIn(2);
  // The cache has every byte; a sector that goes to the disk is the cache's
  // at that time, so it brings along what was written to it before.
  const cache = new GrowingBytes(durable);
  const disk = new GrowingBytes(durable);
  late.forEach((event, index) => {
    cache.apply(event);
    if (event.kind !== "write") {
      if (extentsAtOnce || arrives(index)) disk.apply(event);
      return;
    }
    const end = event.offset + event.bytes.length;
    const isHeader = event.offset === 0 && arrives(index);
    for (let at = event.offset; at < end;) {
      const start = at - at % SECTOR_SIZE;
      const stop = Math.min(start + SECTOR_SIZE, cache.length);
      if (event.offset === 0 ? isHeader : arrives(index)) {
        disk.write(start, cache.bytes.subarray(start, stop));
      }
      at = start + SECTOR_SIZE;
    }
  });
  return disk.bytes;
}

/** Which events reach the disk, asked once for each sector. */
function arrival(
  late: readonly Event[],
  random: Random,
): (index: number) => boolean {
  const chosen = random.below(Math.max(1, late.length));
  const kept = late.map(() => random.oneIn(2));
  return random.pick([
    () => true,
    () => false,
    () => random.oneIn(2),
    () => !random.oneIn(8),
    (index: number) => kept[index],
    (index: number) => kept[index],
    (index: number) => index !== chosen,
    (index: number) => index === chosen,
    (index: number) => index > chosen,
    (index: number) => index < chosen,
  ]);
}
