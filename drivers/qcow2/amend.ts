/**
 * Amending: changing options of an image in place.
 *
 * @module
 */
import { isPowerOfTwo } from "../../core/bytes.ts";
import {
  asBlockError,
  BlockError,
  invalid,
  reasonOf,
} from "../../core/errors.ts";
import type { AmendOptions } from "../../core/node.ts";
import {
  notAmong,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { shortened } from "../../core/values.ts";
import { AMEND_OPTIONS } from "./option_tables.ts";
import { type StepProgress, StepsProgress } from "./amend_progress.ts";
import { expandZeroClusters, hasCompressedClusters } from "./expand_zeroes.ts";
import { Autoclear, Compatible, hex, Incompatible } from "./format.ts";
import { changeRefcountWidth } from "./refcount_width.ts";
import { resize } from "./resize.ts";
import { isIncomplete } from "./snapshot_table.ts";
import { writeTable } from "./snapshots.ts";
import type { Qcow2State } from "./state.ts";

/** What is to change; absent fields stay as they are. */
interface Amendment {
  version: 2 | 3;
  /** Whether passphrases are added or erased. */
  changesSlots: boolean;
  refcountBits: number;
  lazyRefcounts: boolean;
  /** New size in bytes; 0 keeps it. */
  size: number;
}

function unsupported(message: string): BlockError {
  return new BlockError("ENOTSUP", message);
}

/**
 * Amend options. Only one amendment runs at a time. Steps that change tables or
 * the header hold the image exclusively; those that change keys do not.
 *
 * @param adopt Switches to the changed header, with caches that fit it.
 */
export async function amend(
  state: Qcow2State,
  options: OptionValues,
  how: AmendOptions,
  adopt: () => void,
): Promise<void> {
  const values = parseOptions(AMEND_OPTIONS, options);
  using hold = new ExclusiveHold(state);
  await hold.begin();
  const amendment = amendmentOf(state, values);
  const { header } = state;
  const oldVersion = header.version;
  const changesWidth = amendment.refcountBits !== 2 ** header.refcountOrder;
  const progress = new StepsProgress(
    Number(amendment.version !== oldVersion) + Number(amendment.changesSlots) +
      Number(changesWidth),
    how.progress,
  );
  // Widen what the format permits first, restrict it last.
  if (amendment.version > oldVersion) await upgrade(state, progress.step());
  if (amendment.changesSlots) {
    progress.step();
    const { amendLuks } = await import("./luks.ts");
    hold.end();
    await amendLuks(state.luks!, values, how.force);
    await hold.begin();
  }
  if (changesWidth) {
    if (amendment.version < 3 && amendment.refcountBits !== 16) {
      throw invalid(
        "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
      );
    }
    const order = Math.log2(amendment.refcountBits);
    await changeRefcountWidth(state, order, adopt, progress.step());
  }
  checkBacking(state, values);
  await setDataFile(state, values);
  await setLazyRefcounts(state, amendment);
  if (amendment.size > 0) await resize(state, amendment.size);
  if (amendment.version < oldVersion) await downgrade(state, progress.step());
}

/** Holds the image exclusively for some of the steps. */
class ExclusiveHold {
  readonly #state: Qcow2State;
  #held?: Disposable;

  constructor(state: Qcow2State) {
    this.#state = state;
  }

  async begin(): Promise<void> {
    this.#held = await this.#state.operations.drain();
    this.#state.checkUsable();
  }

  end(): void {
    this.#held?.[Symbol.dispose]();
    this.#held = undefined;
  }

  [Symbol.dispose](): void {
    this.end();
  }
}

/**
 * Options are checked in the order of the table; the first fault is reported.
 */
function amendmentOf(state: Qcow2State, values: OptionValues): Amendment {
  const { header, encryption, luks, behaviour } = state;
  const changesSlots = Object.keys(values).some((name) =>
    name.startsWith("encrypt.")
  );
  if (changesSlots && !luks) {
    throw encryption
      ? unsupported("Only LUKS encryption options can be amended")
      : invalid("Can't amend encryption options - encryption not present");
  }
  const version = versionOf(values.compat as string | undefined) ??
    header.version;
  if (values.data_file !== undefined && !state.hasDataFile) {
    throw invalid(
      "data-file can only be set for images that use an external data file",
    );
  }
  if (values.data_file_raw && !state.dataFileIsRaw) {
    throw invalid("data-file-raw cannot be set on existing images");
  }
  const refcountBits = values.refcount_bits as number | undefined ??
    2 ** header.refcountOrder;
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64) {
    throw invalid(
      "Refcount width must be a power of two and may not exceed 64 bits",
    );
  }
  return {
    version,
    changesSlots,
    refcountBits,
    lazyRefcounts: values.lazy_refcounts as boolean | undefined ??
      behaviour.lazyRefcounts,
    size: values.size as number | undefined ?? 0,
  };
}

