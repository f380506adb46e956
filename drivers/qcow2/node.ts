/**
 * An opened image: which part handles each request, and which lock it needs.
 * Rarely used parts are loaded on demand.
 *
 * @module
 */
import { checkSignal, lockUnlessAborted } from "../../core/abort.ts";
import {
  type IoVector,
  roundUp,
  SECTOR_SIZE,
  vectorLength,
} from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import {
  asBlockError,
  BlockError,
  OutOfRangeError,
  reasonOf,
} from "../../core/errors.ts";
import { type Held, Mutex } from "../../core/lock.ts";
import type {
  AmendOptions,
  BitmapInfo,
  BlockNode,
  CheckOptions,
  CheckResult,
  CompressOptions,
  DiscardFlags,
  Extent,
  ImageLayout,
  ImageOperations,
  NodeInfo,
  ReadFlags,
  RequestFlags,
  SnapshotOperations,
  TruncateOptions,
  VmStateOperations,
  WriteFlags,
  ZeroFlags,
} from "../../core/node.ts";
import type { OptionValues } from "../../core/options.ts";
import { bitmapOperations } from "./bitmaps/operations.ts";
import { Autoclear, Compatible, Crypt, Incompatible } from "./format.ts";
import { losesFeatures } from "./first_change.ts";
import { hasBitmaps, type Header } from "./header.ts";
import type { Qcow2State } from "./state.ts";
import type { TableCache } from "./table_cache.ts";

/**
 * Loads a module on first use, once for all callers: a repeated `import` takes
 * longer than a small request, and could reorder requests.
 */
function once<T>(load: () => Promise<T>): () => Promise<T> {
  let loaded: Promise<T> | undefined;
  return () => loaded ??= load();
}

const loadUnmap = once(() => import("./unmap.ts"));
const loadWriteCompressed = once(() => import("./write_compressed.ts"));

/** Steps of opening that can be repeated later. */
export interface ReopenHooks {
  /** Reread everything. */
  reread(): Promise<void>;
  /** Switch to a header, with empty caches that fit it. */
  adopt(header: Header): void;
  /** Change the options. */
  change(options: OptionValues): Promise<void>;
}

/** An opened image. */
export class Qcow2Node implements BlockNode {
  readonly driver: BlockDriver;
  readonly filename: string;
  readonly limits;
  readonly #state: Qcow2State;
  readonly #hooks: ReopenHooks;
  readonly #amending = new Mutex();
  /** Size of the file before anything was written to it. */
  readonly #sizeAtOpen: number;

  readonly image: ImageOperations;
  readonly vmState: VmStateOperations = {
    save: (offset, iov) => this.#saveVmState(offset, iov),
    load: (offset, iov) => this.#loadVmState(offset, iov),
  };

  constructor(
    driver: BlockDriver,
    filename: string,
    state: Qcow2State,
    hooks: ReopenHooks,
  ) {
    this.driver = driver;
    this.filename = filename;
    this.#state = state;
    this.#sizeAtOpen = state.file.size;
    this.#hooks = hooks;
    this.image = {
      check: async (options) => {
        using _ = await this.#state.operations.drain();
        return await this.#check(options);
      },
      amend: (options, how) => this.#amend(options, how),
      changeBacking: (name, format) => this.#changeBacking(name, format),
      makeEmpty: () => this.#makeEmpty(),
      layout: async (options) => {
        using _ = await this.#state.operations.drain();
        return await this.#layout(options);
      },
      bitmaps: bitmapOperations(state),
    };
    if (state.dataFile.copyFrom) this.copyFrom = this.#copyFrom;
    const { clusterSize, l2 } = state.geometry;
    this.limits = {
      ...(state.encryption && { requestAlignment: SECTOR_SIZE }),
      writeZeroesAlignment: l2.subclusterSize,
      discardAlignment: clusterSize,
    };
  }

  get size(): number {
    return this.#state.header.size;
  }

  get readOnly(): boolean {
    return this.#state.readOnly;
  }

