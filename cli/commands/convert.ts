/** `convert`: copy images into a new one. @module */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { createImage } from "../../core/create.ts";
import { asBlockError } from "../../core/errors.ts";
import {
  convert,
  type ConvertOptions,
  copyTargetOptions,
} from "../../core/jobs/convert.ts";
import type { BlockNode, WriteFlags } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import { nestOptions, type OptionValues } from "../../core/options.ts";
import { getFormat } from "../../core/registry.ts";
import {
  checkSourceBitmaps,
  refuseBitmaps,
  warnOfSkippedBitmaps,
} from "../bitmaps.ts";
import type { Command } from "../command.ts";
import {
  checkBacking,
  checkCreation,
  checkPipes,
  CONVERT_OPTIONS,
  type ConvertWish,
  parseConvert,
} from "../convert_options.ts";
import { createTable, printCreateHelp } from "../create_options.ts";
import {
  cacheMode,
  creating,
  openImageArgument,
  usingNodes,
} from "../images.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program } from "../program.ts";
import { showSnapshot } from "../snapshots.ts";
import { Target } from "../target.ts";
import { addBackingOptions, backingName } from "./create.ts";

/** The name that stands for standard input or standard output. */
const STANDARD = "-";

/** The command. */
export const command: Command = {
  summary: "Copy images, one after the other, into a new one",
  operands: "FILE… TARGET",
  options: CONVERT_OPTIONS,
  notes: "TARGET may be - for standard output. FILE may be - for standard\n" +
    "input: raw data, if that is a pipe.",

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
    const cache = cacheMode(wish.sourceCache, "source cache option");
    const toOutput = target === STANDARD && !wish.targetImageOpts;
    const progress = new Progress(
      program,
      invocation.showsProgress,
      1,
      { dataOnOutput: toOutput },
    );
    try {
      const conversion = new Conversion(program, wish, target, progress);
      if (sources.includes(STANDARD) && !wish.image.imageOpts) {
        const { inputFile } = await import("../standard_streams.ts");
        const file = inputFile();
        if (file === undefined) {
          checkPipes(wish, { fromPipe: true, toOutput, sources });
          return await conversion.fromPipe();
        }
        sources.splice(
          0,
          Infinity,
          ...sources.map((name) => name === STANDARD ? file : name),
        );
      }
      const nodes: BlockNode[] = [];
      return await usingNodes(nodes, async () => {
        for (const source of sources) {
          const facts = { ...wish.image, share: false, cache };
          nodes.push(await openImageArgument(program, source, facts));
        }
        await selectSnapshot(wish, nodes);
        if (!toOutput) return await conversion.fromNodes(nodes);
        checkPipes(wish, { fromPipe: false, toOutput, sources });
        return await conversion.toOutput(nodes);
      });
    } finally {
      progress.end();
    }
  },
};

async function selectSnapshot(
  { snapshot }: ConvertWish,
  nodes: readonly BlockNode[],
): Promise<void> {
  if (snapshot === undefined) return;
  if (nodes.length > 1 && !snapshot.startsWith("snapshot.")) {
    throw new CommandError("No support for concatenating multiple snapshot");
  }
  await showSnapshot(nodes[0], snapshot);
}

function sizeOf(sources: readonly BlockNode[]): number {
  return sources.reduce(
    (sum, { size }) => sum + roundUp(size, SECTOR_SIZE),
    0,
  );
}

/** What is known of a target. */
interface TargetFacts {
  /** Whether it is known to read as zeroes. */
  readonly targetIsZero: boolean;
  /** Whether nothing in it hides its backing file yet. */
  readonly targetIsNew: boolean;
  /** Wishes that go with each write. */
  readonly flags?: WriteFlags;
}

/** One call of the command. */
class Conversion {
  readonly #program: Program;
  readonly #wish: ConvertWish;
  readonly #target: string;
  readonly #progress: Progress;
  #sources: readonly BlockNode[] = [];

  constructor(
    program: Program,
    wish: ConvertWish,
    target: string,
    progress: Progress,
  ) {
    this.#program = program;
    this.#wish = wish;
    this.#target = target;
    this.#progress = progress;
  }

