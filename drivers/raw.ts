/**
 * The format driver `raw`: the disk is the file, or a window onto it.
 *
 * @module
 */
import { checkSignal } from "../core/abort.ts";
import {
  allocate,
  type IoVector,
  roundUp,
  SECTOR_SIZE,
  vectorLength,
} from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { chainStatus } from "../core/extents.ts";
import type {
  BlockNode,
  DiscardFlags,
  Extent,
  NodeInfo,
  ReadFlags,
  RequestFlags,
  SnapshotOperations,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../core/node.ts";
import {
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../core/options.ts";
import { ACCESS } from "../core/permissions.ts";
import type { ProbeGuard } from "../core/probe_guard.ts";
import { readPadded, writeZeroes } from "../core/requests.ts";

const OPEN_OPTIONS: OptionTable = {
  offset: {
    type: "size",
    default: 0,
    help: "Where in the file the disk begins, in bytes",
  },
  size: { type: "size", help: "Size of the disk, a multiple of 512 bytes" },
};

/** Whether its space is preallocated is up to the file. */
const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
};

/**
 * A disk that is its file, byte for byte; with `offset` and `size`, a part of
 * it. Without `size` the disk ends where the file does. Sizes count in sectors:
 * the file's size is rounded up to 512 bytes, and so is the rest after
 * `offset`. The added bytes read as zeroes.
 */
export const rawDriver: BlockDriver = {
  name: "raw",
  role: "format",
  openOptions: OPEN_OPTIONS,
  strongOptions: ["offset", "size"],
  createOptions: CREATE_OPTIONS,

  /** The lowest score: raw is whatever no other format claims. */
  probe: () => 1,

  /** A whole file passes claims on; a window must keep its place. */
  childPermissions(_name, { needs, shares }, { options }) {
    const isPart = options.offset !== undefined || options.size !== undefined;
    return { needs, shares: isPart ? shares & ~ACCESS.RESIZE : shares };
  },

  async open(options, context) {
    const { offset = 0, size } = parseOptions(OPEN_OPTIONS, options, ["file"]);
    const file = await context.openChild("file");
    checkWindow(
      sectorsOf(file),
      offset as number,
      size as number | undefined,
      options,
    );
    const isGuarded = context.probed && !context.readOnly;
    // A user who opens an overlay to commit it has not chosen the format below.
    if (isGuarded && !context.isNamed) {
      const { nameOf } = await import("../core/node_names.ts");
      context.report(probingWarning(nameOf(file)));
    }
    return new RawNode(file, {
      offset: offset as number,
      fixedSize: size as number | undefined,
      readOnly: context.readOnly,
      // Loaded on demand, to keep the start fast.
      guard: isGuarded
        ? new (await import("../core/probe_guard.ts")).ProbeGuard(file)
        : undefined,
    });
  },

  async create({ size }, context) {
    if (size === undefined) {
      throw new BlockError("EINVAL", "Image creation needs a size parameter");
    }
    await context.createFile(roundUp(size as number, SECTOR_SIZE));
  },

  async *stream(_options, source) {
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
    // Holes count as well.
    return { required: bytes, fullyAllocated: bytes };
  },
};

/** Bytes of a stream read at once. */
const STREAM_SIZE = 1024 * 1024;

interface RawOptions {
  readonly offset: number;
  /** The window's size, if the user gave one. */
  readonly fixedSize: number | undefined;
  readonly readOnly: boolean;
  /** Keeps the content from looking like another format. */
  readonly guard: ProbeGuard | undefined;
}

class RawNode implements BlockNode {
  readonly driver = rawDriver;
  readonly readOnly: boolean;
  #file: BlockNode;
  readonly #offset: number;
  readonly #fixedSize: number | undefined;
  readonly #guard: ProbeGuard | undefined;

  constructor(file: BlockNode, options: RawOptions) {
    const { offset, fixedSize } = options;
    this.readOnly = options.readOnly;
    this.#file = file;
    this.#offset = offset;
    this.#fixedSize = fixedSize;
    this.#guard = options.guard;
    if (file.copyFrom) this.copyFrom = this.#copyFrom;
  }

  get children(): { readonly file: BlockNode } {
    return { file: this.#file };
  }

  replaceChild(_role: string, file: BlockNode): void {
    checkWindow(sectorsOf(file), this.#offset, this.#fixedSize);
    this.#file = file;
    this.#guard?.useFile(file);
  }

  get filename(): string {
    return this.#file.filename;
  }

  /** Those of the file, if the disk is the whole file. */
  get snapshots(): SnapshotOperations | undefined {
    const isPart = this.#offset > 0 || this.#fixedSize !== undefined;
    const { driver, snapshots } = this.#file;
    return isPart || driver.role !== "protocol" ? undefined : snapshots;
  }

  get size(): number {
    const rest = Math.max(0, sectorsOf(this.#file) - this.#offset);
    return Math.min(
      this.#fixedSize ?? Infinity,
      roundUp(rest, SECTOR_SIZE),
    );
  }

  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    if (this.#fixedSize !== undefined) {
      this.#checkInside(offset, vectorLength(iov), "EINVAL");
    }
    const { debug } = this.#file;
    if (debug) await debug.event("read_aio");
    const { driver } = this.#file;
    // Only a protocol promises zeroes past its end.
    if (driver.role === "protocol") {
      return await this.#file.readv(this.#offset + offset, iov, flags);
    }
    await readPadded(this.#file, this.#offset + offset, iov, flags);
  }

  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    this.#checkWrite(offset, length);
    offset += this.#offset;
    const { debug } = this.#file;
    if (debug) await debug.event("write_aio");
    const guard = this.#guard;
    if (!guard) return await this.#file.writev!(offset, iov, flags);
    if (guard.watches(offset, length)) {
      return await guard.writev(offset, iov, flags);
    }
    guard.enter();
    try {
      await this.#file.writev!(offset, iov, flags);
    } finally {
      guard.leave();
    }
  }

  /** Present if the file has it. */
  copyFrom?: BlockNode["copyFrom"];

  async #copyFrom(
    offset: number,
    source: BlockNode,
    sourceOffset: number,
    length: number,
  ): Promise<void> {
    this.#checkWrite(offset, length);
    if (!this.#file.copyFrom) throw new BlockError("ENOTSUP");
    offset += this.#offset;
    // Watched ranges must be checked before they are written.
    if (this.#guard?.watches(offset, length)) throw new BlockError("ENOTSUP");
    await this.#unwatched(() =>
      this.#file.copyFrom!(offset, source, sourceOffset, length)
    );
  }

  /** Make a change outside the ranges that probing looks at. */
  async #unwatched(change: () => Promise<void>): Promise<void> {
    this.#guard?.enter();
    try {
      await change();
    } finally {
      this.#guard?.leave();
    }
  }

  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    this.#checkWrite(offset, length);
    offset += this.#offset;
    const file = this.#file;
    const zero = () => writeZeroes(file, offset, length, flags);
    if (!this.#guard?.watches(offset, length)) {
      return await this.#unwatched(zero);
    }
    await this.#guard.zero(offset, length, true, zero);
  }

  async discard(
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void> {
    this.#checkWrite(offset, length);
    offset += this.#offset;
    const file = this.#file;
    const discard = async () => await file.discard?.(offset, length, flags);
    if (!this.#guard?.watches(offset, length)) {
      return await this.#unwatched(discard);
    }
    await this.#guard.zero(offset, length, false, discard);
  }

  #checkWrite(offset: number, length: number): void {
    if (this.#fixedSize !== undefined) {
      this.#checkInside(offset, length, "ENOSPC");
    }
    if (!this.#file.writev) throw new BlockError("ENOTSUP");
  }

  /** Refuse access outside the window. */
  #checkInside(offset: number, length: number, code: "EINVAL" | "ENOSPC") {
    if (offset + length > this.#fixedSize!) throw new BlockError(code);
  }

  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    await this.#file.debug?.event("flush_to_os");
    await this.#file.debug?.event("flush_to_disk");
    await this.#file.flush?.(flags);
  }

  async truncate(size: number, options?: TruncateOptions): Promise<void> {
    if (this.#fixedSize !== undefined) {
      throw new BlockError("ENOTSUP", "Cannot resize fixed-size raw disks");
    }
    if (!this.#file.truncate) {
      throw new BlockError("ENOTSUP", "The file cannot be resized");
    }
    if (options?.preallocation === "metadata") {
      throw new BlockError(
        "ENOTSUP",
        "Unsupported preallocation mode: metadata",
      );
    }
    const end = this.#offset + size;
    const resize = () => this.#file.truncate!(end, options);
    await (this.#guard ? this.#guard.resize(end, resize) : resize());
  }

  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    const hostOffset = this.#offset + offset;
    const inside = Math.min(length, this.#file.size - hostOffset);
    const place = { allocated: true, hostOffset, file: this.#file };
    if (inside <= 0) return { length, zero: true, ...place };
    // Below may be an image with backing files of its own.
    const below = await chainStatus(this.#file, hostOffset, inside, flags);
    let known = Math.min(below.length, inside);
    // The file's last unit is transferred whole.
    const { requestAlignment = 1 } = this.#file.limits ?? {};
    const end = hostOffset + known;
    if (end === this.#file.size) known += roundUp(end, requestAlignment) - end;
    return {
      ...place,
      allocated: below.allocated,
      zero: below.zero,
      length: Math.min(known, length),
      ...(below.recurse && { recurse: true }),
    };
  }

  async info(): Promise<NodeInfo> {
    const { clusterSize, dirty } = await this.#file.info?.() ?? {};
    return { clusterSize, dirty };
  }

  async close(): Promise<void> {}
}

function probingWarning(filename: string): string {
  return `WARNING: Image format was not specified for '${filename}' and probing ` +
    "guessed raw.\n" +
    "         Automatically detecting the format is dangerous for raw " +
    "images, write operations on block 0 will be restricted.\n" +
    "         Specify the 'raw' format explicitly to remove the restrictions.";
}

/** A file's size rounded up to sectors. */
function sectorsOf(file: BlockNode): number {
  return roundUp(file.size, SECTOR_SIZE);
}

/** Refuse a window beyond the file; `given` is how the user wrote it. */
function checkWindow(
  fileSize: number,
  offset: number,
  size: number | undefined,
  given: OptionValues = {},
): void {
  // Text has all the digits of a number that is too large to be exact.
  const text = (name: string, value: number) =>
    /^\d+$/.test(String(given[name])) ? given[name] : value;
  if (offset > fileSize) {
    throw new BlockError(
      "EINVAL",
      `Offset (${
        text("offset", offset)
      }) cannot be greater than size of the containing ` +
        `file (${fileSize})`,
    );
  }
  if (size === undefined) return;
  if (fileSize - offset < size) {
    throw new BlockError(
      "EINVAL",
      `The sum of offset (${text("offset", offset)}) and size ` +
        `(${text("size", size)}) has to be smaller or equal to the  actual ` +
        `size of the containing file (${fileSize})`,
    );
  }
  if (size % SECTOR_SIZE !== 0) {
    throw new BlockError("EINVAL", "Specified size is not multiple of 512");
  }
}
