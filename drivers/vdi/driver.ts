/**
 * The format driver `vdi`: VirtualBox's disk images, dynamic and static.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { nothingFound, refuseRepair } from "../../core/check_result.ts";
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
import { type OptionTable, parseOptions } from "../../core/options.ts";
import { readEntries } from "../../core/paged_table.ts";
import { hasPlace, VdiTable, writeNewTable } from "./block_table.ts";
import {
  BLOCK_SIZE,
  checkMapIsStored,
  ENTRY_SIZE,
  newHeader,
  readHeader,
  type VdiHeader,
} from "./header.ts";

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  static: {
    type: "boolean",
    default: false,
    help: "VDI static (pre-allocated) image",
  },
};

/** VirtualBox's format. */
export const vdiDriver: BlockDriver = {
  name: "vdi",
  role: "format",
  openOptions: {},
  createOptions: CREATE_OPTIONS,

  async open(options, context) {
    parseOptions({}, options, ["file"]);
    const file = await context.openChild("file");
    const header = await readHeader(file);
    // A small file may claim a map that takes hours to walk through.
    if (context.purpose !== "info") checkMapIsStored(header, file.size);
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

  constructor(file: BlockNode, header: VdiHeader, context: OpenContext) {
    super({ file, context });
    this.#header = header;
    this.useMap(new VdiTable(file, header));
  }

  get size(): number {
    return this.#header.diskSize;
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    return { clusterSize: BLOCK_SIZE, dirty: false };
  }

  /** Each block must be used at most once, and must be counted. */
  async #check(options: CheckOptions = {}): Promise<CheckResult> {
    refuseRepair(options);
    await this.flush();
    const { mapOffset: offset, blocks, blocksAllocated } = this.#header;
    const seen = new Set<number>();
    let allocated = 0;
    let corruptions = 0;
    const found = (line: string) => {
      options.report?.(line);
      corruptions++;
    };
    const map = { offset, length: blocks * ENTRY_SIZE, entrySize: ENTRY_SIZE };
    await readEntries(this.children.file, map, (view, at, index) => {
      const entry = view.getUint32(at, true);
      if (!hasPlace(entry)) return;
      if (entry >= blocks) {
        return found(`ERROR: block index ${index} too large, is ${entry}`);
      }
      allocated++;
      if (seen.has(entry)) {
        found(`ERROR: block index ${entry} also used by ${entry}`);
      }
      seen.add(entry);
    }, options.signal);
    if (allocated !== blocksAllocated) {
      found(
        `ERROR: allocated blocks mismatch, is ${allocated}, ` +
          `should be ${blocksAllocated}`,
      );
    }
    return { ...nothingFound(), corruptions };
  }
}
