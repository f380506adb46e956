/**
 * The format driver `vpc`: VHD images of Virtual PC, Hyper-V and Azure:
 * dynamic, fixed and (read-only) differencing.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { invalid } from "../../core/errors.ts";
import { type FormatMap, MappedNode } from "../../core/mapped_node.ts";
import type { BlockNode, NodeInfo } from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { shortened } from "../../core/values.ts";
import { openParent } from "../../core/parents.ts";
import { VpcTable } from "./block_table.ts";
import { VPC_CREATE_OPTIONS, VPC_OPEN_OPTIONS } from "./create_options.ts";
import { FixedMap } from "./fixed_map.ts";
import {
  diskSize,
  type DynamicHeader,
  type Footer,
  FOOTER_SIZE,
  readDynamicHeader,
  readFooter,
  type SizeRule,
  truncated,
  TYPE,
} from "./footer.ts";
import { readParentNames } from "./parent.ts";

/** Microsoft's older format, named after Virtual PC, as in QEMU. */
export const vpcDriver: BlockDriver = {
  name: "vpc",
  role: "format",
  openOptions: VPC_OPEN_OPTIONS,
  strongOptions: ["force_size_calc"],
  createOptions: VPC_CREATE_OPTIONS,

  async open(options, context) {
    const parsed = parseOptions(VPC_OPEN_OPTIONS, options, ["file", "backing"]);
    const rule = sizeRule(parsed.force_size_calc as string | undefined);
    const file = await context.openChild("file");
    const footer = await readFooter(file, (message) => context.warn(message));
    const size = diskSize(footer, rule);
    return footer.type === TYPE.FIXED
      ? openFixed(file, size, context)
      : await openDynamic(file, footer, size, options, context);
  },

  async create(options, context) {
    const { createVhd } = await import("./create.ts");
    await createVhd(options, context);
  },
};

function sizeRule(text: string | undefined): SizeRule {
  if (text === undefined || text === "chs" || text === "current_size") {
    return text;
  }
  throw invalid(`Invalid size calculation mode: '${shortened(text, 80)}'`);
}

function openFixed(
  file: BlockNode,
  size: number,
  context: OpenContext,
): BlockNode {
  // A disk that extended into the footer would overwrite it.
  if (size + FOOTER_SIZE > roundUp(file.size, SECTOR_SIZE)) throw truncated();
  return new VpcNode({ file, size, map: new FixedMap(file), context });
}

async function openDynamic(
  file: BlockNode,
  footer: Footer,
  size: number,
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  const header = await readDynamicHeader(file, footer, size);
  const table = new VpcTable(file, footer, header);
  await table.examine();
  const image = { file, size, header, map: table, context };
  if (footer.type !== TYPE.DIFFERENCING) return new VpcNode(image);
  const parents = await readParentNames(file, header);
  const backing = await openParent(
    parents,
    options,
    context,
    "vpc",
    async (file) =>
      (await readFooter(file, () => {})).uuid === header.parentUuid,
  );
  return new VpcNode({ ...image, parents, backing });
}

/** The parts of an open image. */
interface VpcImage {
  readonly file: BlockNode;
  /** Bytes of the disk. */
  readonly size: number;
  readonly map: FormatMap;
  readonly context: OpenContext;
  /** Of a dynamic image. */
  readonly header?: DynamicHeader;
  /** The names of a differencing image's parent, and the parent. */
  readonly parents?: readonly string[];
  readonly backing?: BlockNode;
}

class VpcNode extends MappedNode {
  readonly driver = vpcDriver;
  readonly size: number;
  readonly #image: VpcImage;

  constructor(image: VpcImage) {
    // The sector bitmaps of a differencing image are not maintained here.
    super({ ...image, isReadOnly: image.parents !== undefined });
    this.size = image.size;
    this.#image = image;
    this.useMap(image.map);
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async info(): Promise<NodeInfo> {
    const { header, parents } = this.#image;
    return {
      clusterSize: header?.blockSize,
      dirty: false,
      ...(parents && { backingFile: parents[0], backingFormat: "vpc" }),
    };
  }

  override replaceChild(role: string, child: BlockNode): void {
    // The footer must be at its end.
    if (role === "file" && child.size !== this.children.file.size) {
      throw invalid(
        `'${shortened(child.filename)}' has not as many bytes as the VHD image`,
      );
    }
    super.replaceChild(role, child);
  }
}
