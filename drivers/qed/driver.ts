/**
 * The format driver `qed`: QEMU's enhanced disk format.
 *
 * @module
 */
import { divideUp } from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import { MappedNode } from "../../core/mapped_node.ts";
import type {
  BlockNode,
  CheckOptions,
  CheckResult,
  ImageOperations,
  NodeInfo,
  RequestLimits,
  TruncateOptions,
  ZeroFlags,
} from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { openBacking } from "../../core/parents.ts";
import { writeZeroData } from "../../core/requests.ts";
import {
  ENTRY,
  type TwoLevelLayout,
  TwoLevelMap,
  type TwoLevelRun,
} from "../../core/two_level_map.ts";
import { QED_CREATE_OPTIONS } from "./create_options.ts";
import {
  backingFormatOf,
  clustersEnd,
  encodeHeader,
  FEATURE,
  featuresOf,
  HEADER_SIZE,
  isSizeValid,
  MAX_NAME,
  type QedHeader,
  readHeader,
  tableEntries,
} from "./header.ts";

/** The value of an L2 entry that stands for zeroes. */
const ZERO_CLUSTER = 1;

/** QEMU's format between qcow2 version 2 and version 3. */
export const qedDriver: BlockDriver = {
  name: "qed",
  role: "format",
  openOptions: {},
  createOptions: QED_CREATE_OPTIONS,
  open,
  create: async (options, context) =>
    await (await import("./create.ts")).createQed(options, context),
};

async function open(
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  parseOptions({}, options, ["file", "backing"]);
  const file = await context.openChild("file");
  const header = await readHeader(file);
  const { purpose, readOnly } = context;
  if (!readOnly && purpose !== "info") {
    await clearUnknownFeatures(file, header);
    if (purpose !== "check") await recover(file, header);
  }
  const backing = await openBacking(
    header.backingFile,
    backingFormatOf(header),
    options,
    context,
  );
  const node = new QedNode(file, header, backing, context);
  if (purpose !== "info") await node.preload();
  return node;
}

/** Unknown features would be invalidated by a write. */
async function clearUnknownFeatures(
  file: BlockNode,
  header: QedHeader,
): Promise<void> {
  if (header.autoclear === 0n) return;
  header.autoclear = 0n;
  await file.writev!(0, [encodeHeader(header)]);
  await file.flush?.();
}

/** Repair an image that was not closed properly. */
async function recover(file: BlockNode, header: QedHeader): Promise<void> {
  if (!(header.features & FEATURE.NEED_CHECK)) return;
  const { checkErrors } = await check(file, header, true);
  if (checkErrors > 0) throw invalid("Image corrupted");
}

/** Check, and mark the image as clean if it is sound or was repaired. */
async function check(
  file: BlockNode,
  header: QedHeader,
  repairs: boolean,
): Promise<CheckResult> {
  const { checkTables } = await import("./check.ts");
  const result = await checkTables(file, header, repairs);
  const isClean = result.corruptions === 0 && result.checkErrors === 0;
  if (repairs && isClean) {
    // Repairs must be durable first: nobody would look for them again.
    await file.flush?.();
    await markClean(file, header);
  }
  return result;
}

/** Record durably that no check is needed, after everything else. */
async function markClean(file: BlockNode, header: QedHeader): Promise<void> {
  if (!(header.features & FEATURE.NEED_CHECK)) return;
  header.features &= ~FEATURE.NEED_CHECK;
  await file.writev!(0, [encodeHeader(header)]);
  await file.flush?.();
}

class QedNode extends MappedNode<TwoLevelRun> {
  readonly driver = qedDriver;
  readonly limits: RequestLimits;
  readonly image: ImageOperations = {
    check: (options) => this.#check(options),
    changeBacking: (name, format) => this.#changeBacking(name, format),
  };
  #header: QedHeader;
  #map!: TwoLevelMap;
  /** Held while the header is written. */
  readonly #changing = new Mutex();

  constructor(
    file: BlockNode,
    header: QedHeader,
    backing: BlockNode | undefined,
    context: OpenContext,
  ) {
    super({ file, backing, context, hasEvents: true });
    this.limits = { writeZeroesAlignment: header.clusterSize };
    this.#header = header;
    this.#useTables();
  }