  get children(): { [role: string]: BlockNode | undefined } {
    const { plainFile: file, backing, plainDataFile } = this.#state;
    const dataFile = plainDataFile === file ? undefined : plainDataFile;
    return { file, "data-file": dataFile, backing };
  }

  /** Repair what an unclean shutdown left. */
  async prepareForWriting(): Promise<void> {
    const { header } = this.#state;
    if (header.incompatible.low & Incompatible.DIRTY) {
      const result = await this.#check({
        repair: { leaks: true, corruptions: true },
        report: (line) => this.#state.behaviour.report(line),
      });
      if (result.checkErrors > 0) {
        throw new BlockError(
          "EIO",
          "Could not repair dirty image: Input/output error",
        );
      }
    }
  }

  /**
   * Begin a request. The disk may have become shorter while it waited.
   *
   * @throws {BlockError} EINVAL if the range is not within the disk any more;
   * ENOMEDIUM if the image was found damaged.
   */
  #begin(offset: number, length: number): Held | Promise<Held> {
    this.#state.cleaner?.countRequest();
    const share = this.#state.operations.share();
    const end = offset + length;
    const isReady = !(share instanceof Promise) && end <= this.size &&
      !this.#state.unusable;
    return isReady ? share : this.#checkRange(share, end);
  }

  async #checkRange(share: Held | Promise<Held>, end: number): Promise<Held> {
    const held = await share;
    const { unusable } = this.#state;
    if (end <= this.size && !unusable) return held;
    held[Symbol.dispose]();
    if (unusable) throw new BlockError("ENOMEDIUM");
    throw new OutOfRangeError(
      `'${this.filename}' has ${this.size} bytes, and ends before ${end}`,
    );
  }

  /** Bitmaps must record a write before it is made. */
  #mark(offset: number, length: number): void | Promise<void> {
    this.#checkWritable();
    return this.#state.recorder?.mark(offset, length);
  }

  /**
   * The modules that change an image are not even loaded for a read-only one.
   */
  #checkWritable(): void {
    if (this.#state.readOnly) throw new BlockError("EACCES");
  }

  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void> {
    const { access } = this.#state;
    const share = this.#begin(offset, vectorLength(iov));
    return access.readv(offset, iov, flags, share);
  }

  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const share = this.#begin(offset, vectorLength(iov));
    const held = share instanceof Promise
      ? await lockUnlessAborted(share, flags?.signal)
      : share;
    try {
      const marked = this.#mark(offset, vectorLength(iov));
      if (marked) await marked;
      await this.#state.access.writev(offset, iov, flags);
    } finally {
      held[Symbol.dispose]();
    }
    if (flags?.fua) await this.flush();
  }

  /** Present if the file has it. */
  copyFrom?: BlockNode["copyFrom"];

  async #copyFrom(
    offset: number,
    source: BlockNode,
    sourceOffset: number,
    length: number,
  ): Promise<void> {
    if (!this.#state.dataFile.copyFrom) throw new BlockError("ENOTSUP");
    using _ = await this.#begin(offset, length);
    const marked = this.#mark(offset, length);
    if (marked) await marked;
    const payload = { source, offset: sourceOffset, length };
    await this.#state.access.writev(offset, payload);
  }

  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    {
      const share = this.#begin(offset, length);
      using _ = await lockUnlessAborted(share, flags?.signal);
      const marked = this.#mark(offset, length);
      if (marked) await marked;
      const { zeroGuest } = await loadUnmap();
      await zeroGuest(this.#state, offset, length, flags);
    }
    if (flags?.fua) await this.flush();
  }

  async discard(
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void> {
    const share = this.#begin(offset, length);
    using _ = await lockUnlessAborted(share, flags?.signal);
    const marked = this.#mark(offset, length);
    if (marked) await marked;
    const { discardGuest } = await loadUnmap();
    await discardGuest(this.#state, offset, length);
  }

  async writeCompressed(
    offset: number,
    iov: IoVector,
    options?: CompressOptions,
  ): Promise<void> {
    const length = vectorLength(iov);
    const share = this.#begin(offset, length);
    using _ = await lockUnlessAborted(share, options?.signal);
    const marked = this.#mark(offset, length);
    if (marked) await marked;
    const { writeCompressedGuest } = await loadWriteCompressed();
    await writeCompressedGuest(this.#state, offset, iov, options);
  }

  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    if (this.readOnly) return;
    const turn = this.#state.metadata.lock();
    using _ = await lockUnlessAborted(turn, flags?.signal);
    this.#state.checkUsable();
    await this.#state.flushCaches("needed");
  }

  async truncate(size: number, options?: TruncateOptions): Promise<void> {
    this.#checkWritable();
    using _ = await this.#state.operations.drain();
    this.#state.checkUsable();
    const { resize } = await import("./resize.ts");
    await resize(this.#state, size, options);
  }

  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    this.#state.cleaner?.countRequest();
    const share = this.#state.operations.share();
    const held = share instanceof Promise
      ? await lockUnlessAborted(share, flags?.signal)
      : share;
    try {
      this.#state.checkUsable();
      return await this.#state.access.status(offset, length, flags);
    } finally {
      held[Symbol.dispose]();
    }
  }

  async info(): Promise<NodeInfo> {
    const { header, geometry } = this.#state;
    let bitmapsFault: string | undefined;
    const bitmaps = await this.#bitmaps((fault) => bitmapsFault = fault);
    return {
      ...(bitmaps && { bitmaps }),
      ...(bitmapsFault !== undefined && { bitmapsFault }),
      clusterSize: geometry.clusterSize,
      dirty: (header.incompatible.low & Incompatible.DIRTY) !== 0,
      encrypted: header.cryptMethod !== Crypt.NONE,
      backingFile: header.backingFile,
      backingFormat: header.backingFormat,
      vmStateOffset: geometry.vmStateOffset(header.size),
      specific: {
        type: "qcow2",
        data: specificInfo(header, bitmaps, await this.#encryptionInfo()),
      },
    };
  }

  /** Absent if the image is not encrypted. */
  async #encryptionInfo(): Promise<Record<string, unknown> | undefined> {
    const { header, luks } = this.#state;
    if (header.cryptMethod === Crypt.NONE) return undefined;
    if (!luks) return { format: "aes" };
    const { describeHeader } = await import(
      "../../core/crypto/luks_header.ts"
    );
    return { format: "luks", ...describeHeader(luks.volume.header, false) };
  }

  /** Absent if the image's version cannot keep any. */
  async #bitmaps(
    tell: (fault: string) => void,
  ): Promise<BitmapInfo[] | undefined> {
    const { bitmaps, header } = this.#state;
    if (header.version < 3) return undefined;
    if (bitmaps) return bitmaps.list();
    if (!hasBitmaps(header)) return [];
    try {
      return await listBitmaps(this.#state);
    } catch (error) {
      // Everything else about the image can still be described.
      tell(asBlockError(error).message);
      return [];
    }
  }

  get snapshots(): SnapshotOperations {
    const state = this.#state;
    const alone = async <T>(act: () => Promise<T>): Promise<T> => {
      state.checkOpen();
      using _ = await state.operations.drain();
      state.checkUsable();
      return await act();
    };
    const change = async <T>(act: () => Promise<T>): Promise<T> => {
      this.#checkWritable();
      return await alone(act);
    };
    const load = () => import("./snapshots.ts");
    return {
      list: async () =>
        (await import("./snapshot_list.ts")).listSnapshots(state),
      create: (request) =>
        change(async () => (await load()).createSnapshot(state, request)),
      apply: (name) =>
        change(async () => (await load()).applySnapshot(state, name)),
      delete: (name) =>
        change(async () => (await load()).deleteSnapshot(state, name)),
      loadTemporary: (name) =>
        alone(async () => (await load()).loadSnapshot(state, name)),
    };
  }

  async #saveVmState(offset: number, iov: IoVector): Promise<void> {
    const state = this.#state;
    this.#checkWritable();
    using _ = await state.operations.drain();
    const start = state.geometry.vmStateOffset(state.header.size) + offset;
    const end = start + vectorLength(iov);
    {
      using _lock = await state.metadata.lock();
      await state.clusters.growL1(state.geometry.l1EntriesFor(end), false);
    }
    await state.access.writev(start, iov);
  }

  async #loadVmState(offset: number, iov: IoVector): Promise<void> {
    const state = this.#state;
    const held = await state.operations.share();
    await state.access.readv(
      state.geometry.vmStateOffset(state.header.size) + offset,
      iov,
      undefined,
      held,
    );
  }

  replaceChild(role: string, child: BlockNode): void {
    if (role === "file") this.#state.useFile(child);
    else this.#state.backing = child;
  }

  async invalidate(): Promise<void> {
    const state = this.#state;
    using _ = await state.operations.drain();
    using _lock = await state.metadata.lock();
    if (!state.readOnly) await state.flushCaches();
    await state.bitmaps?.store();
    await this.#hooks.reread();
    await this.#reloadBitmaps();
  }

  async reopen(options: OptionValues): Promise<void> {
    const state = this.#state;
    using _ = await state.operations.drain();
    using _lock = await state.metadata.lock();
    state.checkUsable();
    await this.#hooks.change(options);
  }

  async #layout(options?: RequestFlags): Promise<ImageLayout> {
    const state = this.#state;
    state.checkOpen();
    using _ = await state.metadata.lock();
    state.checkUsable();
    if (!state.readOnly) await state.flushCaches();
    const { readLayout } = await import("./layout.ts");
    return await readLayout(state, options);
  }

  async #check(options?: CheckOptions): Promise<CheckResult> {
    const state = this.#state;
    state.checkOpen();
    using _ = await state.metadata.lock();
    state.checkUsable();
    if (!state.readOnly) await state.flushCaches();
    const { checkImage } = await import("./check.ts");
    if (!options?.repair) return await checkImage(state, options ?? {});
    await state.bitmaps?.store();
    // A repair invalidates features that are not known here.
    await state.prepareChange();
    let result: CheckResult;
    try {
      result = await checkImage(state, options);
    } catch (error) {
      // However far it got, tables in memory are not those of the file.
      await state.reload().catch(() => state.abandon());
      throw error;
    }
    await state.reload();
    await this.#reloadBitmaps();
    return result;
  }

  /** Bitmaps in the file may have been changed by another program. */
  async #reloadBitmaps(): Promise<void> {
    const state = this.#state;
    if (!state.bitmaps) return;
    state.forgetBitmaps();
    await this.beginBitmaps();
  }

  /** Load the bitmaps that are to be kept up to date. */
  async beginBitmaps(): Promise<void> {
    const state = this.#state;
    const bitmaps = await state.loadBitmaps();
    // Unknown autoclear features stay until something is actually changed.
    if (!state.readOnly && !losesFeatures(state.header)) {
      await bitmaps.beginWriting();
    }
  }

  async #makeEmpty(): Promise<void> {
    this.#checkWritable();
    using _ = await this.#state.operations.drain();
    this.#state.checkUsable();
    // Loaded on demand, to keep the start fast.
    const { makeEmpty } = await import("./empty.ts");
    await makeEmpty(this.#state);
  }

  async #changeBacking(name?: string, format?: string): Promise<void> {
    using _ = await this.#state.operations.drain();
    if (name !== undefined && this.#state.dataFileIsRaw) {
      throw new BlockError("EINVAL");
    }
    // A name that is too long is refused before anything is written.
    await this.#state.changeHeader({
      backingFile: name,
      backingFormat: name === undefined ? undefined : format,
    });
  }

  async #amend(options: OptionValues, how: AmendOptions = {}): Promise<void> {
    this.#checkWritable();
    const state = this.#state;
    const { amend } = await import("./amend.ts");
    using _ = await this.#amending.lock();
    await amend(state, options, how, () => this.#hooks.adopt(state.header));
  }

  async close(): Promise<void> {
    const state = this.#state;
    using _amending = await this.#amending.lock();
    try {
      if (!state.readOnly && !state.unusable) {
        using _ = await state.operations.drain();
        using _lock = await state.metadata.lock();
        await state.flushCaches().catch((error) => this.#explain(error));
        if (!state.unusable) {
          const lost = await this.#storeBitmaps();
          await state.markClean();
          await this.#padToSector();
          if (lost) throw lost;
        }
      }
    } finally {
      state.closeData();
    }
  }

  /** Returns why bitmaps could not be stored; those that changed are lost. */
  async #storeBitmaps(): Promise<BlockError | undefined> {
    try {
      await this.#state.bitmaps?.store();
    } catch (error) {
      return asBlockError(error).prefixed(
        "Lost persistent bitmaps during inactivation of node " +
          `'${this.filename}': `,
      );
    }
  }

  /**
   * Extend a file that has grown to a whole sector: shown as a device, it would
   * lose a partial one. Data of a disk that does not consist of sectors gets
   * this only here, where nobody else is writing.
   */
  async #padToSector(): Promise<void> {
    const { file } = this.#state;
    const isWhole = file.size % SECTOR_SIZE === 0;
    if (isWhole || file.size <= this.#sizeAtOpen) return;
    // If that fails, the file is still complete to everyone else.
    await file.truncate?.(roundUp(file.size, SECTOR_SIZE)).catch(() => {});
  }

  /** Retry each cache on its own, to report which one failed. */
  async #explain(error: unknown): Promise<void> {
    const { l2Cache, refcountCache, unusable } = this.#state;
    // The corruption has been reported, and nothing more may be written.
    if (unusable) return;
    const failures: string[] = [];
    const attempt = async (name: string, cache: TableCache) => {
      try {
        await cache.flush();
      } catch (error) {
        const why = reasonOf(error);
        failures.push(`Failed to flush the ${name} cache: ${why}`);
      }
    };
    await attempt("L2 table", l2Cache);
    await attempt("refcount block", refcountCache);
    if (failures.length === 0) throw error;
    const { code } = asBlockError(error);
    throw new BlockError(code, failures.join("\n"), { cause: error });
  }
}

