/** `convert`: copy images into a new one. @module */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { createImage } from "../../core/create.ts";
import type { BlockNode } from "../../core/driver.ts";
import { asBlockError } from "../../core/errors.ts";
import { convert, type ConvertOptions } from "../../core/jobs/convert.ts";
import { nestOptions, type OptionValues } from "../../core/options.ts";
import {
  checkSourceBitmaps,
  refuseBitmaps,
  warnOfSkippedBitmaps,
} from "../bitmaps.ts";
import type { Command } from "../command.ts";
import {
  CONVERT_OPTIONS,
  type ConvertWish,
  parseConvert,
} from "../convert_options.ts";
import { createTable, printCreateHelp } from "../create_options.ts";
import { cacheMode, openImageArgument, usingNodes } from "../images.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program } from "../program.ts";
import { showSnapshot } from "../snapshots.ts";
import { Target } from "../target.ts";
import { addBackingOptions } from "./create.ts";

/** What a name is that stands for standard input or standard output. */
const STANDARD = "-";

/** The command. */
export const command: Command = {
  summary: "Copy images, one after the other, into a new one",
  operands: "FILE… TARGET",
  options: CONVERT_OPTIONS,
  notes: "FILE may be - for standard input (raw data), TARGET may be - for\n" +
    "standard output.",

  async run(invocation) {
    const { program } = invocation;
    const wish = parseConvert(invocation);
    const sources = invocation.operands.slice(0, -1);
    const target = sources.length > 0 ? invocation.operands.at(-1) : undefined;
    if (wish.options.asksForHelp) {
      if (wish.targetImageOpts && wish.outputFormat === undefined) {
        throw new CommandError("Option help requires a format be specified");
      }
      printCreateHelp(program, wish.targetFormat, target);
      return 0;
    }
    if (target === undefined) {
      throw new CommandError("Must specify image file name");
    }
    await new Conversion(program, wish, sources, target).run();
    return 0;
  },
};

/** One call of the command. */
class Conversion {
  readonly #program: Program;
  readonly #wish: ConvertWish;
  readonly #sources: readonly string[];
  readonly #target: string;

  constructor(
    program: Program,
    wish: ConvertWish,
    sources: readonly string[],
    target: string,
  ) {
    this.#program = program;
    this.#wish = wish;
    this.#sources = sources;
    this.#target = target;
  }

