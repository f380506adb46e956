/**
 * A driver for a small read-only format: Android's sparse images, as `fastboot`
 * sends them. CONTRIBUTING.md goes through it step by step.
 *
 *     deno run -A examples/android_sparse.ts system.simg system.qcow2
 *
 * The format: https://android.googlesource.com/platform/system/core/+/main/libsparse/sparse_format.h
 *
 * @module
 */
import {
  type BlockDriver,
  BlockError,
  type BlockNode,
  convert,
  createImage,
  type Extent,
  type IoVector,
  openImage,
  type ReadFlags,
  registerDriver,
} from "@bdrv/bdrv";

const MAGIC = 0xed26ff3a;
const HEADER_SIZE = 28;
const CHUNK_HEADER_SIZE = 12;
/** Most chunks that are believed: each takes memory. */
const MAX_CHUNKS = 1_000_000;

/** Kinds of chunks. */
const [RAW, FILL, DONT_CARE, CRC32] = [0xcac1, 0xcac2, 0xcac3, 0xcac4];

/** A range of the disk, in bytes. */
interface Chunk {
  readonly start: number;
  readonly end: number;
  /** Where its bytes lie in the file; or the four bytes that are repeated. */
  readonly content: { readonly hostOffset: number } | Uint8Array;
}

/** The driver. */
export const androidSparseDriver: BlockDriver = {
  name: "android-sparse",
  role: "format",
  isReadOnly: true,
  openOptions: {},
  probe: (head) => viewOf(head).getUint32(0, true) === MAGIC ? 100 : 0,

  async open(_options, context) {
    const file = await context.openChild("file");
    const { size, chunks } = await readTable(file);
    return new AndroidSparseNode(file, context.filename, size, chunks);
  },
};

registerDriver(androidSparseDriver);

class AndroidSparseNode implements BlockNode {
  readonly driver = androidSparseDriver;
  readonly readOnly = true;
  readonly children: { readonly file: BlockNode };

  constructor(
    file: BlockNode,
    readonly filename: string,
    readonly size: number,
    readonly chunks: readonly Chunk[],
  ) {
    this.children = { file };
  }

  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    for (const buffer of iov) {
      for (let at = 0; at < buffer.length;) {
        const chunk = this.#chunkAt(offset + at);
        const length = Math.min(buffer.length - at, chunk.end - offset - at);
        const part = buffer.subarray(at, at + length);
        await this.#readChunk(chunk, offset + at - chunk.start, part, flags);
        at += length;
      }
      offset += buffer.length;
    }
  }

  async #readChunk(
    { content }: Chunk,
    within: number,
    bytes: Uint8Array,
    flags?: ReadFlags,
  ): Promise<void> {
    if (content instanceof Uint8Array) {
      for (let i = 0; i < bytes.length; i++) bytes[i] = content[within + i & 3];
    } else {
      const { file } = this.children;
      await file.readv(content.hostOffset + within, [bytes], flags);
    }
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async status(offset: number, length: number): Promise<Extent> {
    const { start, end, content } = this.#chunkAt(offset);
    const extent = { allocated: true, length: Math.min(length, end - offset) };
    if (content instanceof Uint8Array) {
      return { ...extent, zero: content.every((byte) => byte === 0) };
    }
    const hostOffset = content.hostOffset + offset - start;
    return { ...extent, zero: false, hostOffset, file: this.children.file };
  }

  /** The chunk that holds a byte of the disk: the last that starts before. */
  #chunkAt(offset: number): Chunk {
    let [low, high] = [0, this.chunks.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.chunks[middle].start <= offset) low = middle;
      else high = middle - 1;
    }
    return this.chunks[low];
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Read and check all that is not data. */
async function readTable(
  file: BlockNode,
): Promise<{ size: number; chunks: Chunk[] }> {
  const header = await readView(file, 0, HEADER_SIZE);
  if (header.getUint32(0, true) !== MAGIC) throw damaged("it has no magic");
  if (header.getUint16(4, true) !== 1) {
    throw new BlockError("ENOTSUP", "Unknown version of Android's format");
  }
  const fileHeaderSize = header.getUint16(8, true);
  const chunkHeaderSize = header.getUint16(10, true);
  const blockSize = header.getUint32(12, true);
  const size = header.getUint32(16, true) * blockSize;
  const count = header.getUint32(20, true);
  // Nothing in a file is believed before it is checked.
  if (
    fileHeaderSize < HEADER_SIZE || chunkHeaderSize < CHUNK_HEADER_SIZE ||
    blockSize === 0 || blockSize % 4 !== 0 || !Number.isSafeInteger(size)
  ) {
    throw damaged("its header makes no sense");
  }
  if (count > MAX_CHUNKS) throw damaged(`it has ${count} chunks`);
  const chunks: Chunk[] = [];
  let [at, start] = [fileHeaderSize, 0];
  for (let i = 0; i < count; i++) {
    const head = await readView(file, at, CHUNK_HEADER_SIZE);
    const kind = head.getUint16(0, true);
    const length = head.getUint32(4, true) * blockSize;
    const total = head.getUint32(8, true);
    const hostOffset = at + chunkHeaderSize;
    const stored = total - chunkHeaderSize;
    const end = start + length;
    at += total;
    const expected = kind === RAW ? length : kind === DONT_CARE ? 0 : 4;
    if (stored !== expected || end > size || at > file.size) {
      throw damaged(`its chunk ${i} does not fit`);
    }
    if (kind === CRC32) continue;
    if (![RAW, FILL, DONT_CARE].includes(kind)) {
      throw damaged(`its chunk ${i} is of no known kind`);
    }
    const content = kind === RAW
      ? { hostOffset }
      : kind === FILL
      ? new Uint8Array((await readView(file, hostOffset, 4)).buffer)
      : new Uint8Array(4);
    if (length > 0) chunks.push({ start, end, content });
    start = end;
  }
  if (start < size) {
    chunks.push({ start, end: size, content: new Uint8Array(4) });
  }
  return { size, chunks };
}

async function readView(
  file: BlockNode,
  offset: number,
  length: number,
): Promise<DataView> {
  if (offset + length > file.size) throw damaged("it ends too early");
  const bytes = new Uint8Array(length);
  await file.readv(offset, [bytes]);
  return viewOf(bytes);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function damaged(why: string): BlockError {
  return new BlockError("EINVAL", `The sparse image is damaged: ${why}`);
}

if (import.meta.main) {
  const [from, to] = Deno.args;
  await using source = await openImage(from, { readOnly: true });
  await createImage("qcow2", to, { size: source.size });
  await using target = await openImage({ driver: "qcow2", file: to });
  await convert(source, target, { targetIsZero: true });
  console.log(`${from}: ${source.format}, ${source.size} bytes`);
}