  /** Convert opened images. */
  async fromNodes(sources: readonly BlockNode[]): Promise<number> {
    this.#sources = sources;
    const wish = this.#wish;
    const created = wish.skipCreate
      ? undefined
      : this.#createValues(sizeOf(sources));
    const backing = created?.backing_file ?? wish.backingFile;
    checkBacking(wish, backing !== undefined, sources.length);
    if (created) checkCreation(wish, created);
    if (wish.bitmaps) {
      await checkSourceBitmaps(wish.skipBrokenBitmaps, sources);
    }
    await this.#withTarget(created, async (node, facts) => {
      if (wish.bitmaps) await refuseBitmaps(sources[0], node);
      await convert(sources, node, {
        ...this.#options,
        ...facts,
        onlyDifferences: backing !== undefined,
        // Going through all extents once more is not worth it if nobody looks.
        progressBy: this.#progress.isShown || wish.salvage ? "data" : "disk",
        progress: (done, total) => this.#progress.update(done, total),
      });
      if (wish.bitmaps) await warnOfSkippedBitmaps(this.#program, sources[0]);
    });
    this.#progress.complete();
    return 0;
  }

  /**
   * Refuse what the new image will not be able to do, as a small one in memory
   * shows: later, an existing target would be lost for it.
   */
  async #checkAbilities(created: OptionValues): Promise<void> {
    const { targetFormat, bitmaps, compressed } = this.#wish;
    if (!bitmaps && !compressed) return;
    // A file by itself is not made to order.
    if (getFormat(targetFormat).role === "protocol") return;
    const { MemoryStore } = await import("../../mod.ts");
    const { backing_file: _, backing_fmt: __, ...values } = created;
    const file = { driver: "memory", store: new MemoryStore() };
    const small = { ...values, size: 1 << 20 };
    await this.#named(() =>
      createImage(targetFormat, file, small, creating(this.#program))
    );
    const stack = { ...keyOptions(created), driver: targetFormat, file };
    const node = await openNode(stack, { secrets: this.#program.secrets });
    await usingNodes([node], async () => {
      if (bitmaps) await refuseBitmaps(this.#sources[0], node);
      if (compressed) await copyTargetOptions(node, { compressed });
    });
  }

  /** Convert opened images to standard output. */
  async toOutput(sources: readonly BlockNode[]): Promise<number> {
    const { imageChunks } = await import("../../core/jobs/stream.ts");
    const { checkOutput, writeOutput } = await import("../standard_streams.ts");
    const { size: _, ...create } = this.#createValues(sizeOf(sources));
    checkBacking(
      this.#wish,
      create.backing_file !== undefined,
      sources.length,
    );
    checkCreation(this.#wish, create);
    checkOutput();
    const { sparseSize, ...options } = this.#options;
    await writeOutput(imageChunks(this.#wish.targetFormat, sources, {
      ...options,
      create,
      fill: sparseSize === 0,
      onlyDifferences: create.backing_file !== undefined,
      progress: (done, total) => this.#progress.update(done, total),
    }));
    this.#progress.complete();
    return 0;
  }

  /** Convert what comes from standard input. */
  async fromPipe(): Promise<number> {
    const { convertStream } = await import("../../core/jobs/convert_stream.ts");
    const { readInput } = await import("../standard_streams.ts");
    const wish = this.#wish;
    const created = wish.skipCreate ? undefined : this.#createValues(0);
    checkBacking(wish, created?.backing_file !== undefined, 1);
    if (created) checkCreation(wish, created);
    if ((created?.preallocation ?? "off") !== "off") {
      throw new CommandError("Preallocation needs a size that is known before");
    }
    const input = readInput(this.#program, wish.image.format);
    // What is wrong with it costs no file.
    const first = await input.next();
    await this.#withTarget(created, async (node, facts) => {
      const all = prepended(first, input);
      const resize = created !== undefined;
      await convertStream(all, node, { ...this.#options, ...facts, resize });
    });
    this.#progress.complete();
    return 0;
  }

  /** Make the target, unless it is there, and have it filled. */
  async #withTarget(
    created: OptionValues | undefined,
    fill: (node: BlockNode, facts: TargetFacts) => Promise<void>,
  ): Promise<void> {
    const wish = this.#wish;
    const cache = cacheMode(wish.targetCache, "cache option");
    if (created) await this.#checkAbilities(created);
    const backing = created && await this.#openBackingFile(created);
    const needed = backing ? [...this.#sources, backing] : this.#sources;
    using target = new Target(this.#program, this.#target, needed);
    await usingNodes([backing], async () => {
      if (created) await this.#make(target, created);
      else target.use();
    });
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
      const isFresh = created !== undefined &&
        created.backing_file === undefined;
      await fill(node, {
        targetIsZero: wish.targetIsZero ||
          (isFresh && readsAsZero(target, node, created)),
        targetIsNew: created !== undefined,
        ...((cache === "writethrough" || cache === "directsync") &&
          { flags: { fua: true } }),
      });
      await node.flush?.();
    });
    target.complete();
  }

  /** What the user says of how to copy. */
  get #options(): ConvertOptions {
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

  /**
   * The backing file of the new image, if it is to have one. Opening it comes
   * first: that it cannot be opened is no reason to lose an existing target.
   */
  async #openBackingFile(
    { backing_file: name, backing_fmt: format }: OptionValues,
  ): Promise<BlockNode | undefined> {
    if (name === undefined) return undefined;
    try {
      return await openNode(backingName(this.#target, String(name)), {
        ...(format !== undefined && { format: String(format) }),
        readOnly: true,
        gate: "allow",
        maxChain: this.#program.maxChain,
        secrets: this.#program.secrets,
      });
    } catch (thrown) {
      throw asBlockError(thrown).prefixed(
        `Could not open '${this.#target}': Could not open backing file: `,
      );
    }
  }

  async #make(target: Target, values: OptionValues): Promise<void> {
    const { targetFormat: format } = this.#wish;
    const wishes = creating(this.#program);
    await this.#named(() =>
      target.make(() => createImage(format, this.#target, values, wishes))
    );
  }

  /** Make an image; an error says of which target. */
  async #named(make: () => Promise<void>): Promise<void> {
    const { targetFormat: format } = this.#wish;
    try {
      await make();
    } catch (thrown) {
      const error = asBlockError(thrown);
      throw error.prefixed(
        `${this.#target}: error while converting ${format}: `,
      );
    }
  }
}

async function* prepended<T>(
  first: IteratorResult<T, void>,
  rest: AsyncIterable<T>,
): AsyncGenerator<T> {
  if (first.done) return;
  yield first.value;
  yield* rest;
}

/** What of a new image's options tells its keys: it takes them to open it. */
function keyOptions(created: OptionValues): OptionValues | undefined {
  const keys = Object.entries(created)
    .filter(([name]) => name.endsWith("key-secret"));
  return keys.length ? nestOptions(Object.fromEntries(keys)) : undefined;
}

/** Whether an image that was just made, without backing, is zero all over. */
function readsAsZero(
  target: Target,
  node: BlockNode,
  created: OptionValues,
): boolean {
  if (node.driver.createsZeroes === false) return false;
  if (target.isPlainFile) return true;
  // On a device, only what the format has not allocated is sure to be zero.
  return node.driver.name !== "raw" &&
    (created.preallocation ?? "off") === "off";
}
