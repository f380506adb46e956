/**
 * The format driver `raw`: the disk is the file, or a window onto it.
 *
 * @module
 */
import {
  allocate,
  type IoVector,
  roundUp,
  SECTOR_SIZE,
  sliceVector,
  vectorLength,
} from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { checkedExtent } from "../core/extents.ts";
import { Mutex } from "../core/lock.ts";
import type {
  BlockNode,
  Extent,
  NodeInfo,
  Preallocation,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../core/node.ts";
import { nameOf } from "../core/node_names.ts";
import { type OptionTable, parseOptions } from "../core/options.ts";
import { ACCESS } from "../core/permissions.ts";
import { PROBE_LENGTH, probeFormat } from "../core/registry.ts";
import { readPadded, writeZeroes } from "../core/requests.ts";

const OPEN_OPTIONS: OptionTable = {
  offset: {
    type: "size",
    default: 0,
    help: "Where in the file the disk begins, in bytes",
  },
  size: { type: "size", help: "Size of the disk, a multiple of 512 bytes" },
};

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  preallocation: {
    type: "enum",
    values: ["off", "falloc", "full"],
    help: "Preallocation mode (allowed values: off, falloc, full)",
  },
};

/**
 * A disk that is its file, byte for byte; with `offset` and `size`, a part of
 * it. Without `size` the disk ends where the file does. Disks are counted in
 * sectors: the file's size is rounded up to 512 bytes, and what `offset`
 * leaves of it once more. The bytes that adds read as zeroes.
 */
export const rawDriver: BlockDriver = {
  name: "raw",
  role: "format",
  openOptions: OPEN_OPTIONS,
  strongOptions: ["offset", "size"],
  createOptions: CREATE_OPTIONS,

  /** Sure of nothing: raw is what no other format claims. */
  probe: () => 1,

  /** All of a file is passed through; of a part, the place must stay. */
  childPermissions(_name, { needs, shares }, { options }) {
    const isPart = options.offset !== undefined || options.size !== undefined;
    return { needs, shares: isPart ? shares & ~ACCESS.RESIZE : shares };
  },

  async open(options, context) {
    const { offset = 0, size } = parseOptions(OPEN_OPTIONS, options, ["file"]);
    const file = await context.openChild("file");
    if (context.probed && !context.readOnly) {
      context.report(probingWarning(nameOf(file)));
    }
    return new RawNode(file, {
      offset: offset as number,
      fixedSize: size as number | undefined,
      readOnly: context.readOnly,
      guardHead: context.probed,
    });
  },

  async create(options, context) {
    const { size, preallocation } = options;
    if (size === undefined) {
      throw new BlockError("EINVAL", "Image creation needs a size parameter");
    }
    await context.createFile(
      roundUp(size as number, SECTOR_SIZE),
      preallocation as Preallocation | undefined,
    );
  },

  async *stream({ preallocation = "off" }, source) {
    if (preallocation !== "off") {
      throw new BlockError(
        "ENOTSUP",
        "Preallocation is not possible in a stream",
      );
    }
    const bytes = allocate(STREAM_SIZE);
    for await (const { offset, length, kind } of source.extents()) {
      if (kind !== "data") bytes.fill(0);
      for (let done = 0; done < length; done += STREAM_SIZE) {
        const part = bytes.subarray(0, Math.min(STREAM_SIZE, length - done));
        if (kind === "data") await source.read(offset + done, part);
        yield part;
      }
    }
  },

  // deno-lint-ignore require-await -- the interface is asynchronous
  async measure({ size = 0 }, source) {
    const bytes = source?.size ?? roundUp(size as number, SECTOR_SIZE);
    // What is unallocated counts as well, though it may take no space.
    return { required: bytes, fullyAllocated: bytes };
  },
};

/** Bytes of a stream that are read at once. */
const STREAM_SIZE = 1024 * 1024;

