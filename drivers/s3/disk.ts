/**
 * The node of a disk in numbered blocks.
 *
 * @module
 */
import { checkSignal, unlessAborted } from "../../core/abort.ts";
import {
  fillVector,
  type IoVector,
  roundDown,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { InFlight } from "../../core/requests.ts";
import type {
  BlockNode,
  DiscardFlags,
  Extent,
  ReadFlags,
  RequestFlags,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../../core/node.ts";
import { ACCESS } from "../../core/permissions.ts";
import type { DriverTraits, Permissions } from "../../core/traits.ts";
import { Blocks } from "./blocks.ts";
import type { S3Client } from "./client.ts";
import { type Layout, type Sizes, writeDescription } from "./layout.ts";
import { type ForeignLease, inUse, type Lease } from "./lease.ts";
import { S3_TRAITS, s3Name } from "./names.ts";

/** Most blocks covered by one `status`. */
const MAX_RUN = 2 ** 16;

/** Most pages of a listing used to determine the space of a disk. */
const MAX_PAGES = 16;

/** Parameters of an opened disk. */
export interface DiskOptions {
  readonly key: string;
  readonly layout: Layout;
  readonly sizes: Sizes;
  /** Whether the size is in our description, so that it can change. */
  readonly isDescribed: boolean;
  readonly readOnly: boolean;
  /** Whether flushes do nothing. */
  readonly noFlush: boolean;
  readonly readAhead: number;
  /** Our own lease. */
  readonly lease?: Lease;
  /** The lease that another writer held when this was opened for reading. */
  readonly foreign?: ForeignLease;
}

/** A disk in numbered blocks. */
export class Disk implements BlockNode {
  readonly driver: DriverTraits = S3_TRAITS;
  readonly filename: string;
  readonly readOnly: boolean;
  readonly children = {};
  readonly writev?: BlockNode["writev"];
  readonly writeZeroes?: BlockNode["writeZeroes"];
  readonly discard?: BlockNode["discard"];
  readonly flush?: BlockNode["flush"];
  readonly truncate?: BlockNode["truncate"];
  readonly #client: S3Client;
  readonly #options: DiskOptions;
  readonly #blocks: Blocks;
  readonly #objectSize: number;
  #size: number;
  /** The size in the stored description. */
  #storedSize: number;

  /** A disk; its lease, if it has one, now belongs to the node. */
  constructor(client: S3Client, options: DiskOptions) {
    const { key, layout, sizes, readOnly, lease, foreign } = options;
    this.filename = s3Name(client.settings.bucket, key);
    this.readOnly = readOnly;
    this.#client = client;
    this.#options = options;
    this.#objectSize = sizes.objectSize;
    this.#size = this.#storedSize = sizes.size;
    this.#blocks = new Blocks(client, {
      layout,
      objectSize: sizes.objectSize,
      lease,
      // A reader that shares it with a writer accepts changes. The service's
      // clock has whole seconds: a change in the same second may be an earlier
      // one.
      since: readOnly && !foreign ? client.now + 999 : Infinity,
      readAhead: options.readAhead,
      fileSize: () => this.#size,
    });
    if (readOnly) return;
    this.writev = this.#write;
    this.writeZeroes = this.#writeZeroes;
    this.discard = this.#discard;
    this.flush = (flags) =>
      options.noFlush ? Promise.resolve() : this.#flush(flags);
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
    const length = vectorLength(iov);
    const inside = Math.max(0, Math.min(length, this.#size - offset));
    await this.#each(
      offset,
      inside,
      flags?.signal,
      (index, start, at, take) =>
        this.#blocks.read(
          index,
          start,
          sliceVector(iov, at, take),
          flags?.signal,
        ),
    );
    if (inside < length) fillVector(iov, inside, length - inside);
  }

  readonly #write = async (
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> => {
    const length = vectorLength(iov);
    this.#reach(offset + length);
    await this.#each(
      offset,
      length,
      flags?.signal,
      (index, start, at, take) =>
        this.#blocks.write(
          index,
          start,
          sliceVector(iov, at, take),
          flags?.signal,
        ),
    );
    if (flags?.fua) await this.#flush();
  };

  readonly #writeZeroes = async (
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> => {
    this.#reach(offset + length);
    await this.#zero(offset, length, flags?.signal);
    if (flags?.fua) await this.#flush();
  };

  readonly #discard = async (
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void> => {
    const inside = Math.min(length, this.#size - offset);
    if (inside > 0) await this.#zero(offset, inside, flags?.signal);
  };

  async #zero(
    offset: number,
    length: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const unit = this.#objectSize;
    const first = Math.ceil(offset / unit);
    const end = Math.floor((offset + length) / unit);
    const part = (offset: number, length: number) =>
      this.#each(
        offset,
        length,
        signal,
        (index, start, _at, take) =>
          this.#blocks.zero(index, start, take, signal),
      );
    if (first >= end) return await part(offset, length);
    await part(offset, first * unit - offset);
    await part(end * unit, offset + length - end * unit);
    await this.#blocks.zeroAll(first, end);
  }

  /** Grow to `end` if need be. */
  #reach(end: number): void {
    if (end <= this.#size) return;
    const { layout, isDescribed } = this.#options;
    if (!isDescribed) throw new BlockError("ENOSPC");
    const last = Math.ceil(end / this.#objectSize);
    if (last > 16 ** layout.digits) throw new BlockError("EFBIG");
    this.#size = end;
  }

  /** Call `act` for the part of each block in a range. */
  async #each(
    offset: number,
    length: number,
    signal: AbortSignal | undefined,
    act: (
      index: number,
      start: number,
      done: number,
      take: number,
    ) => Promise<void>,
  ): Promise<void> {
    if (length <= 0) return;
    const unit = this.#objectSize;
    const start = offset % unit;
    const index = (offset - start) / unit;
    if (start + length <= unit) return await act(index, start, 0, length);
    const parts = new InFlight(signal);
    for (let done = 0; done < length && !parts.hasFailed;) {
      const at = offset + done;
      const start = at % unit;
      const take = Math.min(unit - start, length - done);
      await parts.add(act((at - start) / unit, start, done, take));
      done += take;
    }
    await parts.end();
  }

  async #flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    await this.#blocks.flush(flags?.signal);
    const size = this.#size;
    if (size === this.#storedSize || !this.#options.isDescribed) return;
    const { layout, lease } = this.#options;
    lease?.check();
    const sizes = { size, objectSize: this.#objectSize };
    await writeDescription(this.#client, layout, sizes, lease?.signal);
    this.#storedSize = size;
  }

  readonly #truncate = async (
    size: number,
    options: TruncateOptions = {},
  ): Promise<void> => {
    const { preallocation = "off", exact } = options;
    if (preallocation !== "off") {
      throw new BlockError(
        "ENOTSUP",
        `Blocks of S3 cannot be preallocated ('${preallocation}')`,
      );
    }
    if (!this.#options.isDescribed) {
      if (size > this.#size || (exact && size !== this.#size)) {
        throw new BlockError(
          "ENOTSUP",
          "The size of this disk is given by the option 'size'",
        );
      }
      return;
    }
    if (size > this.#size) return this.#reach(size);
    const before = this.#size;
    // What is cut off must read as zeroes when the disk grows again.
    await this.#zero(size, before - size, options.signal);
    this.#size = size;
  };

  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const place = { allocated: true, hostOffset: offset, file: this };
    const inside = Math.min(length, this.#size - offset);
    if (inside <= 0) return { length, zero: true, ...place };
    const unit = this.#objectSize;
    const first = roundDown(offset, unit) / unit;
    if (this.#blocks.isZero(first) === undefined) {
      const learnt = this.#blocks.listing.learn(first);
      await unlessAborted(learnt, flags?.signal);
    }
    const zero = this.#blocks.isZero(first);
    const end = Math.min(
      Math.ceil((offset + inside) / unit),
      first + MAX_RUN,
    );
    let index = first + 1;
    while (index < end && this.#blocks.isZero(index) === zero) index++;
    return {
      length: Math.min(inside, index * unit - offset),
      zero: zero ?? false,
      ...place,
    };
  }

  /** The space is not reported if that would take many requests. */
  async info(): Promise<{ actualSize?: number }> {
    const { listing } = this.#blocks;
    const end = Math.ceil(this.#size / this.#objectSize);
    for (let page = 0; page < MAX_PAGES; page++) {
      const next = listing.firstUnknown(0, end);
      if (next === undefined) {
        const count = [...listing.present(0, end)].length;
        return { actualSize: count * this.#objectSize };
      }
      await listing.learn(next);
    }
    return {};
  }

  /** Refuse to read what another program is writing to. */
  setPermissions({ shares }: Permissions): void {
    const { layout, foreign } = this.#options;
    if (foreign && !(shares & ACCESS.WRITE)) throw inUse(layout, foreign);
  }

  async close(): Promise<void> {
    const { lease } = this.#options;
    try {
      if (!this.readOnly) await this.#flush();
    } finally {
      await this.#blocks.close();
      await lease?.release();
    }
  }
}

/** Remove all blocks of a disk. */
export async function removeBlocks(
  client: S3Client,
  layout: Layout,
  lease: Lease | undefined,
  objectSize: number,
): Promise<void> {
  const blocks = new Blocks(client, {
    layout,
    objectSize,
    lease,
    since: Infinity,
    readAhead: 0,
    fileSize: () => 0,
  });
  try {
    await blocks.zeroAll(0, Infinity);
  } finally {
    await blocks.close();
  }
}
