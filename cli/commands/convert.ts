/** `convert`: convert images to a new one. @module */
import "../../drivers/creating_raw.ts";
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { createImage } from "../../core/create.ts";
import { asBlockError, strerror } from "../../core/errors.ts";
import { primaryChild } from "../../core/extents.ts";
import { convert, copyTargetOptions } from "../../core/jobs/convert.ts";
import type { ConvertOptions } from "../../core/jobs/convert_options.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import { nestOptions, type OptionValues } from "../../core/options.ts";
import { getDriver, loadDriver, loadFormat } from "../../core/registry.ts";
import { protocolStack } from "../../core/sources.ts";
import type { Command } from "../command.ts";
import {
  checkBacking,
  checkCreation,
  CONVERT_OPTIONS,
  type ConvertSettings,
  parseConvert,
} from "../convert_options.ts";
import {
  addBackingOptions,
  backingName,
  createTable,
} from "../create_options.ts";
import {
  cacheMode,
  creating,
  openImageArgument,
  usingNodes,
} from "../images.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program } from "../program.ts";
import type { ConversionHost, TargetFacts } from "../stream_conversion.ts";
import { Target } from "../target.ts";

/** The name that stands for standard input or standard output. */
const STANDARD = "-";

const loadBitmaps = () => import("../bitmaps.ts");
const loadStreams = () => import("../stream_conversion.ts");

/** The command. */
export const command: Command = {
  summary: "Convert one or more images to a new one",
  operands: "FILE… TARGET",
  options: CONVERT_OPTIONS,
  notes: "TARGET may be - for standard output. FILE may be - for standard\n" +
    "input: raw data, if that is a pipe.",

  async run(invocation) {
    const { program } = invocation;
    const settings = await parseConvert(invocation);
    const sources = invocation.operands.slice(0, -1);
    const target = sources.length > 0 ? invocation.operands.at(-1) : undefined;
    if (settings.options.asksForHelp) {
      if (settings.targetImageOpts && settings.outputFormat === undefined) {
        throw new CommandError("Option help requires a format be specified");
      }
      const { printCreateHelp } = await import("../option_help.ts");
      await printCreateHelp(program, settings.targetFormat, target);
      return 0;
    }
    if (target === undefined) {
      throw new CommandError("Must specify image file name");
    }
    const cache = cacheMode(settings.sourceCache, "source cache option");
    const toOutput = target === STANDARD && !settings.targetImageOpts;
    const progress = await Progress.begin(
      program,
      invocation.showsProgress,
      1,
      { dataOnOutput: toOutput },
    );
    try {
      const conversion = new Conversion(program, settings, target, progress);
      if (sources.includes(STANDARD) && !settings.image.imageOpts) {
        const { inputFile } = await import("../standard_streams.ts");
        const file = inputFile();
        if (file === undefined) {
          const { convertPipe } = await loadStreams();
          const pipes = { fromPipe: true, toOutput, sources };
          return await convertPipe(conversion, pipes);
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
          const facts = { ...settings.image, share: false, cache };
          try {
            nodes.push(await openImageArgument(program, source, facts));
          } catch (error) {
            if (asBlockError(error).code !== "ENOTSUP") throw error;
            const { convertPacked } = await loadStreams();
            const pipes = { toOutput, sources };
            const code = await convertPacked(conversion, source, pipes);
            if (code === undefined) throw error;
            return code;
          }
        }
        await selectSnapshot(settings, nodes);
        if (!toOutput) return await conversion.fromNodes(nodes);
        const { convertToOutput } = await loadStreams();
        return await convertToOutput(conversion, nodes);
      });
    } finally {
      progress.end();
    }
  },
};

async function selectSnapshot(
  { snapshot }: ConvertSettings,
  nodes: readonly BlockNode[],
): Promise<void> {
  if (snapshot === undefined) return;
  if (nodes.length > 1 && !snapshot.startsWith("snapshot.")) {
    throw new CommandError("No support for concatenating multiple snapshot");
  }
  const { showSnapshot } = await import("../snapshots.ts");
  await showSnapshot(nodes[0], snapshot);
}

/** One call of the command. */
class Conversion implements ConversionHost {
  readonly program: Program;
  readonly settings: ConvertSettings;
  readonly target: string;
  readonly progress: Progress;
  sources: readonly BlockNode[] = [];

