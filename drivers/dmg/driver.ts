/**
 * The format driver `dmg`: Apple's disk images (UDIF), read-only.
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import type { OpenContext } from "../../core/driver.ts";
import type { BlockNode, ReadFlags } from "../../core/node.ts";
import {
  ChunkReader,
  type ChunkRun,
  damaged,
  readOnlyDriver,
  ReadOnlyMap,
} from "../../core/read_only.ts";
import { decompressZlib } from "../../core/zlib_streams.ts";
import { type DmgChunk, isEmpty, KIND, readChunks } from "./chunks.ts";
import { decodeAdc, decodeBzip2, type Decoder, decodeXz } from "./codecs.ts";
import { readTrailer, refusal, TableFault } from "./trailer.ts";

/** Apple's disk images. */
export const dmgDriver = readOnlyDriver("dmg", async (file, context) => {
  const { size, chunks } = await readTables(file, context);
  warnOf(chunks, context);
  return { size, map: new DmgMap(file, chunks) };
});

async function readTables(
  file: BlockNode,
  { filename, report }: OpenContext,
): Promise<{ size: number; chunks: DmgChunk[] }> {
  try {
    const trailer = await readTrailer(file);
    return { size: trailer.size, chunks: await readChunks(file, trailer) };
  } catch (error) {
    if (!(error instanceof TableFault)) throw error;
    if (error.line) report(error.line, true);
    throw refusal(filename, error.message);
  }
}

/** Warn of chunks that cannot be read, with QEMU's messages. */
function warnOf(chunks: readonly DmgChunk[], { warn }: OpenContext): void {
  const unknown = chunks.find(({ kind }) => !READABLE.has(kind));
  if (!unknown) return;
  warn(
    `Image contains chunks of unknown type ${unknown.kind.toString(16)}, ` +
      "accessing them will result in I/O errors",
  );
}

/** Kinds of chunks that the available libraries can decode. */
const READABLE: ReadonlySet<number> = new Set(Object.values(KIND));

const DECODERS: { readonly [kind: number]: Decoder } = {
  [KIND.ADC]: decodeAdc,
  [KIND.BZIP2]: decodeBzip2,
  [KIND.LZMA]: decodeXz,
};

class DmgMap extends ReadOnlyMap<ChunkRun<DmgChunk>> {
  /** In the order of the disk. */
  readonly #chunks: readonly DmgChunk[];
  readonly #reader = new ChunkReader<DmgChunk>(decode);

  constructor(file: BlockNode, chunks: readonly DmgChunk[]) {
    super(file);
    this.#chunks = chunks;
  }

  /** Undecodable chunks are special as well: `readSpecial` reports why. */
  lookup(offset: number, length: number): ChunkRun<DmgChunk> {
    const after = this.#firstAfter(offset);
    const chunk = this.#chunks[after - 1];
    const end = chunk ? chunk.start + chunk.size : 0;
    if (offset >= end) {
      const next = this.#chunks[after]?.start ?? Infinity;
      return { kind: "special", length: Math.min(length, next - offset) };
    }
    const { kind, start, size, place, stored } = chunk;
    const run = { length: Math.min(length, end - offset) };
    if (isEmpty(kind)) return { ...run, kind: "zero" };
    const isWhole = stored >= size && place + size <= this.file.size;
    if (kind !== KIND.RAW || !isWhole) {
      return { ...run, kind: "special", chunk };
    }
    const childOffset = place + offset - start;
    return { ...run, kind: "data", child: this.file, childOffset };
  }

  find(offset: number, length: number): Promise<ChunkRun<DmgChunk>> {
    return Promise.resolve(this.lookup(offset, length));
  }

  async readSpecial(
    { chunk }: ChunkRun<DmgChunk>,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    if (!chunk) throw damaged(`No chunk holds what is at ${offset}`);
    if (chunk.kind === KIND.RAW) {
      throw damaged(`The chunk at ${chunk.start} is cut off`);
    }
    await this.#reader.read(this.file, chunk, offset, iov, flags);
  }

  /** Index of the first chunk that begins after a byte of the disk. */
  #firstAfter(offset: number): number {
    let [low, high] = [0, this.#chunks.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#chunks[middle].start <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

async function decode(
  { kind, start }: DmgChunk,
  stored: Uint8Array,
  target: Uint8Array,
): Promise<void> {
  const isDone = kind === KIND.ZLIB
    ? await decompressZlib(stored, target)
    : kind === KIND.LZFSE
    ? (await import("./lzfse.ts")).decodeLzfse(stored, target)
    : DECODERS[kind]?.(stored, target);
  if (isDone) return;
  throw damaged(
    isDone === undefined
      ? `The chunk at ${start} has the unknown type ${kind.toString(16)}`
      : `The chunk at ${start} cannot be decompressed`,
  );
}