  #useTables(): void {
    const { file } = this.children;
    const layout = layoutOf(this.#header, file, () => this.#markDirty());
    this.#map = new TwoLevelMap(file, layout, this.event);
    this.useMap(this.#map);
  }

  /** Load the L1 table. */
  preload(): Promise<void> {
    return this.#map.preload(this.size);
  }

  get size(): number {
    return this.#header.size;
  }

  /**
   * Record that the tables are about to change. The write order makes this
   * unnecessary here, but QEMU's driver relies on it, unless there is a backing
   * file.
   */
  #markDirty(): void | Promise<void> {
    const isNoted = (this.#header.features & FEATURE.NEED_CHECK) !== 0;
    if (isNoted || this.backing) return;
    return this.#changeHeader((header) => {
      header.features |= FEATURE.NEED_CHECK;
    });
  }

  /** Change the header, first in the file. */
  async #changeHeader(change: (header: QedHeader) => void): Promise<void> {
    using _ = await this.#changing.lock();
    const header = { ...this.#header };
    change(header);
    await this.children.file.writev!(0, [encodeHeader(header)]);
    this.#header = header;
  }

  /**
   * Zero clusters have no space. Clusters that have space keep it, and are
   * written to, as in QEMU.
   *
   * @throws {BlockError} ENOTSUP unless they are whole clusters, the last one up
   * to the end of the disk.
   */
  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    const { clusterSize, size } = this.#header;
    const end = offset + length;
    const isWhole = offset % clusterSize === 0 &&
      (end % clusterSize === 0 || end === size);
    if (!isWhole || flags?.noFallback) throw new BlockError("ENOTSUP");
    for (let at = offset; at < end;) {
      const run = await this.#zeroRun(at, end - at);
      if (!run.isDone) await writeZeroData(this, at, run.length, flags);
      at += run.length;
    }
    if (flags?.fua) await this.flush();
  }

  /** Zero the first run of clusters if it has no space. */
  async #zeroRun(
    offset: number,
    length: number,
  ): Promise<{ length: number; isDone: boolean }> {
    const { clusterSize } = this.#header;
    const first = offset / clusterSize;
    const end = divideUp(offset + length, clusterSize);
    using _ = await this.access.ranges.acquire(
      offset,
      end * clusterSize,
      true,
    );
    const run = await this.#map.find(offset, length);
    if (run.kind === "data") return { length: run.length, isDone: false };
    if (run.kind === "unallocated") {
      await this.#markDirty();
      const count = divideUp(run.length, clusterSize);
      for (let i = 0; i < count; i++) {
        await this.#map.setPlace(first + i, ZERO_CLUSTER);
      }
      await this.#map.relieve();
    }
    return { length: run.length, isDone: true };
  }

  async truncate(
    size: number,
    { preallocation = "off" }: TruncateOptions = {},
  ): Promise<void> {
    if (preallocation !== "off") {
      throw new BlockError(
        "ENOTSUP",
        `Unsupported preallocation mode '${preallocation}'`,
      );
    }
    const { backing } = this;
    // The format cannot hide the rest of a longer backing file.
    if (backing && size > this.size && backing.size > this.size) {
      throw new BlockError(
        "ENOTSUP",
        "Block driver does not support requested flags",
      );
    }
    if (!isSizeValid(size, this.#header)) {
      throw invalid("Invalid image size specified");
    }
    if (size < this.size) {
      throw new BlockError(
        "ENOTSUP",
        "Shrinking images is currently not supported",
      );
    }
    await this.#changeHeader((header) => {
      header.size = size;
    });
    await this.flush();
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    const { clusterSize, features, backingFile } = this.#header;
    return {
      clusterSize,
      dirty: (features & FEATURE.NEED_CHECK) !== 0,
      backingFile,
      backingFormat: backingFormatOf(this.#header),
    };
  }

  async #check({ repair }: CheckOptions = {}): Promise<CheckResult> {
    const { file } = this.children;
    await this.flush();
    const repairs = repair !== undefined;
    const result = await check(file, this.#header, repairs);
    // Cached tables may predate the repair.
    if (repairs) this.#useTables();
    return result;
  }

  /**
   * Record another name behind the header, not over the old one, so that the
   * header refers to either of them.
   */
  async #changeBacking(name?: string, format?: string): Promise<void> {
    const { compatible, clusterSize, headerClusters } = this.#header;
    // Unknown features may use the rest of the header clusters.
    if (name !== undefined && compatible !== 0n) {
      throw new BlockError("ENOTSUP");
    }
    const bytes = new TextEncoder().encode(name ?? "");
    if (bytes.length > MAX_NAME) throw new BlockError("ENOSPC");
    const { backingOffset, backingSize } = this.#header;
    const room = clusterSize * headerClusters;
    let offset = HEADER_SIZE;
    if (backingSize > 0 && backingOffset < offset + bytes.length) {
      const behind = backingOffset + backingSize;
      if (behind + bytes.length <= room) offset = behind;
    }
    if (offset + bytes.length > room) throw new BlockError("ENOSPC");
    const { file } = this.children;
    if (bytes.length > 0) {
      await file.writev!(offset, [bytes]);
      await file.flush?.();
    }
    await this.#changeHeader((header) => {
      header.features = header.features & FEATURE.NEED_CHECK |
        featuresOf(name, format);
      header.backingOffset = offset;
      header.backingSize = bytes.length;
      header.backingFile = name;
    });
    await file.flush?.();
  }

  override async close(): Promise<void> {
    if (this.readOnly) return;
    await this.flush();
    await markClean(this.children.file, this.#header);
  }
}

function layoutOf(
  header: QedHeader,
  file: BlockNode,
  allocating: () => void | Promise<void>,
): TwoLevelLayout {
  const { clusterSize, headerClusters, l1Offset } = header;
  const entries = tableEntries(header);
  return {
    clusterSize,
    l1Offset,
    l1Entries: entries,
    tableEntries: entries,
    isLittleEndian: true,
    headerSize: Math.max(headerClusters, 1) * clusterSize,
    end: clustersEnd(file, header),
    tableAlignment: clusterSize,
    tablesFirst: false,
    isEncrypted: false,
    decode(high, low) {
      const place = high * 2 ** 32 + low;
      if (place === ZERO_CLUSTER) return ENTRY.ZERO;
      return place % clusterSize === 0 ? place : ENTRY.DAMAGED;
    },
    damaged: () => new BlockError("EINVAL"),
    allocating,
  };
}
