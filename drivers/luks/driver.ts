/**
 * The format driver `luks`: a disk that is encrypted as a whole, after a header
 * with key slots for passphrases.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import { Access } from "../../core/access.ts";
import type { BlockMap, Place, Run } from "../../core/block_map.ts";
import {
  type IoVector,
  isExactSize,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { headerStore } from "../../core/crypto/header_store.ts";
import {
  describeHeader,
  headerAreaLength,
} from "../../core/crypto/luks_header.ts";
import {
  LUKS_AMEND_OPTIONS,
  LUKS_CREATE_OPTIONS,
  withoutPrefix,
} from "../../core/crypto/luks_option_tables.ts";
import { algorithmsOf, changeSlots } from "../../core/crypto/luks_options.ts";
import { LuksVolume } from "../../core/crypto/luks_volume.ts";
import { findPassphrase, namedSecrets } from "../../core/crypto/passphrase.ts";
import type {
  BlockDriver,
  CreateContext,
  MeasureContext,
  Measurement,
  OpenContext,
} from "../../core/driver.ts";
import { Encryption, LOCKED } from "../../core/encryption.ts";
import { asBlockError, BlockError, invalid } from "../../core/errors.ts";
import type {
  AmendOptions,
  BlockNode,
  Extent,
  ImageOperations,
  NodeInfo,
  ReadFlags,
  RequestFlags,
  TruncateOptions,
  WriteFlags,
} from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { writeZeroData } from "../../core/requests.ts";
import { LUKS_TRAITS, OPEN_OPTIONS } from "./options.ts";

/** LUKS, version 1. */
export const luksDriver: BlockDriver = {
  ...LUKS_TRAITS,
  open,
  create,
  measure,
};

async function open(
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  const parsed = parseOptions(OPEN_OPTIONS, options, ["file", "header"]);
  const file = await context.openChild("file");
  const isDetached = context.describes("header") && options.header !== null;
  const header = isDetached ? await context.openChild("header") : undefined;
  // As in QEMU, a missing passphrase is reported before an unsound header.
  const passphrase = context.withoutKeys
    ? undefined
    : await passphraseOf(parsed, context);
  const volume = await LuksVolume.read(headerStore(header ?? file), {
    isDetached,
  });
  const key = passphrase && await volume.unlock(passphrase, {
    time: parsed["max-unlock-time"] as number | undefined,
    signal: context.signal,
    progress: context.unlocking,
  });
  if (sectorsOf(file) < volume.header.payloadOffset) {
    throw new BlockError(
      "EIO",
      "Could not refresh total sector count: Input/output error",
    );
  }
  return new LuksNode({
    file,
    header,
    volume,
    context,
    key,
    encryption: new Encryption(
      key ? await volume.cipher(key) : LOCKED,
      "offset",
    ),
  });
}

/** The passphrase that the options name. */
function passphraseOf(
  options: OptionValues,
  { secret }: Pick<OpenContext, "secret">,
): Promise<Uint8Array> {
  const id = options["key-secret"] as string | undefined;
  return findPassphrase(secret, id, "key-secret");
}

async function create(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  const { size = 0 } = options;
  const isDetached = options["detached-header"] === true;
  if (options.size === undefined && !isDetached) {
    throw new BlockError("EINVAL", "Image creation needs a size parameter");
  }
  const passphrase = await passphraseOf(options, context);
  const own = withoutPrefix("", LUKS_CREATE_OPTIONS, options);
  const algorithms = algorithmsOf(own);
  const length = headerAreaLength(algorithms) +
    (isDetached ? 0 : size as number);
  if (!isExactSize(length)) throw tooLarge();
  const file = await context.createFile(length).catch((error) => {
    throw asBlockError(error).code === "EFBIG" ? tooLarge(error) : error;
  });
  await LuksVolume.make(headerStore(file), algorithms, passphrase, {
    iterationTime: own["iter-time"] as number | undefined,
    isDetached,
  });
}

function tooLarge(cause?: unknown): BlockError {
  const message = "The requested file size is too large";
  return new BlockError("EINVAL", message, { cause });
}

