/**
 * Compressed grains: each a zlib stream after a marker with its sector and
 * length.
 *
 * @module
 */
import {
  allocate,
  copyIntoVector,
  type IoVector,
  SECTOR_SIZE,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode, ReadFlags } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import type { SparseLayout } from "./layout.ts";
import type { Step } from "../../core/table_pages.ts";

/** Bytes of a marker before the data: a sector of the disk, and a length. */
const MARKER_SIZE = 12;

/** Most bytes read at once, unless one grain is larger. */
const MAX_READ = 2 * 1024 * 1024;

let codecs: Promise<typeof import("../../core/zlib_streams.ts")> | undefined;

/**
 * Loaded on demand, since most images have no compressed grains, and through
 * one promise: requests made together then resume together, and are
 * decompressed in parallel.
 */
function loadCodecs() {
  return codecs ??= import("../../core/zlib_streams.ts");
}

/** A grain to be read, and the target of its bytes. */
interface Wanted {
  /** Its index. */
  readonly grain: number;
  /** Its offset in the file. */
  readonly place: number;
  /** Bytes of it within the disk. */
  readonly size: number;
  /** The first byte to read, and the target. */
  readonly from: number;
  readonly iov: IoVector;
}

/** The offset of a grain, and its bytes within the disk. */
export type Locate = (
  grain: number,
) => Promise<{ place: number; size: number }>;

/** Reads compressed grains. */
export class GrainReader {
  #file: BlockNode;
  readonly #layout: SparseLayout;
  readonly #step: Step;
  /** The last grain read in part: sequential readers need it again. */
  #last?: { readonly place: number; readonly content: Uint8Array };
  /** The last request's buffer, for reuse. */
  #spare?: Uint8Array;

  constructor(file: BlockNode, layout: SparseLayout, step: Step) {
    this.#step = step;
    this.#file = file;
    this.#layout = layout;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** Fill `iov` from byte `offset` of the extent on. */
  async read(
    offset: number,
    iov: IoVector,
    locate: Locate,
    flags?: ReadFlags,
  ): Promise<void> {
    const { grainSize } = this.#layout;
    const length = vectorLength(iov);
    const groups: Wanted[][] = [];
    for (let done = 0; done < length;) {
      const grain = Math.floor((offset + done) / grainSize);
      const from = (offset + done) % grainSize;
      const take = Math.min(length - done, grainSize - from);
      const part = sliceVector(iov, done, take);
      const wanted = { grain, ...await locate(grain), from, iov: part };
      const group = groups.at(-1);
      if (group && this.#continues(group, wanted)) group.push(wanted);
      else groups.push([wanted]);
      done += take;
    }
    await Promise.all(groups.map((group) => this.#readGroup(group, flags)));
  }

  /** Whether a grain can be read in one request with those before it. */
  #continues(group: readonly Wanted[], { place }: Wanted): boolean {
    const gap = place - group[group.length - 1].place;
    return gap > 0 && gap <= this.#mostBytes &&
      place + this.#mostBytes - group[0].place <= MAX_READ;
  }

  /** Most bytes of a stored grain, which compression may have enlarged. */
  get #mostBytes(): number {
    const { grainSize } = this.#layout;
    return grainSize + (grainSize >> 8) + 2 * SECTOR_SIZE;
  }

  async #readGroup(
    group: readonly Wanted[],
    flags?: ReadFlags,
  ): Promise<void> {
    const [{ place: start }] = group;
    const end = Math.min(
      group[group.length - 1].place + this.#mostBytes,
      this.#file.size,
    );
    const remembered = this.#last;
    if (group.length === 1 && remembered?.place === start) {
      return this.#copy(group[0], remembered.content);
    }
    const length = Math.max(0, end - start);
    const buffer = this.#takeBuffer(length);
    const bytes = buffer.subarray(0, length);
    await this.#step("read_compressed", this.#file);
    await readPadded(this.#file, start, [bytes], flags);
    for (const wanted of group) {
      const stored = bytes.subarray(wanted.place - start);
      await this.#decompress(wanted, await this.#dataOf(wanted, stored));
    }
    if (buffer.length <= MAX_READ) this.#spare = buffer;
  }

  /** A buffer of at least this many bytes, with arbitrary content. */
  #takeBuffer(length: number): Uint8Array {
    const spare = this.#spare;
    if (!spare || spare.length < length) return allocate(length);
    this.#spare = undefined;
    return spare;
  }

  /** The compressed data of a grain whose first bytes have been read. */
  async #dataOf(
    { grain, place }: Wanted,
    bytes: Uint8Array,
  ): Promise<Uint8Array> {
    const { grainSize, hasMarkers } = this.#layout;
    if (!hasMarkers) return bytes;
    if (bytes.length < MARKER_SIZE) {
      throw corrupt("is beyond the end of its file");
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const length = view.getUint32(8, true);
    const sector = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
    if (length === 0 || length > 2 * grainSize) {
      throw corrupt(`has ${length} bytes`);
    }
    if (sector !== grain * grainSize / SECTOR_SIZE) {
      throw corrupt(`is marked as that of sector ${sector}`);
    }
    const end = MARKER_SIZE + length;
    if (end <= bytes.length) return bytes.subarray(MARKER_SIZE, end);
    const data = allocate(length);
    await readPadded(this.#file, place + MARKER_SIZE, [data]);
    return data;
  }

  async #decompress(wanted: Wanted, data: Uint8Array): Promise<void> {
    const { grainSize } = this.#layout;
    const { place, size, from, iov } = wanted;
    const isWhole = from === 0 && iov.length === 1 &&
      iov[0].length === grainSize;
    const { decompressZlib } = await loadCodecs();
    const content = isWhole ? iov[0] : allocate(grainSize);
    // The last grain may end with the disk.
    const isDone = await decompressZlib(data, content) ||
      (size < grainSize &&
        await decompressZlib(data, content.subarray(0, size)));
    if (!isDone) throw corrupt("is not a zlib stream");
    if (isWhole) return;
    this.#last = { place, content };
    this.#copy(wanted, content);
  }

  #copy({ from, iov }: Wanted, content: Uint8Array): void {
    const length = vectorLength(iov);
    copyIntoVector(iov, 0, content.subarray(from, from + length));
  }
}

/** QEMU's error code, with a reason, which QEMU does not report. */
function corrupt(what: string): BlockError {
  const detail = `: a compressed grain ${what}`;
  return new BlockError("EINVAL", `Invalid argument${detail}`, { detail });
}

/**
 * A grain as stored: its marker, and its compressed data.
 *
 * @param sector The first sector of the extent in it.
 */
export async function compressGrain(
  content: Uint8Array,
  sector: number,
  level?: number,
): Promise<Uint8Array> {
  const { compressZlib } = await loadCodecs();
  const data = await compressZlib(content, level);
  const grain = allocate(MARKER_SIZE + data.length);
  const view = new DataView(grain.buffer, grain.byteOffset);
  view.setBigUint64(0, BigInt(sector), true);
  view.setUint32(8, data.length, true);
  grain.set(data, MARKER_SIZE);
  return grain;
}