/** The bitmaps of an image none of whose bitmaps has been used. */
async function listBitmaps(
  { file, header, geometry }: Qcow2State,
): Promise<BitmapInfo[]> {
  const { describeBitmap, readBitmapDirectory } = await import(
    "./bitmaps/directory.ts"
  );
  const directory = await readBitmapDirectory(
    file,
    header.bitmaps!,
    geometry,
    header.size,
  );
  return directory.map(describeBitmap);
}

/**
 * Format-specific information, with the names of QEMU's
 * `ImageInfoSpecificQCow2`.
 */
function specificInfo(
  header: Header,
  bitmaps: readonly BitmapInfo[] = [],
  encrypt?: Record<string, unknown>,
): Record<string, unknown> {
  const { version, incompatible, compatible, refcountOrder } = header;
  const common = {
    compat: version === 2 ? "0.10" : "1.1",
    "compression-type": header.compressionType,
    "refcount-bits": 2 ** refcountOrder,
    ...(encrypt && { encrypt }),
  };
  if (version === 2) return common;
  const hasDataFile = (incompatible.low & Incompatible.DATA_FILE) !== 0;
  const dataFile = hasDataFile && {
    ...(header.dataFile !== undefined && { "data-file": header.dataFile }),
    "data-file-raw": (header.autoclear.low & Autoclear.RAW_EXTERNAL_DATA) !== 0,
  };
  return {
    ...common,
    ...dataFile,
    ...(bitmaps.length > 0 && { bitmaps }),
    "lazy-refcounts": (compatible.low & Compatible.LAZY_REFCOUNTS) !== 0,
    corrupt: (incompatible.low & Incompatible.CORRUPT) !== 0,
    "extended-l2": (incompatible.low & Incompatible.EXTENDED_L2) !== 0,
  };
}
