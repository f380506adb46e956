/**
 * Creating images.
 *
 * @module
 */
import {
  allocate,
  isExactSize,
  isPowerOfTwo,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import type { CreateContext } from "../../core/driver.ts";
import { asBlockError, BlockError, invalid } from "../../core/errors.ts";
import { canonicalName } from "../../core/sources.ts";
import type { Preallocation } from "../../core/node.ts";
import { notAmong, type OptionValues } from "../../core/options.ts";
import { findDriver, listDrivers } from "../../core/registry.ts";
import { nameText, valueText } from "../../core/values.ts";
import type { Behaviour } from "./behaviour.ts";
import {
  Autoclear,
  Compatible,
  Crypt,
  ENTRY_SIZE,
  Incompatible,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MIN_CLUSTER_BITS,
} from "./format.ts";
import { Geometry } from "./geometry.ts";
import { ENCRYPT_CREATE_OPTIONS } from "./option_tables.ts";
import type { Header } from "./header.ts";
import { encodeHeader } from "./header_encoding.ts";
import { firstRefcounts, refcountsFor } from "./refcount_layout.ts";
import { Qcow2State } from "./state.ts";

/** Validated options, as the properties of the image. */
export interface Plan {
  header: Header;
  size: number;
  preallocation: Preallocation;
}

/** How an image is used while it is being created. */
export const QUIET: Behaviour = {
  lazyRefcounts: false,
  protectedKinds: new Set(),
  passDiscard: {
    request: false,
    snapshot: false,
    other: false,
    always: true,
    never: false,
  },
  keepsDiscarded: false,
  report: () => {},
  warn: () => {},
};

/** Create an image. */
export async function create(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  const keep = options.keep_data_file === true &&
    options.data_file !== undefined;
  // An existing data file that cannot be opened must not cost the image's file.
  const kept = keep ? await openKept(options, context) : undefined;
  const { header, size, preallocation } = planImage(options);
  const encryption = await encryptionOf(options, context);
  const luks = encryption === "luks" ? await loadLuks() : undefined;
  const plan = await luks?.planLuks(options, context);
  if (encryption && !luks) header.cryptMethod = Crypt.AES;
  // Before the file is emptied, it must be known that the header fits.
  const encryptionHeader = luks && { offset: 0, length: 0 };
  encodeHeader({ ...header, encryptionHeader });
  checkOtherFile(header.dataFile, context);
  const file = await context.createFile(0);
  const dataFile = kept ??
    (header.dataFile === undefined
      ? undefined
      : await context.createNamed(header.dataFile));
  // Of a URL-like name, the name after its driver has parsed it.
  if (dataFile) header.dataFile = dataFile.filename;
  const geometry = Geometry.of(header);
  const { clusterSize } = geometry;
  // Clusters 0 to 2: the header, the refcount table, the first refcount block.
  const first = allocate(clusterSize);
  first.set(encodeHeader({ ...header, size: 0 }));
  await file.writev!(0, [first, ...firstRefcounts(geometry, 3)]);
  const caches = { l2: 1024 * 1024, l2Entry: clusterSize, refcount: 0 };
  const state = new Qcow2State(
    file,
    { ...header, size: 0 },
    false,
    caches,
    QUIET,
    dataFile,
  );
  if (encryption !== "luks") state.encryption = encryption;
  await state.openData();
  await state.load();
  {
    using _ = await state.metadata.lock();
    await state.clusters.growL1(state.geometry.l1EntriesFor(size), true);
    if (plan) state.encryption = (await luks!.makeLuks(state, plan)).data;
  }
  state.header.size = size;
  if (preallocation !== "off") {
    const { preallocate } = await import("./resize.ts");
    const done = preallocate(state, 0, size, preallocation, keep);
    await done.catch((error) => {
      throw asBlockError(error).prefixed("Could not resize image: ");
    });
  }
  if (dataFile && dataFile.size < size) await dataFile.truncate?.(size);
  using _ = await state.metadata.lock();
  await state.flushCaches();
  await state.writeHeader();
}

/** Refuse an image that would be its own data file, which would empty it. */
function checkOtherFile(
  dataFile: string | undefined,
  { filename }: CreateContext,
): void {
  if (dataFile === undefined) return;
  if (canonicalName(dataFile) !== canonicalName(filename)) return;
  throw invalid(`'${nameText(filename)}' cannot be its own data file`);
}

/** Open the existing data file that the new image is to use. */
function openKept(options: OptionValues, context: CreateContext) {
  const name = options.data_file as string;
  checkOtherFile(name, context);
  return context.createNamed(name, { keep: true });
}

/** The encryption of the new image, if its options ask for one. */
async function encryptionOf(options: OptionValues, context: CreateContext) {
  const isNamed = Object.keys(ENCRYPT_CREATE_OPTIONS).some((name) =>
    options[name] !== undefined
  );
  if (!isNamed) return undefined;
  const { createEncryption } = await import("./encryption.ts");
  return await createEncryption(options, context);
}

/** Loaded on demand: few images are encrypted. */
function loadLuks() {
  return import("./luks.ts");
}

/** Bytes that the file of a fully allocated image takes. */
export function estimateFileSize(size: number, geometry: Geometry): number {
  const { clusterSize, l2 } = geometry;
  const data = geometry.clustersFor(size);
  const l2Tables = geometry.clustersFor(data * l2.entrySize);
  const l1 = geometry.clustersFor(l2Tables * ENTRY_SIZE);
  const fixed = 1 + data + l2Tables + l1;
  const { blocks, tableClusters } = refcountsFor(geometry, fixed);
  return (fixed + blocks + tableClusters) * clusterSize;
}

/** Check the options of a new image, and derive its header. */
export function planImage(options: OptionValues): Plan {
  if (options.size === undefined) {
    throw invalid("Image creation needs a size parameter");
  }
  const size = roundUp(options.size as number, SECTOR_SIZE);
  const version = parseVersion(options.compat as string | undefined);
  const v3 = (what: string) =>
    invalid(
      `${what} compatibility level 1.1 and above (use version=v3 or greater)`,
    );
  const backingFile = options.backing_file as string | undefined;
  const backingFormat = options.backing_fmt as string | undefined;
  if (backingFormat !== undefined) checkFormat(backingFormat);
  const isExtended = options.extended_l2 === true;
  if (isExtended && version < 3) {
    throw v3("Extended L2 entries are only supported with");
  }
  const clusterBits = clusterBitsOf(options);
  if (isExtended && clusterBits < 14) throw tooSmallForSubclusters();
  let preallocation = (options.preallocation ?? "off") as Preallocation;
  if (backingFile !== undefined && preallocation !== "off" && !isExtended) {
    throw invalid(
      "Backing file and preallocation can only be used at the same time if extended_l2 is on",
    );
  }
  const lazy = options.lazy_refcounts === true;
  if (version === 2 && lazy) throw v3("Lazy refcounts only supported with");
  const refcountOrder = refcountOrderOf(options, version, "version=v3");
  const dataFile = options.data_file as string | undefined;
  const isRaw = options.data_file_raw === true;
  if (isRaw && dataFile === undefined) {
    throw invalid("data-file-raw requires data-file");
  }
  if (isRaw && backingFile !== undefined) {
    throw invalid(
      "Backing file and data-file-raw cannot be used at the same time",
    );
  }
  if (dataFile !== undefined && version < 3) {
    throw v3("External data files are only supported with");
  }
  if (options.keep_data_file === true) {
    checkKept(dataFile !== undefined, isRaw, preallocation);
  }
  const zstd = options.compression_type === "zstd";
  if (version === 2 && zstd) {
    throw v3("Non-zlib compression type is only supported with");
  }
  // Whoever reads the data file alone must find the whole disk there.
  if (isRaw && preallocation === "off") preallocation = "metadata";
  if (backingFile === undefined && backingFormat !== undefined) {
    throw invalid("Backing format cannot be used without backing file");
  }
  const nameLength = new TextEncoder().encode(backingFile ?? "").length;
  if (nameLength > 1023) throw invalid("Backing file name too long");
  const features = (zstd ? Incompatible.COMPRESSION : 0) |
    (dataFile !== undefined ? Incompatible.DATA_FILE : 0) |
    (isExtended ? Incompatible.EXTENDED_L2 : 0);
  const geometry = new Geometry(clusterBits, refcountOrder, features);
  if (
    geometry.l1EntriesFor(size) * ENTRY_SIZE > MAX_L1_BYTES ||
    !isExactSize(size)
  ) {
    throw new BlockError(
      "EFBIG",
      "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
    );
  }
  const header: Header = {
    version,
    backingFile,
    backingFormat,
    ...(dataFile !== undefined && { dataFile }),
    clusterBits,
    size,
    cryptMethod: Crypt.NONE,
    l1Size: 0,
    l1TableOffset: 0,
    refcountTableOffset: geometry.clusterSize,
    refcountTableClusters: 1,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible: { high: 0, low: features },
    compatible: { high: 0, low: lazy ? Compatible.LAZY_REFCOUNTS : 0 },
    autoclear: { high: 0, low: isRaw ? Autoclear.RAW_EXTERNAL_DATA : 0 },
    refcountOrder: geometry.refcountOrder,
    compressionType: zstd ? "zstd" : "zlib",
    unknownFields: new Uint8Array(),
    unknownExtensions: [],
  };
  return { header, size, preallocation };
}

/** Names of drivers that QEMU knows; those registered here need not be listed. */
const QEMU_DRIVERS =
  ("blkdebug blklogwrites blkreplay blkverify bochs cloop compress " +
    "copy-before-write copy-on-read dmg file ftp ftps gluster host_cdrom " +
    "host_device http https io_uring iscsi luks nbd nfs null-aio null-co " +
    "nvme nvme-io_uring parallels preallocate qcow qcow2 qed quorum raw rbd " +
    "replication snapshot-access ssh throttle vdi vhdx vmdk vpc vvfat").split(
      " ",
    );

/** Refuse an unknown backing format. */
function checkFormat(name: string): void {
  if (findDriver(name) || QEMU_DRIVERS.includes(name)) return;
  throw notAmong(
    `Parameter 'backing-fmt' does not accept value '${nameText(name)}'`,
    listDrivers().filter(({ isContainer }) => !isContainer)
      .map(({ name }) => name),
  );
}

/** Refuse options that an existing data file cannot be kept with. */
function checkKept(
  hasDataFile: boolean,
  isRaw: boolean,
  preallocation: Preallocation,
): void {
  if (!hasDataFile) {
    throw invalid("Must not use 'keep_data_file=on' without 'data_file'");
  }
  if (preallocation === "falloc" || preallocation === "full") {
    throw invalid(
      "Preallocating more than only metadata would overwrite the external " +
        "data file's content and is therefore incompatible with " +
        "'keep_data_file=on'",
    );
  }
  if (isRaw || preallocation === "metadata") return;
  throw invalid(
    "'keep_data_file=on' requires 'preallocation=metadata' or " +
      "'data_file_raw=on', or the file contents will not be visible",
  );
}

/** The error for subclusters of less than 512 bytes. */
export function tooSmallForSubclusters(): BlockError {
  return invalid(
    "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
  );
}

/** The cluster size according to the options. */
export function clusterBitsOf(options: OptionValues): number {
  const clusterSize = options.cluster_size as number;
  const clusterBits = Math.log2(clusterSize);
  if (
    !isPowerOfTwo(clusterSize) || clusterBits < MIN_CLUSTER_BITS ||
    clusterBits > MAX_CLUSTER_BITS
  ) {
    throw invalid("Cluster size must be a power of two between 512 and 2048k");
  }
  return clusterBits;
}

/**
 * The refcount width according to the options; `remedy` is the option that
 * permits wider ones.
 */
export function refcountOrderOf(
  options: OptionValues,
  version: 2 | 3,
  remedy: string,
): number {
  const refcountBits = options.refcount_bits as number;
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64) {
    throw invalid(
      "Refcount width must be a power of two and may not exceed 64 bits",
    );
  }
  if (version === 2 && refcountBits !== 16) {
    throw invalid(
      "Different refcount widths than 16 bits require compatibility level " +
        `1.1 or above (use ${remedy} or greater)`,
    );
  }
  return Math.log2(refcountBits);
}

function parseVersion(compat: string | undefined): 2 | 3 {
  switch (compat) {
    case "v2":
    case "0.10":
      return 2;
    case undefined:
    case "v3":
    case "1.1":
      return 3;
  }
  throw notAmong(
    `Parameter 'version' does not accept value ${valueText(compat)}`,
    ["0.10", "1.1", "v2", "v3"],
  );
}