  constructor(
    program: Program,
    settings: ConvertSettings,
    target: string,
    progress: Progress,
  ) {
    this.program = program;
    this.settings = settings;
    this.target = target;
    this.progress = progress;
  }

  /** Convert opened images. */
  async fromNodes(sources: readonly BlockNode[]): Promise<number> {
    this.sources = sources;
    const settings = this.settings;
    const created = settings.skipCreate
      ? undefined
      : await this.createValues(sources);
    const backing = created?.backing_file ?? settings.backingFile;
    checkBacking(settings, backing !== undefined, sources.length);
    if (created) checkCreation(settings, created);
    if (settings.bitmaps) {
      const { checkSourceBitmaps } = await loadBitmaps();
      await checkSourceBitmaps(settings.skipBrokenBitmaps, sources);
    }
    if (created && await this.isStream(created)) {
      if (settings.bitmaps) await this.#checkAbilities(created);
      const { convertToFile } = await loadStreams();
      return await convertToFile(
        this,
        sources,
        created,
        backing !== undefined,
      );
    }
    await this.withTarget(created, async (node, facts) => {
      if (settings.bitmaps) {
        await (await loadBitmaps()).checkTargetBitmaps(node);
      }
      await convert(sources, node, {
        ...this.copyOptions,
        ...facts,
        onlyDifferences: backing !== undefined,
        // An extra pass over all extents is wasted if nobody watches.
        progressBy: this.progress.isShown || settings.salvage ? "data" : "disk",
        progress: (done, total) => this.progress.update(done, total),
      });
      if (settings.bitmaps) {
        const { copyBitmaps } = await loadBitmaps();
        await copyBitmaps(this.program, sources[0], node);
      }
    });
    this.progress.complete();
    return 0;
  }

