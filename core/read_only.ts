/**
 * The common parts of nodes and maps for formats that can only be read.
 *
 * @module
 */
import { Access } from "./access.ts";
import type { Allocation, BlockMap, Place, Run } from "./block_map.ts";
import {
  allocate,
  copyIntoVector,
  type IoVector,
  vectorLength,
} from "./bytes.ts";
import type { BlockDriver, OpenContext } from "./driver.ts";
import { BlockError } from "./errors.ts";
import { Mutex } from "./lock.ts";
import type {
  BlockNode,
  Extent,
  NodeInfo,
  ReadFlags,
  RequestFlags,
} from "./node.ts";
import { parseOptions } from "./options.ts";

/**
 * Refuse to open an image for writing.
 *
 * @throws {BlockError} EACCES, for which `auto-read-only` tries again.
 */
function refuseWriting({ readOnly }: OpenContext): void {
  if (!readOnly) throw new BlockError("EACCES", "Image is read-only");
}

/** The parts of an image found in a file. */
export interface ReadOnlyImage<R extends Run> {
  /** Bytes of the disk. */
  readonly size: number;
  readonly map: ReadOnlyMap<R>;
  readonly info?: NodeInfo;
}

/** The driver of a format without options that can only be read. */
export function readOnlyDriver<R extends Run>(
  name: string,
  read: (file: BlockNode, context: OpenContext) => Promise<ReadOnlyImage<R>>,
): BlockDriver {
  const driver: BlockDriver = {
    name,
    role: "format",
    openOptions: {},

    async open(options, context) {
      parseOptions({}, options, ["file"]);
      refuseWriting(context);
      const file = await context.openChild("file");
      const image = await read(file, context);
      return new ReadOnlyNode(driver, context.filename, { file, ...image });
    },
  };
  return driver;
}

/** The map of a format that can only be read. */
export abstract class ReadOnlyMap<R extends Run = Run> implements BlockMap<R> {
  /** Granularity of locking; arbitrary, since nothing changes. */
  readonly unit: number = 64 * 1024;
  /** The file that holds the image. */
  protected file: BlockNode;

  /** Create the map of the image in a file. */
  constructor(file: BlockNode) {
    this.file = file;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.file = file;
  }

  /** The first run at an offset, if its table is in memory. */
  abstract lookup(offset: number, length: number): R | undefined;

  /** As `lookup`, loading the table if need be. */
  abstract find(offset: number, length: number): Promise<R>;

  /** Nothing can be written. */
  inPlace(): Place | undefined {
    return undefined;
  }

  /** As `inPlace`. */
  allocate(): Allocation {
    throw new BlockError("EACCES", "Image is read-only");
  }
}

/** The node of a format that can only be read. */
class ReadOnlyNode<R extends Run> implements BlockNode {
  readonly driver: BlockDriver;
  readonly filename: string;
  readonly readOnly = true;
  /** Bytes of the disk. */
  readonly size: number;
  children: { readonly file: BlockNode };
  readonly #map: ReadOnlyMap<R>;
  readonly #access: Access<R>;
  readonly #info: NodeInfo;

  /** Create the node of an image with a map. */
  constructor(
    driver: BlockDriver,
    filename: string,
    { file, size, map, info = {} }: ReadOnlyImage<R> & { file: BlockNode },
  ) {
    this.driver = driver;
    this.filename = filename;
    this.children = { file };
    this.size = size;
    this.#map = map;
    this.#info = info;
    this.#access = new Access(this, map);
  }

  /** Fill a vector from a part of the disk. */
  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void> {
    return this.#access.readv(offset, iov, flags);
  }

  /** The extent at an offset. */
  status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    return this.#access.status(offset, length, flags);
  }

  /** Describe the image. */
  info(): Promise<NodeInfo> {
    return Promise.resolve({ ...this.#info });
  }

  /** Switch to another file with the same content. */
  replaceChild(_role: string, file: BlockNode): void {
    this.children = { file };
    this.#map.useFile(file);
  }

  /** Nothing has to be saved. */
  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** A part of a disk that is stored and decoded as a whole. */
export interface Chunk {
  /** Its first byte on the disk. */
  readonly start: number;
  /** Bytes of the disk. */
  readonly size: number;
  /** Its offset in the file, and the number of bytes stored. */
  readonly place: number;
  readonly stored: number;
}

/** A run within one chunk. */
export interface ChunkRun<C extends Chunk> extends Run {
  readonly chunk?: C;
}

/** Larger chunks are decoded one at a time, to bound the memory. */
const LARGE = 4 * 1024 * 1024;

/** Reads parts of chunks. */
export class ChunkReader<C extends Chunk> {
  readonly #decode: (
    chunk: C,
    stored: Uint8Array,
    target: Uint8Array,
  ) => Promise<void>;
  /** The last chunk that was read in part: sequential readers need it again. */
  #last?: { readonly start: number; readonly content: Promise<Uint8Array> };
  readonly #large = new Mutex();

  /**
   * @param decode Fills `target` from the stored bytes, or fails with EIO.
   */
  constructor(
    decode: (
      chunk: C,
      stored: Uint8Array,
      target: Uint8Array,
    ) => Promise<void>,
  ) {
    this.#decode = decode;
  }

  /** Fill a vector from `offset` of the disk on, within the chunk. */
  async read(
    file: BlockNode,
    chunk: C,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const { start, size } = chunk;
    const length = vectorLength(iov);
    if (length === size && iov.length === 1) {
      return await this.#fill(file, chunk, iov[0], flags);
    }
    const content = await this.#contentOf(file, chunk);
    const from = offset - start;
    copyIntoVector(iov, 0, content.subarray(from, from + length));
  }

  /** Its content, shared by concurrent readers. */
  #contentOf(file: BlockNode, chunk: C): Promise<Uint8Array> {
    const { start, size } = chunk;
    if (this.#last?.start === start) return this.#last.content;
    const load = async () => {
      const bytes = allocate(size);
      await this.#fill(file, chunk, bytes);
      return bytes;
    };
    const content = load();
    const last = this.#last = { start, content };
    content.catch(() => {
      if (this.#last === last) this.#last = undefined;
    });
    return content;
  }

  async #fill(
    file: BlockNode,
    chunk: C,
    target: Uint8Array,
    flags?: ReadFlags,
  ): Promise<void> {
    const { start, place, stored, size } = chunk;
    if (place + stored > file.size) {
      throw damaged(`What is at ${start} goes past the end of the file`);
    }
    using _ = Math.max(stored, size) > LARGE
      ? await this.#large.lock()
      : undefined;
    const bytes = allocate(stored);
    await file.readv(place, [bytes], flags);
    await this.#decode(chunk, bytes, target);
  }
}

/** The error for a damaged part of an image. */
export function damaged(what: string): BlockError {
  return new BlockError("EIO", what);
}

/**
 * A 64-bit field as a number. One too large to be exact is larger than any
 * valid value.
 */
export function u64(view: DataView, at: number, littleEndian = false): number {
  return Number(view.getBigUint64(at, littleEndian));
}
