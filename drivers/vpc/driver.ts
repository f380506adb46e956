/**
 * The format driver `vpc`: the VHD images of Virtual PC, Hyper-V and Azure,
 * dynamic, fixed and, to be read, differencing.
 *
 * @module
 */
import { Access } from "../../core/access.ts";
import type { BlockMap } from "../../core/block_map.ts";
import { type IoVector, roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { invalid } from "../../core/errors.ts";
import type {
  BlockNode,
  Extent,
  NodeInfo,
  ReadFlags,
  WriteFlags,
} from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { shortened } from "../../core/values.ts";
import { openParent } from "../../core/parents.ts";
import { BlockTable } from "./block_table.ts";
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
  // Writes to a disk that reached into the footer would overwrite it.
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
  const table = new BlockTable(file, footer, header);
  await table.examine();
  const image = { file, size, header, table, map: table, context };
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

/** What an open image consists of. */
interface VpcImage {
  readonly file: BlockNode;
  /** Bytes of the disk. */
  readonly size: number;
  readonly map: BlockMap & { useFile(file: BlockNode): void };
  readonly context: OpenContext;
  /** Of a dynamic image. */
  readonly header?: DynamicHeader;
  readonly table?: BlockTable;
  /** Of a differencing image: its parent's names, and the parent. */
  readonly parents?: readonly string[];
  readonly backing?: BlockNode;
}

class VpcNode implements BlockNode {
  readonly driver = vpcDriver;
  readonly filename: string;
  readonly readOnly: boolean;
  readonly size: number;
  children: { readonly file: BlockNode; readonly backing?: BlockNode };
  /** Absent for a differencing image, whose bitmaps are not maintained. */
  readonly writev?: BlockNode["writev"];
  readonly #image: VpcImage;
  readonly #host: { readonly size: number; backing?: BlockNode };
  readonly #access: Access;

  constructor(image: VpcImage) {
    const { file, backing, size, map, context } = image;
    this.children = backing ? { file, backing } : { file };
    this.filename = context.filename;
    this.readOnly = context.readOnly || image.parents !== undefined;
    this.size = size;
    this.#image = image;
    this.#host = { size, backing };
    this.#access = new Access(this.#host, map);
    if (!image.parents) this.writev = this.#writev;
  }

  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void> {
    return this.#access.readv(offset, iov, flags);
  }

  async #writev(
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
    if (this.readOnly) return;
    const { table } = this.#image;
    await (table ? table.flush() : this.children.file.flush?.());
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

  replaceChild(role: string, child: BlockNode): void {
    if (role === "file") {
      // The footer has to be at its end.
      if (child.size !== this.children.file.size) {
        throw invalid(
          `'${
            shortened(child.filename)
          }' has not as many bytes as the VHD image`,
        );
      }
      this.#image.map.useFile(child);
    } else this.#host.backing = child;
    this.children = { ...this.children, [role]: child };
  }

  close(): Promise<void> {
    return this.flush();
  }
}
