/**
 * The node of a VMDK.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import { Access, eventOf } from "../../core/access.ts";
import {
  allocate,
  flattenVector,
  type IoVector,
  roundUp,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import type { OpenContext } from "../../core/driver.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import { skipFilters } from "../../core/extents.ts";
import { wrapNode } from "../../core/filter.ts";
import type {
  BlockNode,
  CompressOptions,
  Extent as NodeExtent,
  ImageOperations,
  NodeInfo,
  ReadFlags,
  RequestFlags,
  RequestLimits,
  WriteFlags,
} from "../../core/node.ts";
import { nameOf } from "../../core/node_names.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { openBacking } from "../../core/parents.ts";
import type { DriverTraits } from "../../core/traits.ts";
import { isPlainObject } from "../../core/values.ts";
import { compressGrain } from "./compressed.ts";
import { newCid, NO_PARENT, withCid } from "./descriptor.ts";
import type { Extent } from "./extent.ts";
import { ExtentMap } from "./extent_map.ts";
import { type OpenedImage, openImage } from "./open.ts";
import { SparseExtent } from "./sparse_extent.ts";

/** Open an image. */
export async function openVmdk(
  driver: DriverTraits,
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  parseOptions({}, options, ["file", "backing", "extents"]);
  const file = await context.openChild("file");
  const { extents } = options;
  const given = isPlainObject(extents) || Array.isArray(extents)
    ? extents as { readonly [index: number]: unknown }
    : [];
  const image = await openImage(file, context, async (index, name) => {
    const child = `extents.${index}`;
    try {
      return { child, node: await context.openPart(child, name, given[index]) };
    } catch (thrown) {
      const error = asBlockError(thrown);
      if (!error.message.startsWith("Cannot generate a base dir")) throw error;
      const described = `VMDK descriptor file '${nameOf(file)}'`;
      throw error.prefixed(`Cannot use relative paths with ${described}: `);
    }
  });
  if (context.purpose !== "info") {
    for (const extent of image.extents) await extent.preload?.();
  }
  const { parentFile } = image.descriptor;
  const backing = await openBacking(parentFile, "vmdk", options, context);
  return new VmdkNode(driver, file, backing, image, context);
}

class VmdkNode implements BlockNode {
  readonly driver: DriverTraits;
  readonly filename: string;
  readonly readOnly: boolean;
  children: { readonly [role: string]: BlockNode | undefined };
  readonly limits?: RequestLimits;
  readonly image: ImageOperations = {
    check: async (options = {}) =>
      await (await import("./check.ts")).checkExtents(this.#extents, options),
  };
  readonly writev?: BlockNode["writev"];
  readonly writeZeroes?: BlockNode["writeZeroes"];
  readonly writeCompressed?: BlockNode["writeCompressed"];
  /** As for {@linkcode Access}; absent without a listener. */
  event?: (name: string) => void | Promise<void>;
  /** The parent, checked before the first read from it. */
  backing?: BlockNode;
  #file: BlockNode;
  readonly #image: OpenedImage;
  readonly #map: ExtentMap;
  readonly #access: Access;
  readonly #context: OpenContext;
  #cid: number;
  /** Whether this session has changed the content id. */
  #isMarked = false;
  #marking?: Promise<void>;
  /** Fulfilled when all compressed grains so far are allocated. */
  #appends: Promise<void> = Promise.resolve();

  constructor(
    driver: DriverTraits,
    file: BlockNode,
    backing: BlockNode | undefined,
    image: OpenedImage,
    context: OpenContext,
  ) {
    this.driver = driver;
    this.filename = context.filename;
    this.children = { file, ...image.files, backing };
    this.backing = backing && this.#checkedParent(backing);
    this.#file = file;
    this.#image = image;
    this.#context = context;
    this.#cid = image.descriptor.cid;
    this.event = eventOf(this.#filesOfData(), context);
    this.#map = new ExtentMap(image.extents);
    this.#access = new Access(this, this.#map);
    this.readOnly = context.readOnly || !image.isWritable;
    if (this.readOnly) return;
    const [first] = image.extents;
    const isStream = first instanceof SparseExtent && first.isCompressed;
    this.writev = isStream
      ? (offset, iov, flags) => this.#writeStream(first, offset, iov, flags)
      : (offset, iov, flags) => this.#write(offset, iov, flags);
    this.writeCompressed = isStream
      ? (offset, iov, options) => this.#append(first, offset, iov, options)
      // As in QEMU, other kinds of extents store such data uncompressed.
      : (offset, iov) => this.#write(offset, iov);
    if (this.#extents.some((extent) => extent.zeroGrains)) {
      this.limits = { writeZeroesAlignment: this.#map.unit };
      this.writeZeroes = (offset, length, flags) =>
        this.#writeZeroes(offset, length, flags);
    }
  }

  get size(): number {
    return this.#map.size;
  }

  get #extents(): readonly Extent[] {
    return this.#image.extents;
  }

  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void> {
    return this.#access.readv(offset, iov, flags);
  }

  status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<NodeExtent> {
    return this.#access.status(offset, length, flags);
  }

  async #write(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    if (!this.#isMarked) await this.#mark();
    await this.#access.writev(offset, iov, flags);
    if (flags?.fua) await this.flush();
  }

  async #writeStream(
    extent: SparseExtent,
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    await this.#append(extent, offset, iov);
    if (flags?.fua) await this.flush();
  }