  async run(): Promise<void> {
    const wish = this.#wish;
    const cache = cacheMode(wish.sourceCache, "source cache option");
    const nodes: BlockNode[] = [];
    const progress = new Progress(
      this.#program,
      wish.progress && !wish.quiet,
      1,
    );
    try {
      await usingNodes(nodes, async () => {
        for (const source of this.#sources) {
          nodes.push(
            await openImageArgument(this.#program, source, {
              format: wish.format,
              imageOpts: wish.imageOpts,
              forceShare: wish.forceShare,
              share: false,
              cache,
            }),
          );
        }
        await this.#selectSnapshot(nodes);
        await this.#convert(nodes, progress);
        progress.complete();
      });
    } finally {
      progress.end();
    }
  }

  async #selectSnapshot(nodes: readonly BlockNode[]): Promise<void> {
    const { snapshot } = this.#wish;
    if (snapshot === undefined) return;
    if (nodes.length > 1 && !snapshot.startsWith("snapshot.")) {
      throw new CommandError(
        "No support for concatenating multiple snapshot",
      );
    }
    await showSnapshot(nodes[0], snapshot);
  }

  /** Make the target, unless it is there, and copy the sources into it. */
  async #convert(
    sources: readonly BlockNode[],
    progress: Progress,
  ): Promise<void> {
    const wish = this.#wish;
    const size = sources.reduce(
      (sum, { size }) => sum + roundUp(size, SECTOR_SIZE),
      0,
    );
    const created = wish.skipCreate ? undefined : this.#createValues(size);
    const backing = created?.backing_file ?? wish.backingFile;
    checkBacking(wish, backing !== undefined, sources.length);
    if (created) checkCreation(wish, created);
    if (wish.bitmaps) {
      await checkSourceBitmaps(wish.skipBrokenBitmaps, sources);
    }
    const cache = cacheMode(wish.targetCache, "cache option");
    using target = new Target(this.#program, this.#target);
    if (created) await this.#make(target, created);
    else target.use();
    const node = await openImageArgument(this.#program, this.#target, {
      format: wish.targetImageOpts ? wish.outputFormat : wish.targetFormat,
      imageOpts: wish.targetImageOpts,
      writable: true,
      // Direct I/O may have to extend a file up to a whole block.
      resize: cache === "none" || cache === "directsync",
      cache,
      options: created && keyOptions(created),
    });
    await usingNodes([node], async () => {
      if (wish.bitmaps) await refuseBitmaps(sources[0], node);
      await convert(sources, node, {
        ...this.#options(),
        targetIsZero: wish.targetIsZero ||
          (created !== undefined && backing === undefined &&
            readsAsZero(target, node, created)),
        targetIsNew: created !== undefined,
        onlyDifferences: backing !== undefined,
        ...((cache === "writethrough" || cache === "directsync") &&
          { flags: { fua: true } }),
        progress: (done, total) => progress.update(done, total),
      });
      if (wish.bitmaps) await warnOfSkippedBitmaps(this.#program, sources[0]);
      await node.flush?.();
    });
    target.complete();
  }

  /** What the user says of how to copy. */
  #options(): ConvertOptions {
    const { parallel, sparseSize, compressed, outOfOrder } = this.#wish;
    const { salvage, rateLimit, copyOffload, quiet } = this.#wish;
    return {
      parallel,
      sparseSize,
      compressed,
      outOfOrder,
      salvage,
      rateLimit,
      copyOffload,
      ...(!quiet && { warn: (message) => this.#program.warn(message) }),
    };
  }

  /** The options of the new image. */
  #createValues(size: number): OptionValues {
    const { targetFormat: format, backingFile, backingFormat } = this.#wish;
    const { table } = createTable(format, this.#target);
    const values = { ...this.#wish.options.parse(table), size };
    addBackingOptions(values, table, { format, backingFile, backingFormat });
    return values;
  }

  async #make(target: Target, values: OptionValues): Promise<void> {
    const { targetFormat: format } = this.#wish;
    const { secrets } = this.#program;
    try {
      await target.make(() =>
        createImage(format, this.#target, values, { secrets })
      );
    } catch (thrown) {
      const error = asBlockError(thrown);
      throw error.prefixed(
        `${this.#target}: error while converting ${format}: `,
      );
    }
  }
}

/** What of a new image's options tells its keys: it takes them to open it. */
function keyOptions(created: OptionValues): OptionValues | undefined {
  const keys = Object.entries(created)
    .filter(([name]) => name.endsWith("key-secret"));
  return keys.length ? nestOptions(Object.fromEntries(keys)) : undefined;
}

function checkBacking(
  wish: ConvertWish,
  hasBacking: boolean,
  sources: number,
): void {
  if (!hasBacking) return;
  if (wish.targetIsZero) {
    throw new CommandError(
      "Cannot use --target-is-zero when the destination image has a backing " +
        "file",
    );
  }
  if (sources > 1) {
    throw new CommandError(
      "Having a backing file for the target makes no sense when " +
        "concatenating multiple input images",
    );
  }
}

/** Refuse what the options of a new image make impossible. */
function checkCreation(wish: ConvertWish, values: OptionValues): void {
  if (values.backing_file !== undefined && values.backing_fmt === undefined) {
    throw new CommandError(
      "Use of backing file requires explicit backing format",
    );
  }
  if (!wish.compressed) return;
  if (values.encryption || values["encrypt.format"]) {
    throw new CommandError(
      "Compression and encryption not supported at the same time",
    );
  }
  if ((values.preallocation ?? "off") !== "off") {
    throw new CommandError(
      "Compression and preallocation not supported at the same time",
    );
  }
}

/** Whether an image that was just made, without backing, is zero all over. */
function readsAsZero(
  target: Target,
  node: BlockNode,
  created: OptionValues,
): boolean {
  if (target.isPlainFile) return true;
  // On a device, only what the format has not allocated is sure to be zero.
  return node.driver.name !== "raw" &&
    (created.preallocation ?? "off") === "off";
}