  /**
   * Refuse what the new image will not support, by trying a small one in
   * memory: later, an existing target would already be lost.
   */
  async #checkAbilities(created: OptionValues): Promise<void> {
    const { targetFormat, bitmaps, compressed } = this.settings;
    if (!bitmaps && !compressed) return;
    // A protocol has no abilities to check.
    const { role } = await loadFormat(targetFormat);
    if (role === "protocol") return;
    const { MemoryStore } = await import("../../core/memory_store.ts");
    // Other files are not touched for this.
    const { backing_file: _, backing_fmt: __, ...rest } = created;
    const { data_file, data_file_raw: ___, ...values } = rest;
    if (compressed && data_file !== undefined) {
      const why = strerror("ENOTSUP");
      throw new CommandError(`error while writing at byte 0: ${why}`);
    }
    const file = { driver: "memory", store: new MemoryStore() };
    const small = { ...values, size: 1 << 20 };
    try {
      await createImage(targetFormat, file, small, creating(this.program));
    } catch {
      // Options that make no sense cost no file, and others need a folder.
      return;
    }
    const stack = { ...keyOptions(created), driver: targetFormat, file };
    const node = await openNode(stack, { secrets: this.program.secrets });
    await usingNodes([node], async () => {
      if (bitmaps) await (await loadBitmaps()).checkTargetBitmaps(node);
      if (compressed) await copyTargetOptions(node, { compressed });
    });
  }

  /** Whether the new image is written front to back. */
  async isStream(created: OptionValues): Promise<boolean> {
    const { isStream, stream } = await loadFormat(this.settings.targetFormat);
    if (isStream?.(created)) return true;
    // Of most files that is known without their options.
    const { driver } = protocolStack(this.target);
    const protocol = await loadDriver(getDriver(String(driver)));
    if (!protocol.storesWhole) return false;
    const { isStoredWhole } = await loadStreams();
    return await isStoredWhole(this, created, stream !== undefined);
  }

  /** Create the target, unless it must exist, and fill it. */
  async withTarget(
    created: OptionValues | undefined,
    fill: (node: BlockNode, facts: TargetFacts) => Promise<void>,
  ): Promise<void> {
    const settings = this.settings;
    const cache = cacheMode(settings.targetCache, "cache option");
    if (created) await this.#checkAbilities(created);
    const backing = created && await this.#openBackingFile(created);
    const needed = backing ? [...this.sources, backing] : this.sources;
    using target = new Target(this.program, this.target, needed);
    await usingNodes([backing], async () => {
      if (created) await this.#make(target, created);
    });
    const node = await openImageArgument(this.program, this.target, {
      format: settings.targetImageOpts
        ? settings.outputFormat
        : settings.targetFormat,
      imageOpts: settings.targetImageOpts,
      writable: true,
      // Direct I/O may extend a file to a whole block.
      resize: cache === "none" || cache === "directsync",
      cache,
      options: created && keyOptions(created),
    });
    await usingNodes([node], async () => {
      if (!created) target.use();
      const isFresh = created !== undefined &&
        created.backing_file === undefined;
      await fill(node, {
        targetIsZero: settings.targetIsZero ||
          (isFresh && readsAsZero(target, node, created)),
        targetIsNew: created !== undefined,
        ...((cache === "writethrough" || cache === "directsync") &&
          { flags: { fua: true } }),
      });
      await node.flush?.();
    });
    target.complete();
  }

  /** The user's options of copying. */
  get copyOptions(): ConvertOptions {
    const { parallel, sparseSize, compressed, outOfOrder } = this.settings;
    const { salvage, rateLimit, copyOffload, quiet } = this.settings;
    return {
      parallel,
      sparseSize,
      compressed,
      outOfOrder,
      salvage,
      rateLimit,
      copyOffload,
      ...(!quiet && { warn: (message) => this.program.warn(message) }),
    };
  }

  /** The options of the new image. */
  async createValues(sources: readonly BlockNode[]): Promise<OptionValues> {
    const size = sources.reduce(
      (sum, { size }) => sum + roundUp(size, SECTOR_SIZE),
      0,
    );
    const { targetFormat: format, backingFile, backingFormat } = this.settings;
    const { table } = await createTable(format, this.target);
    const values = { ...this.settings.options.parse(table), size };
    addBackingOptions(values, table, { format, backingFile, backingFormat });
    return values;
  }

  /**
   * Open the backing file of the new image, if it has one. This comes first, so
   * that a failure does not cost an existing target.
   */
  async #openBackingFile(
    { backing_file: name, backing_fmt: format }: OptionValues,
  ): Promise<BlockNode | undefined> {
    if (name === undefined) return undefined;
    try {
      return await openNode(backingName(this.target, String(name)), {
        ...(format !== undefined && { format: String(format) }),
        readOnly: true,
        gate: "allow",
        maxChain: this.program.maxChain,
        secrets: this.program.secrets,
      });
    } catch (thrown) {
      throw asBlockError(thrown).prefixed(
        `Could not open '${this.target}': Could not open backing file: `,
      );
    }
  }

  async #make(target: Target, values: OptionValues): Promise<void> {
    const { targetFormat: format } = this.settings;
    const onPart = (name: string) => target.addPart(name);
    const how = { ...creating(this.program), onPart };
    await this.named(() =>
      target.make(() => createImage(format, this.target, values, how))
    );
  }

  /** Create an image; errors name the target. */
  async named(make: () => Promise<void>): Promise<void> {
    const { targetFormat: format } = this.settings;
    try {
      await make();
    } catch (thrown) {
      const error = asBlockError(thrown);
      // Of what is written at once, the place says more.
      if (error.message.startsWith("error while ")) throw error;
      throw error.prefixed(
        `${this.target}: error while converting ${format}: `,
      );
    }
  }
}

/** The options that name the new image's keys, needed to open it. */
function keyOptions(created: OptionValues): OptionValues | undefined {
  const keys = Object.entries(created)
    .filter(([name]) => name.endsWith("key-secret"));
  return keys.length ? nestOptions(Object.fromEntries(keys)) : undefined;
}

/** Whether a newly created image without a backing file reads as zeroes. */
function readsAsZero(
  target: Target,
  node: BlockNode,
  created: OptionValues,
): boolean {
  if (node.driver.createsZeroes === false) return false;
  if (target.isPlainFile) return true;
  let file = node;
  for (let next; (next = primaryChild(file)); file = next);
  // Of a protocol, only one that says so makes a file that was not there.
  if (file.driver.createsZeroes) return true;
  // On a device, only unallocated clusters are sure to read as zeroes.
  return node.driver.name !== "raw" &&
    (created.preallocation ?? "off") === "off";
}