  async #writeZeroes(
    offset: number,
    length: number,
    flags?: WriteFlags,
  ): Promise<void> {
    const end = offset + length;
    const parts: [extent: Extent, start: number, end: number][] = [];
    for (let at = offset; at < end;) {
      const extent = this.#map.at(at);
      const { start, grainSize = 1 } = extent;
      const stop = Math.min(end, extent.end);
      const isWhole = (at - start) % grainSize === 0 &&
        (stop === extent.end || (stop - start) % grainSize === 0);
      if (!extent.zeroGrains || !isWhole) throw new BlockError("ENOTSUP");
      parts.push([extent, at, stop]);
      at = stop;
    }
    if (!this.#isMarked) await this.#mark();
    {
      const { unit } = this.#map;
      const [first, last] = [offset - offset % unit, roundUp(end, unit)];
      using _ = await this.#access.ranges.acquire(first, last, true);
      for (const [extent, at, stop] of parts) {
        await extent.zeroGrains!(at, stop - at);
      }
    }
    if (flags?.fua) await this.flush();
  }

  /** Append whole grains to the file, in the order of the calls. */
  async #append(
    extent: SparseExtent,
    offset: number,
    iov: IoVector,
    { level }: CompressOptions = {},
  ): Promise<void> {
    const length = vectorLength(iov);
    const { grainSize } = extent;
    const isWhole = offset % grainSize === 0 &&
      (length % grainSize === 0 || offset + length === this.size);
    if (!isWhole) throw new BlockError("EINVAL");
    const before = this.#appends;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#appends = promise;
    try {
      const { unit } = this.#map;
      const start = offset - offset % unit;
      using _ = await this.#access.ranges.acquire(
        start,
        roundUp(offset + length, unit),
        true,
      );
      if (!this.#isMarked) await this.#mark();
      if (await extent.hasGrains(offset, length)) {
        const detail =
          ": Could not write to allocated cluster for streamOptimized";
        throw new BlockError("EIO", `Input/output error${detail}`, { detail });
      }
      const grains = await compressAll(extent, offset, iov, level);
      await before;
      await extent.append(offset, grains);
    } finally {
      await before;
      resolve();
    }
  }

  /**
   * Change the content id, by which overlays detect that this image has
   * changed.
   */
  async #mark(): Promise<void> {
    try {
      await (this.#marking ??= this.#changeCid());
      this.#isMarked = true;
    } finally {
      this.#marking = undefined;
    }
  }

  async #changeCid(): Promise<void> {
    const { offset, length } = this.#image.place;
    const file = this.#file;
    const before = allocate(Math.min(length, file.size - offset));
    await file.readv(offset, [before]);
    const cid = newCid();
    const text = withCid(before, cid);
    const end = before.indexOf(0);
    const old = end < 0 ? before.length : end;
    if (text.length > length) {
      throw new BlockError("EFBIG", "VMDK description file too big");
    }
    // The length rarely changes, so that only one sector does, atomically.
    const first = text.findIndex((byte, at) => byte !== before[at]);
    const rest = allocate(Math.max(0, old - text.length));
    if (first >= 0) {
      const last = text.length === old
        ? text.findLastIndex((byte, at) => byte !== before[at]) + 1
        : text.length;
      await file.writev!(offset + first, [text.subarray(first, last), rest]);
    }
    this.#cid = cid;
  }

  #filesOfData(): BlockNode[] {
    return [...new Set(this.#extents.flatMap(({ file }) => file ?? []))];
  }

  /** A wrapper of the parent that refuses reads if the parent has changed. */
  #checkedParent(parent: BlockNode): BlockNode {
    let checking: Promise<void> | undefined;
    let isSound = false;
    const readChecked: BlockNode["readv"] = async (offset, iov, flags) => {
      await (checking ??= this.#checkParent(parent));
      isSound = true;
      await parent.readv(offset, iov, flags);
    };
    return wrapNode(parent, {
      readv: (offset, iov, flags) =>
        isSound
          ? parent.readv(offset, iov, flags)
          : readChecked(offset, iov, flags),
    });
  }

  async #checkParent(parent: BlockNode): Promise<void> {
    const { parentCid } = this.#image.descriptor;
    const { specific } = await skipFilters(parent).info?.() ?? {};
    const cid = specific?.type === "vmdk" ? specific.data.cid : undefined;
    if (parentCid === NO_PARENT && cid === undefined) return;
    if (cid === parentCid) return;
    const detail = cid === undefined
      ? `: the parent of '${this.filename}' is not a VMDK`
      : `: the parent of '${this.filename}' was changed after it was made`;
    throw new BlockError("EINVAL", `Invalid argument${detail}`, { detail });
  }

  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    if (this.readOnly) return;
    for (const extent of this.#extents) await extent.flush();
    // An extent in the same file has flushed it.
    const isExtent = this.#extents.some(({ file }) => file === this.#file);
    if (this.#isMarked && !isExtent) await this.#file.flush?.();
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    const { createType, descriptor, extents } = this.#image;
    const { parentCid, parentFile } = descriptor;
    const [first, ...others] = extents;
    const isUniform = others.every((other) =>
      other.isCompressed === first.isCompressed &&
      other.grainSize === first.grainSize
    );
    return {
      ...(isUniform && {
        clusterSize: first?.grainSize,
        compressed: first?.isCompressed || undefined,
        dirty: false,
      }),
      ...(parentFile !== undefined && {
        backingFile: parentFile,
        backingFormat: "vmdk",
      }),
      specific: {
        type: "vmdk",
        data: {
          "create-type": createType,
          "cid": this.#cid,
          "parent-cid": parentCid,
          "extents": extents.map((extent) => ({
            "filename": extent.file ? nameOf(extent.file) : "",
            "format": extent.type,
            "virtual-size": extent.end - extent.start,
            "cluster-size": extent.grainSize,
            "compressed": extent.isCompressed || undefined,
          })),
        },
      },
    };
  }

  replaceChild(role: string, child: BlockNode): void {
    if (role === "backing") this.backing = this.#checkedParent(child);
    else {
      const before = this.children[role];
      if (role === "file") this.#file = child;
      for (const extent of this.#extents) {
        if (extent.file === before) extent.useFile?.(child);
      }
      this.event = eventOf(this.#filesOfData(), this.#context);
    }
    this.children = { ...this.children, [role]: child };
  }

  close(): Promise<void> {
    return this.flush();
  }
}

async function compressAll(
  { start, grainSize }: SparseExtent,
  offset: number,
  iov: IoVector,
  level: number | undefined,
): Promise<Uint8Array[]> {
  const length = vectorLength(iov);
  const grains: Promise<Uint8Array>[] = [];
  for (let at = 0; at < length; at += grainSize) {
    const take = Math.min(grainSize, length - at);
    const content = flattenVector(sliceVector(iov, at, take));
    grains.push(compressGrain(content, (offset + at - start) / 512, level));
  }
  return await Promise.all(grains);
}
