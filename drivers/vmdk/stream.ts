/**
 * Writing new images front to back, like VMware's export tools: grains in the
 * order of the disk, each after its marker; after the grains of a table that
 * table, after all of them the directory, a footer that refers to it, and the
 * end-of-stream marker. ("Virtual Disk Format 5.0": stream-optimized compressed
 * sparse extents.)
 *
 * @module
 */
import {
  allocate,
  divideUp,
  padded,
  roundDown,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { holdWorkers } from "../../core/compression.ts";
import type { StreamSource } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import { isZero } from "../../core/runtime.ts";
import { compressGrain } from "./compressed.ts";
import { planImage, sparseLine, streamName } from "./create.ts";
import { newDescriptor, NO_PARENT } from "./descriptor.ts";
import {
  DESCRIPTOR,
  encodeHeader,
  FLAG,
  GRAIN_SECTORS,
  MARKER,
  TABLE_ENTRIES,
  TABLE_SECTORS,
} from "./layout.ts";

const GRAIN_SIZE = GRAIN_SECTORS * SECTOR_SIZE;
const TABLE_SIZE = TABLE_SECTORS * SECTOR_SIZE;

/** Grains read and compressed at once. */
const BATCH = 32;

/** Disks of this size and more start workers at once. */
const MUCH = 64 * 1024 * 1024;

/** Sector of the first grain. */
const OVERHEAD = 128;

/** A nonzero grain, as stored. */
interface Grain {
  readonly index: number;
  readonly stored: Uint8Array;
}

/**
 * Stream an image with the content of `source`.
 *
 * @param filename The name or path of its file. It may be empty.
 */
export async function* streamImage(
  options: OptionValues,
  source: StreamSource,
  filename?: string,
): AsyncGenerator<Uint8Array> {
  const { isStream, backingFile, size, about } = planImage(options);
  if (!isStream) {
    throw new BlockError(
      "ENOTSUP",
      "Only a VMDK with subformat=streamOptimized can be a stream",
    );
  }
  if (backingFile !== undefined) {
    throw new BlockError("ENOTSUP", "A VMDK in a stream has no backing file");
  }
  using _workers = holdWorkers(size >= MUCH);
  const writer = new StreamWriter(size);
  const descriptor = newDescriptor({
    createType: "streamOptimized",
    parentCid: NO_PARENT,
    extents: [sparseLine(size, streamName(filename))],
    size,
    ...about,
  });
  yield* writer.begin(descriptor);
  for await (const grains of compressed(source)) {
    for (const grain of grains) yield* writer.grain(grain);
  }
  yield* writer.end();
}

/** Produces the parts of the stream, and keeps track of their offsets. */
class StreamWriter {
  readonly #capacity: number;
  /** Sectors produced so far. */
  #position = 0;
  readonly #directory: DataView;
  /** The current table and its index. */
  #table: Uint8Array = allocate(TABLE_SIZE);
  #tableIndex = -1;

  constructor(size: number) {
    this.#capacity = size / SECTOR_SIZE;
    const tables = divideUp(size, GRAIN_SIZE * TABLE_ENTRIES);
    const bytes = allocate(divideUp(tables * 4, SECTOR_SIZE) * SECTOR_SIZE);
    this.#directory = new DataView(bytes.buffer, bytes.byteOffset);
    this.#directoryBytes = bytes;
  }

  readonly #directoryBytes: Uint8Array;

  *#put(...parts: readonly Uint8Array[]): Generator<Uint8Array> {
    for (const part of parts) {
      this.#position += part.length / SECTOR_SIZE;
      yield part;
    }
  }

  *#marker(sectors: number, type: number): Generator<Uint8Array> {
    const marker = allocate(SECTOR_SIZE);
    const view = new DataView(marker.buffer, marker.byteOffset);
    view.setUint32(0, sectors, true);
    view.setUint32(12, type, true);
    yield* this.#put(marker);
  }

  #header(directory: number): Uint8Array {
    return encodeHeader({
      version: 3,
      flags: FLAG.NEWLINES | FLAG.COMPRESSED | FLAG.MARKERS,
      capacity: this.#capacity,
      redundant: 0,
      directory,
      overhead: OVERHEAD,
      isCompressed: true,
    });
  }

  *begin(descriptor: Uint8Array): Generator<Uint8Array> {
    const rest = allocate((OVERHEAD - DESCRIPTOR.start) * SECTOR_SIZE);
    rest.set(descriptor);
    yield* this.#put(this.#header(-1), rest);
  }

  *grain({ index, stored }: Grain): Generator<Uint8Array> {
    const table = Math.floor(index / TABLE_ENTRIES);
    if (table !== this.#tableIndex) {
      yield* this.#endTable();
      this.#tableIndex = table;
    }
    const { buffer, byteOffset } = this.#table;
    new DataView(buffer, byteOffset)
      .setUint32(index % TABLE_ENTRIES * 4, this.#checkedPosition, true);
    yield* this.#put(...padToSector(stored));
  }

  /** @throws {BlockError} EFBIG if no entry can address it. */
  get #checkedPosition(): number {
    if (this.#position < 2 ** 32) return this.#position;
    throw new BlockError("EFBIG", "A VMDK extent cannot exceed 2 TiB");
  }

  *#endTable(): Generator<Uint8Array> {
    if (this.#tableIndex < 0) return;
    yield* this.#marker(TABLE_SECTORS, MARKER.GRAIN_TABLE);
    this.#directory.setUint32(
      this.#tableIndex * 4,
      this.#checkedPosition,
      true,
    );
    yield* this.#put(this.#table);
    this.#table = allocate(TABLE_SIZE);
  }

  *end(): Generator<Uint8Array> {
    yield* this.#endTable();
    const bytes = this.#directoryBytes;
    const sectors = bytes.length / SECTOR_SIZE;
    yield* this.#marker(sectors, MARKER.GRAIN_DIRECTORY);
    const directory = this.#checkedPosition;
    yield* this.#put(bytes);
    yield* this.#marker(1, MARKER.FOOTER);
    yield* this.#put(this.#header(directory));
    yield* this.#marker(0, MARKER.END_OF_STREAM);
  }
}

