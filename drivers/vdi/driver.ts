/**
 * The format driver `vdi`: VirtualBox's disk images, dynamic and static.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { MappedNode } from "../../core/mapped_node.ts";
import type {
  BlockNode,
  CheckOptions,
  CheckResult,
  ImageOperations,
  NodeInfo,
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
    return new VdiNode(file, header, context);
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

class VdiNode extends MappedNode {
  readonly driver = vdiDriver;
  readonly image: ImageOperations = {
    check: (options) => this.#check(options),
  };
  readonly #header: VdiHeader;
  readonly #table: VdiTable;

  constructor(file: BlockNode, header: VdiHeader, context: OpenContext) {
    super({ file, context });
    this.#header = header;
    this.#table = new VdiTable(file, header);
    this.useMap(this.#table);
  }

  get size(): number {
    return this.#header.diskSize;
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
}
