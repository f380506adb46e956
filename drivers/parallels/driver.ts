/**
 * The format driver `parallels`: the images of Parallels and Virtuozzo.
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import { MappedNode } from "../../core/mapped_node.ts";
import type {
  BitmapOperations,
  BlockNode,
  CheckOptions,
  CheckResult,
  ImageOperations,
  NodeInfo,
  WriteFlags,
} from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { openBacking } from "../../core/parents.ts";
import { ParallelsTable } from "./block_table.ts";
import { PARALLELS_CREATE_OPTIONS } from "./create_options.ts";
import {
  dropExtension,
  IN_USE,
  newHeader,
  type ParallelsHeader,
  readHeader,
  setInUse,
} from "./header.ts";

/** The format of Parallels. */
export const parallelsDriver: BlockDriver = {
  name: "parallels",
  role: "format",
  openOptions: {},
  createOptions: PARALLELS_CREATE_OPTIONS,
  open,

  async create(options, context) {
    const { size, cluster_size } = options;
    if (size === undefined) {
      throw invalid("Image creation needs a size parameter");
    }
    const { bytes, fileSize } = newHeader(
      size as number,
      cluster_size as number,
    );
    const file = await context.createFile(0);
    await file.writev!(0, [bytes]);
    await file.truncate!(fileSize);
  },
};

async function open(
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  parseOptions({}, options, ["file", "backing"]);
  const file = await context.openChild("file");
  const header = await readHeader(file);
  const { readOnly, purpose } = context;
  if (header.isInUse && !readOnly && purpose !== "check") {
    throw new BlockError(
      "EACCES",
      "parallels: Image was not closed correctly; cannot be opened read/write",
    );
  }
  let bitmaps: BitmapOperations | undefined;
  if (header.extension !== 0) {
    if (readOnly) {
      const { readBitmaps } = await import("./extension.ts");
      bitmaps = await readBitmaps(file, header);
    } else context.warn("Format Extension ignored in RW mode");
  }
  const table = new ParallelsTable(file, header);
  if (!readOnly) {
    await table.examine();
    setInUse(header, IN_USE.OPEN);
    await file.writev!(0, [header.bytes]);
    await file.flush?.();
  }
  // No image names a backing file, but its user may.
  const backing = await openBacking(undefined, undefined, options, context);
  return new ParallelsNode({ file, header, table, bitmaps, backing, context });
}

/** The parts of an open image. */
interface ParallelsImage {
  readonly file: BlockNode;
  readonly header: ParallelsHeader;
  readonly table: ParallelsTable;
  /** Of a read-only image. */
  readonly bitmaps?: BitmapOperations;
  readonly backing?: BlockNode;
  readonly context: OpenContext;
}

class ParallelsNode extends MappedNode {
  readonly driver = parallelsDriver;
  readonly image: ImageOperations;
  readonly #header: ParallelsHeader;
  readonly #table: ParallelsTable;
  readonly #bitmaps?: BitmapOperations;
  /** Whether it was not closed properly, and has not been repaired. */
  #isUnclean: boolean;
  /** Whether there is a format extension, which writes would invalidate. */
  #hasExtension: boolean;
  readonly #dropping = new Mutex();

  constructor(image: ParallelsImage) {
    super({ ...image, hasEvents: true });
    const { header, table, bitmaps } = image;
    this.#header = header;
    this.#table = table;
    this.#bitmaps = bitmaps;
    this.#isUnclean = header.isInUse;
    this.#hasExtension = header.extension !== 0;
    this.useMap(table);
    this.image = {
      check: (options) => this.#check(options),
      ...(bitmaps && { bitmaps }),
    };
  }

  get size(): number {
    return this.#header.size;
  }

  protected override async write(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    if (this.#hasExtension) await this.#dropExtension();
    await super.write(offset, iov, flags);
  }

  /** Drop the extension: bitmaps that miss a write would mislead a backup. */
  async #dropExtension(): Promise<void> {
    using _ = await this.#dropping.lock();
    if (!this.#hasExtension) return;
    const { file } = this.children;
    dropExtension(this.#header);
    await file.writev!(0, [this.#header.bytes]);
    await file.flush?.();
    this.#hasExtension = false;
  }

  async info(): Promise<NodeInfo> {
    return { bitmaps: await this.#bitmaps?.list() };
  }

  async #check(options: CheckOptions = {}): Promise<CheckResult> {
    await this.flush();
    const { checkTable } = await import("./check.ts");
    const image = {
      file: this.children.file,
      header: this.#header,
      table: this.#table,
      isUnclean: this.#isUnclean,
    };
    // It is stored after the last cluster, and would be taken for a leak.
    if (options.repair && this.#hasExtension) await this.#dropExtension();
    const result = await checkTable(image, options);
    this.#isUnclean = image.isUnclean;
    return result;
  }

  /** Mark the image as closed, once everything is durable. */
  override async close(): Promise<void> {
    if (this.readOnly) return;
    await this.#table.flush();
    const { file } = this.children;
    // Losing this in a power cut only leaks space.
    if (!this.#hasExtension && !this.#isUnclean) await this.#table.trim();
    setInUse(this.#header, this.#isUnclean ? IN_USE.OPEN : IN_USE.CLOSED);
    await file.writev!(0, [this.#header.bytes]);
    await file.flush?.();
  }
}
