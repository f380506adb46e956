/**
 * The format driver `qcow2`: binds the parts of an image into a node.
 *
 * @module
 */
import { type IoVector, SECTOR_SIZE, vectorLength } from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { asBlockError, BlockError, strerror } from "../../core/errors.ts";
import type {
  AmendOptions,
  BitmapInfo,
  BlockNode,
  CheckOptions,
  CheckResult,
  CompressOptions,
  Extent,
  NodeInfo,
  SnapshotOperations,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { unrefTimer } from "../../core/runtime.ts";
import type { Held } from "../../core/lock.ts";
import { AMEND_OPTIONS } from "./amend_options.ts";
import { listBitmaps } from "./bitmap_directory.ts";
import { CREATE_OPTIONS } from "./create_options.ts";
import { openEncryption } from "./encryption.ts";
import { Autoclear, Compatible, Crypt, Incompatible } from "./format.ts";
import { type Header, probe, readHeader } from "./header.ts";
import {
  behaviourOf,
  cacheSizes,
  flatten,
  joinOptions,
  OPEN_OPTIONS,
} from "./options.ts";
import { guestStatus, readGuest } from "./read.ts";
import {
  listSnapshots,
  loadSnapshotTable,
  vmStateOffset,
} from "./snapshot_list.ts";
import { Qcow2State } from "./state.ts";
import type { TableCache } from "./table_cache.ts";
import { discardGuest, zeroGuest } from "./unmap.ts";
import { writeGuest } from "./write.ts";
import { writeCompressedGuest } from "./write_compressed.ts";

/**
 * A program's first timer costs Deno 7 ms, clearing none at all another 6:
 * more than all of `info`. So there is none for a few requests, which leave
 * little in the caches, nor in the first seconds: most programs end by then.
 */
const REQUESTS_BEFORE_CLEANING = 64;
const MILLISECONDS_BEFORE_CLEANING = 3000;

/** Autoclear features that repairs leave right. */
const KEPT_FEATURES = Autoclear.BITMAPS | Autoclear.RAW_EXTERNAL_DATA;

/**
 * QEMU's copy-on-write format, versions 2 and 3.
 *
 * Options to open: `cache-size`, `l2-cache-size`, `l2-cache-entry-size` and
 * `refcount-cache-size`, in bytes.
 */
export const qcow2Driver: BlockDriver = {
  name: "qcow2",
  role: "format",
  openOptions: OPEN_OPTIONS,
  strongOptions: ["encrypt.key-secret"],
  joinOptions,
  createOptions: CREATE_OPTIONS,
  amendOptions: AMEND_OPTIONS,
  probe,
  open,
  // Loaded when they are used: every start would pay for them.
  create: async (options, context) =>
    (await import("./create.ts")).create(options, context),
  async *stream(options, source) {
    yield* (await import("./stream.ts")).streamImage(options, source);
  },
  measure: async (options, source) =>
    (await import("./measure.ts")).measure(options, source),
};

async function open(
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  let parsed = parseOpenOptions(options);
  const file = await context.openChild("file");
  const { purpose, readOnly } = context;
  const policy = {
    readOnly,
    forCheck: purpose === "check",
    infoOnly: purpose === "info",
    warn: (message: string) => context.warn(message),
  };
  const header = await readHeader(file, policy);
  const behaviour = behaviourOf(parsed, header, context);
  const sizes = (header: Header) => cacheSizes(parsed, header);
  const state = new Qcow2State(
    file,
    header,
    readOnly,
    sizes(header),
    behaviour,
  );
  state.encryption = await openEncryption(header, parsed, context);
  const load = async () => {
    await state.load();
    if (purpose !== "check") await loadSnapshotTable(state);
  };
  await load();
  if (context.describes("backing")) {
    if (options.backing !== null) {
      state.backing = await context.openChild("backing");
    }
  } else if (header.backingFile !== undefined) {
    state.backing = await context.openImplicit(
      "backing",
      header.backingFile,
      header.backingFormat,
    );
  }
  const adopt = (header: Header) => state.adopt(header, sizes(header));
  const reread = async () => {
    adopt(await readHeader(file, policy));
    await load();
  };
  const change = async (options: OptionValues) => {
    const wish = parseOpenOptions(options);
    const behaviour = behaviourOf(wish, state.header, context);
    // What makes no sense is refused before anything is changed.
    cacheSizes(wish, state.header);
    node.cleanCaches(cleanInterval(wish));
    if (!readOnly) await state.flushCaches();
    if (!readOnly && !behaviour.lazyRefcounts) await state.markClean();
    state.behaviour = behaviour;
    parsed = wish;
    adopt(state.header);
  };
  const node = new Qcow2Node(state, context.filename, {
    reread,
    adopt,
    change,
  });
  node.cleanCaches(cleanInterval(parsed));
  if (!readOnly && purpose === "io") await node.prepareForWriting();
  if (!readOnly && purpose === "check") await node.clearFeatures(KEPT_FEATURES);
  return node;
}

function parseOpenOptions(options: OptionValues): OptionValues {
  return parseOptions(OPEN_OPTIONS, flatten(options), ["file", "backing"]);
}

/** Seconds after which unused tables are let go of. */
function cleanInterval(options: OptionValues): number {
  return options["cache-clean-interval"] as number | undefined ?? 600;
}

/** What a node does over that its opening did first. */
interface Again {
  /** Read everything anew. */
  reread(): Promise<void>;
  /** Go on with a header, and empty caches that fit it. */
  adopt(header: Header): void;
  /** Go on with other options. */
  change(options: OptionValues): Promise<void>;
}

class Qcow2Node implements BlockNode {
  readonly driver = qcow2Driver;
  readonly filename: string;
  readonly limits;
  readonly #state: Qcow2State;

  readonly #again: Again;
  #cleaning?: ReturnType<typeof setInterval>;
  #cleanInterval = 0;
  #requests = 0;
  readonly #openedAt = performance.now();

  constructor(state: Qcow2State, filename: string, again: Again) {
    this.#state = state;
    this.#again = again;
    this.filename = filename;
    if (state.file.copyFrom) this.copyFrom = this.#copyFrom;
    const { clusterSize } = state.geometry;
    this.limits = {
      ...(state.encryption && { requestAlignment: SECTOR_SIZE }),
      writeZeroesAlignment: clusterSize,
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
    return { file: this.#state.file, backing: this.#state.backing };
  }

  /** Let go of cached tables that were not used for some seconds; 0: never. */
  cleanCaches(interval: number): void {
    if (interval > 2 ** 31 / 1000) {
      throw new BlockError("EINVAL", "Cache clean interval too big");
    }
    this.#cleanInterval = interval;
  }

  /** A request comes, which may leave tables in the caches. */
  #countRequest(): void {
    if (++this.#requests % REQUESTS_BEFORE_CLEANING !== 0) return;
    if (this.#cleaning !== undefined || this.#cleanInterval === 0) return;
    const age = performance.now() - this.#openedAt;
    if (age < MILLISECONDS_BEFORE_CLEANING) return;
    const state = this.#state;
    this.#cleaning = setInterval(() => {
      state.l2Cache.dropUnused();
      state.refcountCache.dropUnused();
    }, this.#cleanInterval * 1000);
    // Cleaning up is no reason for a program to go on.
    unrefTimer(this.#cleaning);
  }

  /** Repair what an unclean end left, and drop claims that writing voids. */
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
    await this.clearFeatures(0);
  }

  /**
   * Bitmaps are not kept up to date by this driver, and a feature that nobody
   * knows is not either: the format has a bit to say so. `kept` remain.
   */
  async clearFeatures(kept: number): Promise<void> {
    const { high, low } = this.#state.header.autoclear;
    const rest = low & kept;
    if (high === 0 && low === rest) return;
    await this.#state.changeHeader({ autoclear: { high: 0, low: rest } });
  }

  /**
   * Begin a request. While it waited, the disk may have become shorter.
   *
   * @throws {BlockError} EIO if the range is not within the disk any more.
   */
  #begin(offset: number, length: number): Held | Promise<Held> {
    this.#countRequest();
    const checked = (held: Held) => {
      if (offset + length <= this.size) return held;
      held[Symbol.dispose]();
      throw new BlockError("EIO");
    };
    const held = this.#state.operations.share();
    return held instanceof Promise ? held.then(checked) : checked(held);
  }

  async readv(offset: number, iov: IoVector): Promise<void> {
    using _ = await this.#begin(offset, vectorLength(iov));
    await readGuest(this.#state, offset, iov);
  }

  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    {
      using _ = await this.#begin(offset, vectorLength(iov));
      await writeGuest(this.#state, offset, iov);
    }
    if (flags?.fua) await this.flush();
  }

  /** Present where the file has it. */
  copyFrom?: BlockNode["copyFrom"];

  async #copyFrom(
    offset: number,
    source: BlockNode,
    sourceOffset: number,
    length: number,
  ): Promise<void> {
    using _ = await this.#begin(offset, length);
    const payload = { source, offset: sourceOffset, length };
    await writeGuest(this.#state, offset, payload);
  }

  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    {
      using _ = await this.#begin(offset, length);
      await zeroGuest(this.#state, offset, length, flags);
    }
    if (flags?.fua) await this.flush();
  }

  async discard(offset: number, length: number): Promise<void> {
    using _ = await this.#begin(offset, length);
    await discardGuest(this.#state, offset, length);
  }

  async writeCompressed(
    offset: number,
    iov: IoVector,
    options?: CompressOptions,
  ): Promise<void> {
    using _ = await this.#begin(offset, vectorLength(iov));
    await writeCompressedGuest(this.#state, offset, iov, options?.level);
  }

  async flush(): Promise<void> {
    if (this.readOnly) return;
    using _ = await this.#state.metadata.lock();
    this.#state.checkUsable();
    await this.#state.flushCaches();
  }

  async truncate(size: number, options?: TruncateOptions): Promise<void> {
    using _ = await this.#state.operations.exclude();
    this.#state.checkUsable();
    const { resize } = await import("./resize.ts");
    await resize(this.#state, size, options);
  }

  async status(offset: number, length: number): Promise<Extent> {
    this.#countRequest();
    using _ = await this.#state.operations.share();
    return await guestStatus(this.#state, offset, length);
  }

  async info(): Promise<NodeInfo> {
    const { file, header, geometry } = this.#state;
    const bitmaps = await listBitmaps(file, header, geometry);
    return {
      ...(bitmaps && { bitmaps }),
      clusterSize: geometry.clusterSize,
      dirty: (header.incompatible.low & Incompatible.DIRTY) !== 0,
      encrypted: header.cryptMethod !== Crypt.NONE,
      backingFile: header.backingFile,
      backingFormat: header.backingFormat,
      vmStateOffset: geometry.l1EntriesFor(header.size) * geometry.l2Coverage,
      specific: { type: "qcow2", data: specificInfo(header, bitmaps) },
    };
  }

  get snapshots(): SnapshotOperations {
    const state = this.#state;
    const alone = async <T>(act: () => Promise<T>): Promise<T> => {
      using _ = await state.operations.exclude();
      state.checkUsable();
      return await act();
    };
    const load = () => import("./snapshots.ts");
    return {
      list: () => Promise.resolve(listSnapshots(state)),
      create: (request) =>
        alone(async () => (await load()).createSnapshot(state, request)),
      apply: (name) =>
        alone(async () => (await load()).applySnapshot(state, name)),
      delete: (name) =>
        alone(async () => (await load()).deleteSnapshot(state, name)),
      loadTemporary: (name) =>
        alone(async () => (await load()).loadSnapshot(state, name)),
    };
  }

  async saveVmState(offset: number, iov: IoVector): Promise<void> {
    const state = this.#state;
    using _ = await state.operations.exclude();
    const start = vmStateOffset(state) + offset;
    const end = start + vectorLength(iov);
    {
      using _lock = await state.metadata.lock();
      await state.clusters.growL1(state.geometry.l1EntriesFor(end), false);
    }
    await writeGuest(state, start, iov);
  }

  async loadVmState(offset: number, iov: IoVector): Promise<void> {
    using _ = await this.#state.operations.share();
    await readGuest(this.#state, vmStateOffset(this.#state) + offset, iov);
  }

  async invalidate(): Promise<void> {
    const state = this.#state;
    using _ = await state.operations.exclude();
    using _lock = await state.metadata.lock();
    if (!state.readOnly) await state.flushCaches();
    await this.#again.reread();
  }

  async reopen(options: OptionValues): Promise<void> {
    const state = this.#state;
    using _ = await state.operations.exclude();
    using _lock = await state.metadata.lock();
    state.checkUsable();
    await this.#again.change(options);
  }

  async check(options?: CheckOptions): Promise<CheckResult> {
    using _ = await this.#state.operations.exclude();
    return await this.#check(options);
  }

  async #check(options?: CheckOptions): Promise<CheckResult> {
    const state = this.#state;
    using _ = await state.metadata.lock();
    state.checkUsable();
    if (!state.readOnly) await state.flushCaches();
    const { checkImage } = await import("./check.ts");
    const result = await checkImage(state, options ?? {});
    if (options?.repair) await state.reload();
    return result;
  }

  async makeEmpty(): Promise<void> {
    using _ = await this.#state.operations.exclude();
    this.#state.checkUsable();
    // Loaded when it is used: every start would pay for it.
    const { makeEmpty } = await import("./empty.ts");
    await makeEmpty(this.#state);
  }

  async changeBacking(name?: string, format?: string): Promise<void> {
    using _ = await this.#state.operations.exclude();
    // Too long a name is found out before anything is written.
    await this.#state.changeHeader({
      backingFile: name,
      backingFormat: name === undefined ? undefined : format,
    });
  }

  async amend(options: OptionValues, how: AmendOptions = {}): Promise<void> {
    const state = this.#state;
    using _ = await state.operations.exclude();
    state.checkUsable();
    const { amend } = await import("./amend.ts");
    await amend(state, options, how, () => this.#again.adopt(state.header));
  }

  async close(): Promise<void> {
    const state = this.#state;
    const { file, backing } = state;
    try {
      if (!state.readOnly && !state.unusable) {
        using _ = await state.operations.exclude();
        using _lock = await state.metadata.lock();
        await state.flushCaches().catch((error) => this.#explain(error));
        await state.markClean();
      }
    } finally {
      if (this.#cleaning !== undefined) clearInterval(this.#cleaning);
      state.compressed.close();
      await file.close();
      await backing?.close();
    }
  }

  /** Tables could not be written: try once more, and say which ones fail. */
  async #explain(error: unknown): Promise<never> {
    const { l2Cache, refcountCache } = this.#state;
    const failures: string[] = [];
    const attempt = async (name: string, cache: TableCache) => {
      try {
        await cache.flush();
      } catch (error) {
        const why = strerror(asBlockError(error).code);
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

/** What only this format has, in the names of QEMU's `ImageInfoSpecificQCow2`. */
function specificInfo(
  header: Header,
  bitmaps: readonly BitmapInfo[] = [],
): Record<string, unknown> {
  const { version, incompatible, compatible, refcountOrder } = header;
  const common = {
    compat: version === 2 ? "0.10" : "1.1",
    "compression-type": header.compressionType,
    "refcount-bits": 2 ** refcountOrder,
    ...(header.cryptMethod === Crypt.AES && { encrypt: { format: "aes" } }),
  };
  if (version === 2) return common;
  const dataFile = header.dataFile === undefined ? {} : {
    "data-file": header.dataFile,
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