interface RawOptions {
  readonly offset: number;
  /** The window's size, if the user gave one. */
  readonly fixedSize: number | undefined;
  readonly readOnly: boolean;
  /** Whether the content must not come to look like another format. */
  readonly guardHead: boolean;
}

class RawNode implements BlockNode {
  readonly driver = rawDriver;
  readonly readOnly: boolean;
  readonly children: { readonly file: BlockNode };
  readonly #file: BlockNode;
  readonly #offset: number;
  readonly #fixedSize: number | undefined;
  /** Held from looking at the head until it has been written. */
  readonly #headLock: Mutex | undefined;

  constructor(file: BlockNode, options: RawOptions) {
    const { offset, fixedSize, guardHead } = options;
    checkWindow(sectorsOf(file), offset, fixedSize);
    this.children = { file };
    this.readOnly = options.readOnly;
    this.#file = file;
    this.#offset = offset;
    this.#fixedSize = fixedSize;
    if (guardHead) this.#headLock = new Mutex();
    if (file.copyFrom) this.copyFrom = this.#copyFrom;
  }

  get filename(): string {
    return this.#file.filename;
  }

  get size(): number {
    const rest = Math.max(0, sectorsOf(this.#file) - this.#offset);
    return Math.min(
      this.#fixedSize ?? Infinity,
      roundUp(rest, SECTOR_SIZE),
    );
  }

  async readv(offset: number, iov: IoVector): Promise<void> {
    if (this.#fixedSize !== undefined) {
      this.#checkInside(offset, vectorLength(iov), "EINVAL");
    }
    await this.#file.debugEvent?.("read_aio");
    const { driver } = this.#file;
    // Only a protocol promises zeroes past its end.
    if (driver.role === "protocol") {
      return await this.#file.readv(this.#offset + offset, iov);
    }
    await readPadded(this.#file, this.#offset + offset, iov);
  }

  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    this.#checkWrite(offset, length);
    offset += this.#offset;
    await this.#file.debugEvent?.("write_aio");
    if (!this.#touchesHead(offset, length)) {
      return await this.#file.writev!(offset, iov, flags);
    }
    using _held = await this.#headLock!.lock();
    // A copy is checked and written: the owner of the buffer, the guest
    // perhaps, may change it in between.
    const inHead = Math.min(length, PROBE_LENGTH - offset);
    const part = allocate(inHead);
    let at = 0;
    for (const piece of sliceVector(iov, 0, inHead)) {
      part.set(piece, at);
      at += piece.length;
    }
    await this.#checkHead(offset, length, part);
    const rest = sliceVector(iov, inHead, length - inHead);
    await this.#file.writev!(offset, [part, ...rest], flags);
  }

  /** Present where the file has it. */
  copyFrom?: BlockNode["copyFrom"];

  async #copyFrom(
    offset: number,
    source: BlockNode,
    sourceOffset: number,
    length: number,
  ): Promise<void> {
    this.#checkWrite(offset, length);
    offset += this.#offset;
    // The head is looked at before it is written.
    if (this.#touchesHead(offset, length)) throw new BlockError("ENOTSUP");
    await this.#file.copyFrom!(offset, source, sourceOffset, length);
  }

  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    this.#checkWrite(offset, length);
    offset += this.#offset;
    using _held = await this.#holdZeroedHead(offset, length);
    await writeZeroes(this.#file, offset, length, flags);
  }

  async discard(offset: number, length: number): Promise<void> {
    this.#checkWrite(offset, length);
    offset += this.#offset;
    using _held = await this.#holdZeroedHead(offset, length);
    await this.#file.discard?.(offset, length);
  }

  #checkWrite(offset: number, length: number): void {
    if (this.#fixedSize !== undefined) {
      this.#checkInside(offset, length, "ENOSPC");
    }
    if (!this.#file.writev) throw new BlockError("ENOTSUP");
  }

  /** What lies outside of a window is not ours to read or to write. */
  #checkInside(offset: number, length: number, code: "EINVAL" | "ENOSPC") {
    if (offset + length > this.#fixedSize!) throw new BlockError(code);
  }

  #touchesHead(offset: number, length: number): boolean {
    return this.#headLock !== undefined && offset < PROBE_LENGTH && length > 0;
  }

  async #holdZeroedHead(
    offset: number,
    length: number,
  ): Promise<Disposable | undefined> {
    if (!this.#touchesHead(offset, length)) return undefined;
    const held = await this.#headLock!.lock();
    try {
      const part = allocate(Math.min(length, PROBE_LENGTH - offset));
      await this.#checkHead(offset, length, part);
      return held;
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Refuse a write that would make the next probe find another format, whose
   * header could name any file of the host. `offset` is the file's, `part`
   * what of the write falls into the bytes that probing looks at.
   */
  async #checkHead(
    offset: number,
    length: number,
    part: Uint8Array,
  ): Promise<void> {
    const fileSize = Math.max(this.#file.size, offset + length);
    const head = allocate(Math.min(PROBE_LENGTH, fileSize));
    await readPadded(this.#file, 0, [head]);
    head.set(part, offset);
    if (probeFormat(head, this.filename) !== rawDriver) {
      throw new BlockError(
        "EPERM",
        "The format was not given but guessed to be raw, and this write " +
          "would make it look like another",
        { hint: "Open the image with the format 'raw' to permit it." },
      );
    }
  }

  async flush(): Promise<void> {
    await this.#file.debugEvent?.("flush_to_os");
    await this.#file.debugEvent?.("flush_to_disk");
    await this.#file.flush?.();
  }

  async truncate(size: number, options?: TruncateOptions): Promise<void> {
    if (this.#fixedSize !== undefined) {
      throw new BlockError("ENOTSUP", "Cannot resize fixed-size raw disks");
    }
    if (!this.#file.truncate) {
      throw new BlockError("ENOTSUP", "The file below cannot be resized");
    }
    if (options?.preallocation === "metadata") {
      throw new BlockError(
        "ENOTSUP",
        "Unsupported preallocation mode: metadata",
      );
    }
    await this.#file.truncate(this.#offset + size, options);
  }

  async status(offset: number, length: number): Promise<Extent> {
    const hostOffset = this.#offset + offset;
    const inside = Math.min(length, this.#file.size - hostOffset);
    const place = { hostOffset, file: this.#file };
    if (inside <= 0) return { kind: "zero", length, ...place };
    const below = checkedExtent(
      this.#file,
      await this.#file.status(hostOffset, inside),
    );
    return {
      kind: below.kind === "zero" ? "zero" : "data",
      length: Math.min(below.length, inside),
      ...place,
    };
  }

  async info(): Promise<NodeInfo> {
    const { clusterSize, dirty } = await this.#file.info?.() ?? {};
    return { clusterSize, dirty };
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

function probingWarning(filename: string): string {
  return `WARNING: Image format was not specified for '${filename}' and probing ` +
    "guessed raw.\n" +
    "         Automatically detecting the format is dangerous for raw " +
    "images, write operations on block 0 will be restricted.\n" +
    "         Specify the 'raw' format explicitly to remove the restrictions.";
}

/** A file's size as disks count it. */
function sectorsOf(file: BlockNode): number {
  return roundUp(file.size, SECTOR_SIZE);
}

function checkWindow(
  fileSize: number,
  offset: number,
  size: number | undefined,
): void {
  if (offset > fileSize) {
    throw new BlockError(
      "EINVAL",
      `Offset (${offset}) cannot be greater than size of the containing ` +
        `file (${fileSize})`,
    );
  }
  if (size === undefined) return;
  if (fileSize - offset < size) {
    throw new BlockError(
      "EINVAL",
      `The sum of offset (${offset}) and size (${size}) has to be smaller ` +
        `or equal to the  actual size of the containing file (${fileSize})`,
    );
  }
  if (size % SECTOR_SIZE !== 0) {
    throw new BlockError("EINVAL", "Specified size is not multiple of 512");
  }
}
