/**
 * The format driver `vhdx`: Hyper-V's images: dynamic, fixed and (read-only)
 * differencing.
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import { nothingFound } from "../../core/check_result.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import { MappedNode } from "../../core/mapped_node.ts";
import type {
  BlockNode,
  CheckOptions,
  CheckResult,
  ImageOperations,
  NodeInfo,
  WriteFlags,
} from "../../core/node.ts";
import { parseOptions } from "../../core/options.ts";
import { openParent } from "../../core/parents.ts";
import { TableShape, VhdxTable } from "./block_table.ts";
import { VHDX_CREATE_OPTIONS } from "./create_options.ts";
import { fault } from "./faults.ts";
import { newGuid } from "./guid.ts";
import { Headers } from "./headers.ts";
import { Log } from "./log.ts";
import { type Metadata, readMetadata } from "./metadata.ts";
import { isParent, namesOf } from "./parent.ts";
import { readRegions } from "./regions.ts";

/** Hyper-V's format. */
export const vhdxDriver: BlockDriver = {
  name: "vhdx",
  role: "format",
  openOptions: {},
  createOptions: VHDX_CREATE_OPTIONS,

  async open(options, context) {
    parseOptions({}, options, ["file", "backing"]);
    const file = await context.openChild("file");
    const headers = await Headers.read(file);
    const log = new Log(file, headers);
    const isReplayed = await replay(log, context);
    const regions = await readRegions(file, headers.current);
    const metadata = await readMetadata(file, regions.metadata);
    if (new TableShape(metadata).entries * 8 > regions.bat.length) {
      throw fault(context.filename, "EINVAL", "its block table is too short");
    }
    const table = new VhdxTable(file, metadata, regions, log);
    await examine(table, context);
    const { parent } = metadata;
    const backing = parent && await openParent(
      namesOf(parent),
      options,
      context,
      "vhdx",
      (file) => isParent(parent, file),
    );
    return new VhdxNode({
      file,
      backing,
      headers,
      metadata,
      table,
      context,
      isReplayed,
    });
  },

  async create(options, context) {
    const { createVhdx } = await import("./create.ts");
    await createVhdx(options, context);
  },
};

/** Replay the log, unless it is empty. */
async function replay(log: Log, context: OpenContext): Promise<boolean> {
  const pending = await log.pending();
  if (pending.length === 0) return false;
  const { filename, readOnly } = context;
  if (readOnly) {
    throw new BlockError(
      "EPERM",
      `VHDX image file '${filename}' opened read-only, but contains a log ` +
        "that needs to be replayed",
      {
        hint: "To replay the log, run:\n" +
          `qemu-img check -r all '${filename}'`,
      },
    );
  }
  await log.replay(pending);
  return true;
}

/** Refuse misplaced blocks, unless the image is opened to be checked. */
async function examine(table: VhdxTable, context: OpenContext): Promise<void> {
  let first: string | undefined;
  await table.examine((line) => first ??= line);
  if (!first || context.purpose === "check") return;
  context.report(first, true);
  throw fault(context.filename, "EINVAL", "its block table is damaged");
}

/** The parts of an open image. */
interface VhdxImage {
  readonly file: BlockNode;
  /** The parent of a differencing image. */
  readonly backing?: BlockNode;
  readonly headers: Headers;
  readonly metadata: Metadata;
  readonly table: VhdxTable;
  readonly context: OpenContext;
  /** Whether the log was replayed and this has not been reported yet. */
  isReplayed: boolean;
}

class VhdxNode extends MappedNode {
  readonly driver = vhdxDriver;
  readonly size: number;
  readonly image: ImageOperations = {
    check: (options) => this.#check(options),
  };
  readonly #image: VhdxImage;
  /** Whether the headers record that the disk has changed. */
  #hasChanged = false;
  readonly #changing = new Mutex();

  constructor(image: VhdxImage) {
    const { metadata, table } = image;
    // The sector bitmaps of a differencing image are not maintained here.
    super({ ...image, isReadOnly: metadata.parent !== undefined });
    this.size = metadata.size;
    this.#image = image;
    this.useMap(table);
  }

  protected override async write(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    if (!this.#hasChanged) await this.#beginChanges();
    await super.write(offset, iov, flags);
  }

  /** Overlays detect by a GUID that the disk has changed. */
  async #beginChanges(): Promise<void> {
    using _ = await this.#changing.lock();
    if (this.#hasChanged) return;
    await this.#image.headers.change({
      fileWriteGuid: newGuid(),
      dataWriteGuid: newGuid(),
    });
    await this.children.file.flush?.();
    this.#hasChanged = true;
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    const { blockSize, parent } = this.#image.metadata;
    return {
      clusterSize: blockSize,
      // Opening has replayed the log.
      dirty: false,
      ...(parent && {
        backingFile: namesOf(parent)[0],
        backingFormat: "vhdx",
      }),
    };
  }

  async #check(
    { report, signal }: CheckOptions = {},
  ): Promise<CheckResult> {
    await this.flush();
    const { table, isReplayed } = this.#image;
    const corruptions = await table.examine(
      (line) => report?.(line, true),
      signal,
    );
    this.#image.isReplayed = false;
    return {
      ...nothingFound(),
      corruptions,
      corruptionsFixed: isReplayed ? 1 : 0,
    };
  }
}