/** One part, since parts are counted in sectors. */
function padToSector(bytes: Uint8Array): readonly Uint8Array[] {
  const [only, rest] = padded(bytes, SECTOR_SIZE);
  if (!rest) return [only];
  const whole = allocate(only.length + rest.length);
  whole.set(only);
  return [whole];
}

/** The nonzero grains, in batches; the next batch is prepared meanwhile. */
async function* compressed(source: StreamSource): AsyncGenerator<Grain[]> {
  let before: Promise<Grain[]> | undefined;
  try {
    for await (const indices of batches(source)) {
      const content = await readBatch(source, indices);
      if (before) yield await before;
      before = compressBatch(source, indices, content);
      // Nobody awaits it if the consumer stops here.
      before.catch(() => {});
    }
    if (before) yield await before;
    before = undefined;
  } finally {
    await before?.catch(() => {});
  }
}

/** Batches of adjacent grains with data, by index. */
async function* batches(
  source: StreamSource,
): AsyncGenerator<{ first: number; end: number }> {
  let first = 0;
  let end = 0;
  for await (const { offset, length, kind } of source.extents()) {
    if (kind !== "data") continue;
    const start = Math.floor(offset / GRAIN_SIZE);
    const stop = divideUp(offset + length, GRAIN_SIZE);
    if (start > end) {
      if (end > first) yield { first, end };
      first = start;
    }
    end = Math.max(end, start, stop);
    for (; end - first > BATCH; first += BATCH) {
      yield { first, end: first + BATCH };
    }
  }
  if (end > first) yield { first, end };
}

async function readBatch(
  source: StreamSource,
  { first, end }: { first: number; end: number },
): Promise<Uint8Array> {
  const start = first * GRAIN_SIZE;
  const bytes = allocate((end - first) * GRAIN_SIZE);
  const inside = Math.min(bytes.length, source.size - start);
  await source.read(start, bytes.subarray(0, inside));
  return bytes;
}

/** The disk's last grain is stored whole, padded with zeroes. */
async function compressBatch(
  { fills }: StreamSource,
  { first }: { first: number },
  bytes: Uint8Array,
): Promise<Grain[]> {
  const grains: Promise<Grain>[] = [];
  for (let at = 0; at < roundDown(bytes.length, GRAIN_SIZE); at += GRAIN_SIZE) {
    const index = first + at / GRAIN_SIZE;
    const content = bytes.subarray(at, at + GRAIN_SIZE);
    if (!fills && isZero(content)) continue;
    grains.push(
      compressGrain(content, index * GRAIN_SECTORS)
        .then((stored) => ({ index, stored })),
    );
  }
  return await Promise.all(grains);
}