function versionOf(compat: string | undefined): 2 | 3 | undefined {
  switch (compat) {
    case undefined:
      return undefined;
    case "v2":
    case "0.10":
      return 2;
    case "v3":
    case "1.1":
      return 3;
  }
  throw notAmong(
    `Unknown compatibility level ${shortened(String(compat), 80)}`,
    ["0.10", "1.1", "v2", "v3"],
  );
}

/** The backing file may be repeated, but not changed here. */
function checkBacking({ header }: Qcow2State, values: OptionValues): void {
  const { backing_file: file, backing_fmt: format } = values;
  if (file === undefined && format === undefined) return;
  if (file === header.backingFile && format === header.backingFormat) return;
  throw invalid(
    "Cannot amend the backing file",
    "You can use 'qemu-img rebase' instead.",
  );
}

/** Record another name of the data file, without opening it; "" removes it. */
async function setDataFile(
  state: Qcow2State,
  { data_file: name, data_file_raw: isRaw }: OptionValues,
): Promise<void> {
  const { header } = state;
  const isUntrue = isRaw === false && state.dataFileIsRaw;
  if (name === undefined && !isUntrue) return;
  using _ = await state.metadata.lock();
  const { high, low } = header.autoclear;
  await state.changeHeader({
    ...(name !== undefined && { dataFile: name as string || undefined }),
    ...(isUntrue && {
      autoclear: { high, low: low & ~Autoclear.RAW_EXTERNAL_DATA },
    }),
  });
}

async function setLazyRefcounts(
  state: Qcow2State,
  { lazyRefcounts, version }: Amendment,
): Promise<void> {
  const { header, behaviour } = state;
  if (lazyRefcounts === behaviour.lazyRefcounts) return;
  if (lazyRefcounts && version < 3) {
    throw invalid(
      "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
    );
  }
  using _ = await state.metadata.lock();
  if (!lazyRefcounts) await state.markClean();
  const { high, low } = header.compatible;
  const others = low & ~Compatible.LAZY_REFCOUNTS;
  const flag = lazyRefcounts ? Compatible.LAZY_REFCOUNTS : 0;
  await state.changeHeader({ compatible: { high, low: others | flag } });
  behaviour.lazyRefcounts = lazyRefcounts;
}

/**
 * Upgrade from version 2 to 3, which requires more fields of snapshot entries.
 */
async function upgrade(
  state: Qcow2State,
  progress: StepProgress,
): Promise<void> {
  using _ = await state.metadata.lock();
  progress(0, 2);
  if (state.snapshots.some((entry) => isIncomplete(entry, 3))) {
    try {
      await writeTable(state, state.snapshots);
    } catch (error) {
      throw failed("Failed to update the snapshot table", error);
    }
  }
  progress(1, 2);
  await state.changeHeader({ version: 3 });
  progress(2, 2);
}

/**
 * Downgrade from version 3 to 2, which has neither zero clusters nor features.
 */
async function downgrade(
  state: Qcow2State,
  progress: StepProgress,
): Promise<void> {
  const { header, behaviour } = state;
  using _ = await state.metadata.lock();
  if (header.refcountOrder !== 4) {
    throw unsupported("compat=0.10 requires refcount_bits=16");
  }
  const holds = state.snapshots.every(({ vmStateSize, diskSize, huge }) =>
    vmStateSize < 2 ** 32 && diskSize === header.size && !huge
  );
  if (!holds) {
    throw unsupported("Internal snapshots prevent downgrade of image");
  }
  await state.markClean();
  if (state.hasDataFile) {
    throw unsupported("Cannot downgrade an image with a data file");
  }
  const features = header.incompatible.low & ~Incompatible.COMPRESSION;
  if (features !== 0) {
    throw unsupported(
      "Cannot downgrade an image with incompatible features " +
        `${hex(features)} set`,
    );
  }
  await state.flushCaches();
  if (header.compressionType !== "zlib" && await hasCompressedClusters(state)) {
    throw unsupported(
      "Cannot downgrade an image with zstd compression type and existing compressed clusters",
    );
  }
  try {
    await expandZeroClusters(state, progress);
  } catch (error) {
    throw failed("Failed to turn zero into data clusters", error);
  }
  // Version 2 has no dirty bit to mark outdated refcounts.
  behaviour.lazyRefcounts = false;
  await state.markClean();
  await state.changeHeader({
    version: 2,
    incompatible: { high: 0, low: 0 },
    compatible: { high: 0, low: 0 },
    autoclear: { high: 0, low: 0 },
    compressionType: "zlib",
  });
  // Version 2 cannot keep any. Their clusters leak, as in QEMU.
  state.forgetBitmaps();
}

function failed(what: string, thrown: unknown): BlockError {
  const { code } = asBlockError(thrown);
  return new BlockError(code, `${what}: ${reasonOf(thrown)}`, {
    cause: thrown,
  });
}
