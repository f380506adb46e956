/**
 * The format driver `vdi`: VirtualBox's disk images, dynamic and static.
 *
 * @module
 */
import { Access } from "../../core/access.ts";
import { type IoVector, roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import type {
  BlockNode,
  CheckOptions,
  CheckResult,
  Extent,
  ImageOperations,
  NodeInfo,
  ReadFlags,
  WriteFlags,
} from "../../core/node.ts";
import { parseOptions } from "../../core/options.ts";
import { VdiTable, writeNewTable } from "./block_table.ts";
import { checkBlocks } from "./check.ts";
import { VDI_CREATE_OPTIONS } from "./create_options.ts";
import { BLOCK_SIZE, newHeader, readHeader, type VdiHeader } from "./header.ts";

/** VirtualBox's format. */
export const vdiDriver: BlockDriver = {
  name: "vdi",
  role: "format",
  openOptions: {},
  createOptions: VDI_CREATE_OPTIONS,

  async open(options, context) {
    parseOptions({}, options, ["file"]);
    const file = await context.openChild("file");
    const header = await readHeader(file);
    return new VdiNode(file, context.filename, header, context.readOnly);
  },

  async create(options, context) {
    const { size } = options;
    if (size === undefined) {
      throw new BlockError("EINVAL", "Image creation needs a size parameter");
    }
    const isStatic = options.static === true;
    const header = newHeader(roundUp(size as number, SECTOR_SIZE), isStatic);
    const file = await context.createFile(0);
    await file.writev!(0, [header.bytes]);
    await writeNewTable(file, header);
    if (!isStatic) return;
    await file.truncate!(header.dataOffset + header.blocks * BLOCK_SIZE);
  },
};

class VdiNode implements BlockNode {
  readonly driver = vdiDriver;
  readonly filename: string;
  readonly readOnly: boolean;
  children: { readonly file: BlockNode };
  readonly image: ImageOperations = {
    check: (options) => this.#check(options),
  };
  readonly #header: VdiHeader;
  readonly #table: VdiTable;
  readonly #access: Access;

  constructor(
    file: BlockNode,
    filename: string,
    header: VdiHeader,
    readOnly: boolean,
  ) {
    this.children = { file };
    this.filename = filename;
    this.readOnly = readOnly;
    this.#header = header;
    this.#table = new VdiTable(file, header);
    this.#access = new Access(this, this.#table);
  }

  get size(): number {
    return this.#header.diskSize;
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

  status(offset: number, length: number): Promise<Extent> {
    return this.#access.status(offset, length);
  }

  async flush(): Promise<void> {
    if (!this.readOnly) await this.#table.flush();
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    return { clusterSize: BLOCK_SIZE, dirty: false };
  }

  async #check(options: CheckOptions = {}): Promise<CheckResult> {
    if (options.repair) {
      throw new BlockError(
        "ENOTSUP",
        "This image format does not support checks",
      );
    }
    return await checkBlocks(this.#header, this.#table, options);
  }

  replaceChild(_role: string, file: BlockNode): void {
    this.children = { file };
    this.#table.useFile(file);
  }

  close(): Promise<void> {
    return this.flush();
  }
}
