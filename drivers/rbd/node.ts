/**
 * An open RBD image.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import {
  allocate,
  copyIntoVector,
  fillVector,
  flattenVector,
  type IoVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import type {
  BlockNode,
  DiscardFlags,
  Extent,
  NodeInfo,
  ReadFlags,
  RequestFlags,
  RequestLimits,
  SnapshotOperations,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../../core/node.ts";
import { Allocation } from "./allocation.ts";
import type { Cluster, OpenedImage } from "./cluster.ts";
import { checked, type Librbd } from "./librbd.ts";
import { rbdName } from "./names.ts";
import { RBD_TRAITS } from "./options.ts";
import type { Place } from "./place.ts";
import { RbdSnapshots } from "./snapshots.ts";

/** Largest transfer: its length must fit into a 32-bit result. */
const MAX_TRANSFER = 2 ** 26;
/** Largest range of a request that moves no data, for the same reason. */
const MAX_RANGE = 2 ** 30;

/** Store zeroes, rather than freeing the space. */
const THICK_PROVISION = 1;

/** The parts of a node. */
export interface RbdParts {
  readonly cluster: Cluster;
  readonly image: OpenedImage;
  readonly place: Place;
  /** Bytes. */
  readonly size: number;
  /** Bytes. */
  readonly objectSize: number;
  readonly readOnly: boolean;
  /** Whether flushes do nothing. */
  readonly noFlush: boolean;
}

/**
 * An open RBD image. Each request waits in a thread of its own; the library
 * runs them concurrently.
 */
export class RbdNode implements BlockNode {
  readonly driver = RBD_TRAITS;
  readonly filename: string;
  readonly readOnly: boolean;
  readonly children = {};
  readonly limits: RequestLimits = {
    maxTransfer: MAX_TRANSFER,
    maxWriteZeroes: MAX_RANGE,
    maxDiscard: MAX_RANGE,
  };
  readonly snapshots: SnapshotOperations;
  readonly writev?: BlockNode["writev"];
  readonly writeZeroes?: BlockNode["writeZeroes"];
  readonly discard?: BlockNode["discard"];
  readonly truncate?: BlockNode["truncate"];
  readonly #cluster: Cluster;
  readonly #library: Librbd;
  readonly #image: OpenedImage;
  readonly #objectSize: number;
  readonly #noFlush: boolean;
  readonly #allocation: Allocation;
  /** Held by whoever changes the size. */
  readonly #resizing = new Mutex();
  #size: number;

  /** The node closes the image and the cluster. */
  constructor(parts: RbdParts) {
    const { cluster, image, place, readOnly } = parts;
    this.#cluster = cluster;
    this.#library = cluster.library;
    this.#image = image;
    this.#size = parts.size;
    this.#objectSize = parts.objectSize;
    this.#noFlush = parts.noFlush;
    this.filename = rbdName(place);
    this.readOnly = readOnly;
    const { handle } = image;
    this.#allocation = new Allocation(
      this.#library,
      handle,
      parts.objectSize,
    );
    this.snapshots = new RbdSnapshots(this.#library, handle, {
      changed: async () => {
        this.#size = (await image.stat()).size;
      },
    });
    if (readOnly) return;
    this.writev = this.#write;
    this.writeZeroes = this.#writeZeroes;
    this.discard = this.#discard;
    this.truncate = this.#truncate;
  }

  get size(): number {
    return this.#size;
  }

  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    checkSignal(flags?.signal);
    const length = vectorLength(iov);
    const inside = Math.max(0, Math.min(length, this.#size - offset));
    const isPlain = iov.length === 1 && inside === length && isOwn(iov[0]);
    const bytes = isPlain ? iov[0] : allocate(inside);
    let read = 0;
    if (inside > 0) read = await this.#transfer("rbd_read", offset, bytes);
    if (!isPlain) copyIntoVector(iov, 0, bytes.subarray(0, read));
    // Another client may have made it smaller.
    if (read < length) fillVector(iov, read, length - read);
  }

  readonly #write = async (
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> => {
    checkSignal(flags?.signal);
    const flat = flattenVector(iov);
    if (flat.length > 0) {
      await this.#reach(offset + flat.length);
      const bytes = isOwn(flat) ? flat : new Uint8Array(flat);
      const written = await this.#transfer("rbd_write", offset, bytes);
      // Another client has made it smaller.
      if (written < bytes.length) throw new BlockError("ENOSPC");
    }
    if (flags?.fua) await this.flush();
  };

  /** `bytes` stays referenced until the end, so that it is not freed. */
  async #transfer(
    verb: "rbd_read" | "rbd_write",
    offset: number,
    bytes: Uint8Array,
  ): Promise<number> {
    // V8 moves small arrays about until their `buffer` is accessed.
    void bytes.buffer;
    const { handle } = this.#image;
    const { length } = bytes;
    const result = await this.#library[verb](handle, offset, length, bytes);
    return Math.min(checked(result), bytes.length);
  }

  readonly #writeZeroes = async (
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> => {
    checkSignal(flags?.signal);
    // Ceph stores such zeroes as data.
    if (flags?.noFallback && !flags.unmap) throw new BlockError("ENOTSUP");
    await this.#reach(offset + length);
    const zeroFlags = flags?.unmap ? 0 : THICK_PROVISION;
    const { handle } = this.#image;
    checked(
      await this.#library.rbd_write_zeroes(
        handle,
        offset,
        length,
        zeroFlags,
        0,
      ),
    );
    if (flags?.fua) await this.flush();
  };

  readonly #discard = async (
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void> => {
    checkSignal(flags?.signal);
    const inside = Math.min(length, this.#size - offset);
    if (inside <= 0) return;
    const { handle } = this.#image;
    checked(await this.#library.rbd_discard(handle, offset, inside));
  };

  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    if (this.#noFlush || this.readOnly) return;
    checked(await this.#library.rbd_flush(this.#image.handle));
  }

  readonly #truncate = async (
    size: number,
    options?: TruncateOptions,
  ): Promise<void> => {
    const { preallocation = "off" } = options ?? {};
    if (preallocation !== "off") {
      throw new BlockError(
        "ENOTSUP",
        `Unsupported preallocation mode '${preallocation}'`,
      );
    }
    using _held = await this.#resizing.lock();
    await this.#resize(size);
  };

  /** Grow the image as far as a write needs. */
  async #reach(end: number): Promise<void> {
    if (end <= this.#size) return;
    using _held = await this.#resizing.lock();
    if (end > this.#size) await this.#resize(end);
  }

  async #resize(size: number): Promise<void> {
    const result = await this.#library.rbd_resize(this.#image.handle, size);
    checked(result, "Failed to resize file");
    this.#size = size;
  }

  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const place = { allocated: true, hostOffset: offset, file: this };
    const inside = Math.min(length, this.#size - offset);
    if (inside <= 0) return { length, zero: true, ...place };
    const run = await this.#allocation.find(offset, inside);
    return {
      length: run?.length ?? inside,
      zero: run?.hasData === false,
      ...place,
    };
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    return {
      clusterSize: this.#objectSize,
      dirty: false,
      specific: { type: "rbd", data: {} },
    };
  }

  async close(): Promise<void> {
    try {
      await this.flush();
    } finally {
      try {
        await this.#image.close();
      } finally {
        await this.#cluster.close();
      }
    }
  }
}

/** Whether the library may use the memory, which must not be shared. */
function isOwn(bytes: Uint8Array): boolean {
  return bytes.buffer instanceof ArrayBuffer;
}
