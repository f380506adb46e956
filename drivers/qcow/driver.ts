/**
 * The format driver `qcow`: version 1 of QEMU's copy-on-write format.
 *
 * @module
 */
import { type IoVector, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { Encryption, LOCKED } from "../../core/encryption.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { MappedNode } from "../../core/mapped_node.ts";
import type {
  BlockNode,
  CompressOptions,
  ImageOperations,
  NodeInfo,
  RequestLimits,
} from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { openBacking } from "../../core/parents.ts";
import { writeZeroes } from "../../core/requests.ts";
import {
  ENTRY,
  type TwoLevelLayout,
  TwoLevelMap,
  type TwoLevelRun,
} from "../../core/two_level_map.ts";
import { isPlainObject, shortened } from "../../core/values.ts";
import { CompressedClusters } from "./compressed.ts";
import { QCOW_CREATE_OPTIONS, QCOW_OPEN_OPTIONS } from "./create_options.ts";
import { CRYPT, HEADER_SIZE, type QcowHeader, readHeader } from "./header.ts";

/** QEMU's oldest format. */
export const qcowDriver: BlockDriver = {
  name: "qcow",
  role: "format",
  openOptions: QCOW_OPEN_OPTIONS,
  strongOptions: ["encrypt.key-secret"],
  createOptions: QCOW_CREATE_OPTIONS,
  open,
  create: async (options, context) =>
    await (await import("./create.ts")).createQcow(options, context),
};

async function open(
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  const parsed = parseOptions(QCOW_OPEN_OPTIONS, flatten(options), [
    "file",
    "backing",
  ]);
  const file = await context.openChild("file");
  const header = await readHeader(file);
  const encryption = await openEncryption(header, parsed, context);
  // The format does not record the backing file's format.
  const backing = await openBacking(
    header.backingFile,
    undefined,
    options,
    context,
  );
  const node = new QcowNode({ file, header, encryption, backing, context });
  if (context.purpose !== "info") await node.preload();
  return node;
}

/** `{encrypt: {format: "aes"}}` as `{"encrypt.format": "aes"}`. */
function flatten(options: OptionValues): OptionValues {
  const { encrypt, ...flat } = options;
  if (!isPlainObject(encrypt)) return options;
  for (const [name, value] of Object.entries(encrypt)) {
    flat[`encrypt.${name}`] = value;
  }
  return flat;
}

async function openEncryption(
  { cryptMethod }: QcowHeader,
  options: OptionValues,
  context: OpenContext,
): Promise<Encryption | undefined> {
  const format = options["encrypt.format"] as string | undefined;
  if (cryptMethod === CRYPT.NONE) {
    if (format === undefined) return undefined;
    throw invalid(
      `No encryption in image header, but options specified format '${
        shortened(format, 80)
      }'`,
    );
  }
  if (format !== undefined && format !== "aes") {
    throw invalid(
      "Header reported 'aes' encryption format but options specify '" +
        `${shortened(format, 80)}'`,
    );
  }
  if (context.withoutKeys) return new Encryption(LOCKED, "offset");
  const { legacyEncryption } = await import("../../core/crypto/legacy_aes.ts");
  const secret = options["encrypt.key-secret"] as string | undefined;
  return await legacyEncryption(secret, context);
}

/** The parts of an open image. */
interface QcowImage {
  readonly file: BlockNode;
  readonly header: QcowHeader;
  readonly encryption?: Encryption;
  readonly backing?: BlockNode;
  readonly context: OpenContext;
}

class QcowNode extends MappedNode<TwoLevelRun> {
  readonly driver = qcowDriver;
  readonly size: number;
  readonly limits?: RequestLimits;
  readonly image: ImageOperations = { makeEmpty: () => this.#makeEmpty() };
  readonly #header: QcowHeader;
  readonly #map: TwoLevelMap;
  readonly #compressed: CompressedClusters;

  constructor(image: QcowImage) {
    super({ ...image, hasEvents: true });
    const { file, header, encryption } = image;
    this.size = header.size;
    if (encryption) this.limits = { requestAlignment: SECTOR_SIZE };
    this.#header = header;
    this.#map = new TwoLevelMap(
      file,
      layoutOf(header, file, encryption !== undefined),
      this.event,
    );
    this.useMap(this.#map);
    this.#compressed = new CompressedClusters(
      {
        size: this.size,
        file: () => this.children.file,
        map: this.#map,
        access: this.access,
        event: this.event,
      },
      header.clusterBits,
    );
    this.#map.readSpecial = (run, offset, iov) =>
      this.#compressed.read(run, offset, iov);
  }

  /** Load the L1 table. */
  preload(): Promise<void> {
    return this.#map.preload(this.size);
  }

  async writeCompressed(
    offset: number,
    iov: IoVector,
    options?: CompressOptions,
  ): Promise<void> {
    if (this.encryption) {
      // The format does not encrypt compressed clusters.
      throw new BlockError(
        "ENOTSUP",
        "Compression and encryption not supported at the same time",
      );
    }
    await this.#compressed.write(offset, iov, options);
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    const { clusterBits, cryptMethod, backingFile } = this.#header;
    return {
      clusterSize: 2 ** clusterBits,
      dirty: false,
      encrypted: cryptMethod !== CRYPT.NONE,
      backingFile,
    };
  }

  /** Once the L1 table is zero, nothing refers to what is then truncated. */
  async #makeEmpty(): Promise<void> {
    const { l1Offset, l1Entries } = this.#header;
    const { file } = this.children;
    const length = l1Entries * 8;
    await writeZeroes(file, l1Offset, length);
    await file.flush?.();
    this.#map.forget(l1Offset + length);
    this.#compressed.forget();
    await file.truncate?.(l1Offset + length);
  }
}

function layoutOf(
  { clusterBits, l2Bits, l1Offset, l1Entries }: QcowHeader,
  file: BlockNode,
  isEncrypted: boolean,
): TwoLevelLayout {
  return {
    clusterSize: 2 ** clusterBits,
    l1Offset,
    l1Entries,
    tableEntries: 2 ** l2Bits,
    isLittleEndian: false,
    headerSize: HEADER_SIZE,
    end: file.size,
    tableAlignment: SECTOR_SIZE,
    tablesFirst: true,
    isEncrypted,
    decode(high, low) {
      if (high >= 2 ** 31) return ENTRY.SPECIAL;
      const place = high * 2 ** 32 + low;
      return place % SECTOR_SIZE === 0 ? place : ENTRY.DAMAGED;
    },
    damaged: () => new BlockError("EIO"),
  };
}