async function measure(
  options: OptionValues,
  source?: BlockNode,
  context?: MeasureContext,
): Promise<Measurement> {
  // As in QEMU, only disks are measured.
  if (options["detached-header"] !== undefined) {
    throw invalid("Parameter 'detached-header' is unexpected");
  }
  const id = options["key-secret"] as string | undefined;
  await findPassphrase(namedSecrets(context), id, "key-secret");
  const own = withoutPrefix("", LUKS_CREATE_OPTIONS, options);
  const size = source?.size ?? options.size as number ?? 0;
  const required = headerAreaLength(algorithmsOf(own)) + size;
  return { required, fullyAllocated: required };
}

/** A file's size, rounded to sectors. */
function sectorsOf(file: BlockNode): number {
  return roundUp(file.size, SECTOR_SIZE);
}

/** Maps the whole disk to the file, contiguously. */
class WholeFile implements BlockMap {
  readonly unit = SECTOR_SIZE;
  readonly #file: BlockNode;
  readonly #start: number;

  constructor(file: BlockNode, start: number) {
    this.#file = file;
    this.#start = start;
  }

  lookup(offset: number, length: number): Run & Place {
    const childOffset = this.#start + offset;
    return { kind: "data", length, child: this.#file, childOffset };
  }

  find(offset: number, length: number): Promise<Run> {
    return Promise.resolve(this.lookup(offset, length));
  }

  inPlace(offset: number, length: number): Place {
    return this.lookup(offset, length);
  }

  allocate(): never {
    throw new Error("An encrypted disk is allocated as a whole");
  }
}

/** The parts of a node. */
interface Parts {
  readonly file: BlockNode;
  /** The file of a detached header. */
  readonly header?: BlockNode;
  readonly volume: LuksVolume;
  readonly context: OpenContext;
  /** Absent if the image was opened without the key. */
  readonly key?: Uint8Array;
  readonly encryption: Encryption;
}

class LuksNode implements BlockNode {
  readonly driver = luksDriver;
  readonly filename: string;
  readonly readOnly: boolean;
  readonly children: { readonly file: BlockNode; header?: BlockNode };
  readonly limits = { requestAlignment: SECTOR_SIZE };
  readonly encryption: Encryption;
  readonly image: ImageOperations = {
    amend: (options, how) => this.#amend(options, how),
  };
  readonly #parts: Parts;
  readonly #access: Access;

  constructor(parts: Parts) {
    const { file, header, volume, context } = parts;
    this.children = { file, ...(header && { header }) };
    this.filename = context.filename;
    this.readOnly = context.readOnly;
    this.encryption = parts.encryption;
    this.#parts = parts;
    const { payloadOffset } = volume.header;
    this.#access = new Access(this, new WholeFile(file, payloadOffset));
  }

  get size(): number {
    const { file, volume } = this.#parts;
    return Math.max(0, sectorsOf(file) - volume.header.payloadOffset);
  }

  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void> {
    return this.#access.readv(offset, iov, flags);
  }

  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    await this.#access.writev(offset, iov, flags);
    if (flags?.fua) await this.flush();
  }

  status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    return this.#access.status(offset, length, flags);
  }

  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    await this.children.file.flush?.(flags);
  }

  async truncate(size: number, options: TruncateOptions = {}): Promise<void> {
    const { file, volume } = this.#parts;
    if (!file.truncate) {
      throw new BlockError("ENOTSUP", "The file below cannot be resized");
    }
    const before = this.size;
    await file.truncate(volume.header.payloadOffset + size, options);
    // Zeroes in the file do not decrypt to zeroes.
    const isRead = options.zero ?? true;
    if (!isRead || size <= before) return;
    const { signal } = options;
    const added = roundUp(size, SECTOR_SIZE) - before;
    try {
      await writeZeroData(this, before, added, { signal });
    } catch (error) {
      // What is not zeroed must not be left as part of the disk.
      await file.truncate(volume.header.payloadOffset + before).catch(() => {});
      throw error;
    }
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    const { header, volume } = this.#parts;
    const data = describeHeader(volume.header, header !== undefined);
    return {
      encrypted: true,
      dirty: false,
      specific: { type: "luks", data },
    };
  }

  async invalidate(): Promise<void> {
    await this.#parts.volume.refresh();
  }

  async #amend(
    options: OptionValues,
    { force }: AmendOptions = {},
  ): Promise<void> {
    const { volume, key, context: { secret } } = this.#parts;
    const values = parseOptions(LUKS_AMEND_OPTIONS, options);
    await changeSlots({ volume, key, secret }, values, force);
  }

  async close(): Promise<void> {
    using _ = await this.#parts.volume.changing.lock();
  }
}
