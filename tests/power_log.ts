/**
 * A file that records its writes and flushes, and derives from them what a
 * power cut may leave.
 *
 * The model is a disk with a cache: everything before a flush has been stored.
 * Of each sector written since, any version may be stored, whatever the order
 * of the writes; a sector is never torn, and neither is the header. Changes of
 * the file's extents (holes, zeroes without data, its size) may be stored at
 * once, even before earlier writes: file systems have a journal for them.
 *
 * @module
 */
import { type IoVector, SECTOR_SIZE } from "../core/bytes.ts";
import type { BlockNode } from "../core/node.ts";
import { memoryDriver } from "../drivers/memory.ts";
import type { Random } from "./model.ts";

/** An event of the file. A new size is the `offset`, without `bytes`. */
interface Event {
  kind: "write" | "zero" | "discard" | "truncate" | "flush";
  offset: number;
  bytes: Uint8Array;
}

const NOTHING = new Uint8Array(0);

/** The bytes of a file that grows when written to. */
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
    if (kind === "truncate") this.resize(offset);
    else this.write(offset, bytes);
  }
}

/** A protocol node in memory, with its history. */
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
   * @param start The durable content at the start.
   * @param recorded Called after each event, for logs that are cut together.
   */
  constructor(start: Uint8Array, recorded: () => void = () => {}) {
    this.#start = start;
    this.#recorded = recorded;
    this.#file = new GrowingBytes(start);
  }

  /** The number of events so far: a moment at which the power may fail. */
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
    this.#record({ kind: "discard", offset, bytes });
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

  /**
   * The content that is certain to be stored: everything before the last flush.
   */
  get durable(): Uint8Array<ArrayBuffer> {
    const durable = new GrowingBytes(this.#start);
    const flush = this.#events.findLastIndex(({ kind }) => kind === "flush");
    for (const event of this.#events.slice(0, flush + 1)) durable.apply(event);
    return durable.bytes;
  }

  /** Files that power cuts may leave, one for each of the ascending moments. */
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
      const arrives = arrival(late, random);
      const file = survivors(durable.bytes, late, arrives, random.oneIn(2));
      yield { moment, file };
    }
  }

  /**
   * Files that power cuts may leave just before a flush: each event since the
   * previous flush is, in turn, the only one lost and the only one stored. If
   * the order of two events matters and no flush ensures it, one of these files
   * shows it. (A discard may always be lost.)
   */
  *reordered(): Generator<{ what: string; file: Uint8Array<ArrayBuffer> }> {
    const durable = new GrowingBytes(this.#start);
    let late: Event[] = [];
    const cut = (arrives: (index: number) => boolean, extentsAtOnce = false) =>
      survivors(durable.bytes, late, arrives, extentsAtOnce);
    for (let now = 0; now <= this.now; now++) {
      const event = this.#events[now];
      if (event && event.kind !== "flush") {
        late.push(event);
        continue;
      }
      const start = now - late.length;
      for (const [chosen, { kind }] of late.entries()) {
        if (kind === "discard") continue;
        const what = `event ${start + chosen} of ${start} to ${now}`;
        yield { what: `${what} is late`, file: cut((i) => i !== chosen) };
        yield { what: `${what} is early`, file: cut((i) => i === chosen) };
      }
      if (late.some(({ kind }) => kind !== "write")) {
        const what = `extents of ${start} to ${now} are early`;
        yield { what, file: cut(() => false, true) };
      }
      for (const event of late) durable.apply(event);
      late = [];
    }
  }

  /** A file that a power cut at a moment may leave. */
  cut(moment: number, random: Random): Uint8Array<ArrayBuffer> {
    return this.cuts([moment], random).next().value!.file;
  }
}

/** Files that record together, each on a disk of its own. */
export class PowerLogs {
  readonly logs: readonly PowerLog[];
  /** Where each log was, after each event of any. */
  readonly #moments: number[][] = [];

  /** @param starts The durable contents at the start. */
  constructor(starts: readonly Uint8Array[]) {
    const note = () => this.#moments.push(this.logs.map(({ now }) => now));
    this.logs = starts.map((start) => new PowerLog(start, note));
    note();
  }

  /** The moment: the number of events so far, of all files. */
  get now(): number {
    return this.#moments.length - 1;
  }

  /** What power cuts may leave of all, for each of the ascending moments. */
  *cuts(
    moments: readonly number[],
    random: Random,
  ): Generator<{ moment: number; files: Uint8Array<ArrayBuffer>[] }> {
    const cuts = this.logs.map((log, index) =>
      log.cuts(moments.map((moment) => this.#moments[moment][index]), random)
    );
    for (const moment of moments) {
      yield { moment, files: cuts.map((cut) => cut.next().value!.file) };
    }
  }
}

/**
 * The stored content if, of the events `late` since the last flush, those are
 * stored for which `arrives` returns true, called once per sector.
 */
function survivors(
  durable: Uint8Array,
  late: readonly Event[],
  arrives: (index: number) => boolean,
  extentsAtOnce: boolean,
): Uint8Array<ArrayBuffer> {
  // The cache has every byte; a sector is stored as it is in the cache at that
  // time, including earlier writes to it.
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

/** Which events are stored. */
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
