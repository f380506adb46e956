/**
 * Conversions that read or write front to back only: pipes, packed files, and
 * targets that are stored as a whole.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../core/bytes.ts";
import type { ConvertOptions } from "../core/jobs/convert_options.ts";
import type { StreamImageOptions } from "../core/jobs/stream.ts";
import type { BlockNode, WriteFlags } from "../core/node.ts";
import type { OptionValues } from "../core/options.ts";
import {
  checkBacking,
  checkCreation,
  type ConvertSettings,
} from "./convert_options.ts";
import { cacheMode, creating, usingNodes } from "./images.ts";
import type { Progress } from "./progress.ts";
import { CommandError, type Program } from "./program.ts";
import { Target } from "./target.ts";

/** Properties of a target. */
export interface TargetFacts {
  /** Whether it is known to read as zeroes. */
  readonly targetIsZero: boolean;
  /** Whether it is new, so that its backing file is fully visible. */
  readonly targetIsNew: boolean;
  /** Flags of each write. */
  readonly flags?: WriteFlags;
}

/** The parts common to all conversions. */
export interface ConversionHost {
  readonly program: Program;
  readonly settings: ConvertSettings;
  /** The name of the target. */
  readonly target: string;
  readonly progress: Progress;
  /** The user's options of copying. */
  readonly copyOptions: ConvertOptions;
  /** What the target must not overwrite. */
  sources: readonly BlockNode[];
  /** The options of the new image, as large as `sources` in a row. */
  createValues(sources: readonly BlockNode[]): Promise<OptionValues>;
  /** Whether the new image is written front to back. */
  isStream(created: OptionValues): Promise<boolean>;
  /** Create an image; errors name the target. */
  named(make: () => Promise<void>): Promise<void>;
  /** Create the target, unless it must exist, and fill it. */
  withTarget(
    created: OptionValues | undefined,
    fill: (node: BlockNode, facts: TargetFacts) => Promise<void>,
  ): Promise<void>;
}

/** Whether a conversion uses standard input and standard output. */
export interface Pipes {
  /** Whether a source is a pipe, so that nothing is known beforehand. */
  readonly fromPipe: boolean;
  /** Whether the target is standard output. */
  readonly toOutput: boolean;
  /** The names of all sources. */
  readonly sources: readonly string[];
}

/** Refuse options that need to seek, which pipes cannot. */
function checkPipes(
  settings: ConvertSettings,
  { fromPipe, toOutput, sources }: Pipes,
): void {
  const refuse = (what: string, stream: "input" | "output") => {
    throw new CommandError(`${what} with standard ${stream}`);
  };
  if (toOutput) {
    if (settings.compressed) refuse("-c cannot be used", "output");
    if (settings.skipCreate) refuse("-n cannot be used", "output");
    if (settings.bitmaps) refuse("--bitmaps cannot be used", "output");
  }
  if (!fromPipe) return;
  if (toOutput) {
    throw new CommandError(
      "Cannot convert a pipe to standard output: the source has to be read " +
        "twice, first to determine its content",
    );
  }
  if (sources.length > 1) refuse("Images cannot be concatenated", "input");
  if (settings.snapshot !== undefined) refuse("-l cannot be used", "input");
  if (settings.bitmaps) refuse("--bitmaps cannot be used", "input");
  if (settings.salvage) refuse("--salvage cannot be used", "input");
}

/**
 * Refuse options that need random access to a file that can only be unpacked
 * front to back.
 */
function checkPacked(
  settings: ConvertSettings,
  { toOutput, sources }: Omit<Pipes, "fromPipe">,
): void {
  const refuse = (what: string) => {
    throw new CommandError(
      `${what} with a file that can only be unpacked from its beginning to ` +
        "its end",
      { hint: "Unpack it first." },
    );
  };
  if (toOutput) refuse("Standard output cannot be used");
  if (sources.length > 1) refuse("Images cannot be concatenated");
  if (settings.snapshot !== undefined) refuse("-l cannot be used");
  if (settings.bitmaps) refuse("--bitmaps cannot be used");
  if (settings.salvage) refuse("--salvage cannot be used");
}

/**
 * Refuse options that need random access to a target that is stored as a whole.
 */
function checkStored(settings: ConvertSettings, canStream: boolean): void {
  const refuse = (what: string) => {
    throw new CommandError(
      `${what} cannot be used with a target that is written front to back`,
    );
  };
  if (!canStream) refuse(`Format '${settings.targetFormat}'`);
  if (settings.compressed) refuse("-c");
  if (settings.bitmaps) refuse("--bitmaps");
}

/** Convert opened images to standard output. */
export async function convertToOutput(
  host: ConversionHost,
  sources: readonly BlockNode[],
): Promise<number> {
  const { imageChunks } = await import("../core/jobs/stream.ts");
  const { checkOutput, writeOutput } = await import("./standard_streams.ts");
  const { program, settings, progress } = host;
  checkPipes(settings, { fromPipe: false, toOutput: true, sources: [] });
  const { size: _, ...create } = await host.createValues(sources);
  const onlyDifferences = create.backing_file !== undefined;
  checkBacking(settings, onlyDifferences, sources.length);
  checkCreation(settings, create);
  checkOutput();
  const chunks = imageChunks(settings.targetFormat, sources, {
    ...streamOptions(host),
    create,
    onlyDifferences,
  });
  await writeOutput(program, chunks);
  progress.complete();
  return 0;
}

function streamOptions({ copyOptions, progress }: ConversionHost) {
  const { sparseSize, ...options } = copyOptions;
  return {
    ...options,
    fill: sparseSize === 0,
    progress: (done, total) => progress.update(done, total),
  } satisfies StreamImageOptions;
}

/**
 * Whether a new image is written front to back because its file is stored as a
 * whole.
 */
export async function isStoredWhole(
  { settings, target }: ConversionHost,
  created: OptionValues,
  canStream: boolean,
): Promise<boolean> {
  const { isStoredWhole } = await import("../core/jobs/stream_file.ts");
  const isWhole = await isStoredWhole(settings.targetFormat, target, created);
  if (isWhole) checkStored(settings, canStream);
  return isWhole;
}

/** Convert opened images to a file that is written front to back. */
export async function convertToFile(
  host: ConversionHost,
  sources: readonly BlockNode[],
  { size: _, ...create }: OptionValues,
  onlyDifferences: boolean,
): Promise<number> {
  const { streamToFile } = await import("../core/jobs/stream_file.ts");
  const { program, target, settings: { targetFormat, targetCache } } = host;
  const cache = cacheMode(targetCache, "cache option");
  await store(
    host,
    sources,
    (signal) =>
      streamToFile(targetFormat, target, sources, {
        ...streamOptions(host),
        ...creating(program),
        onlyDifferences,
        cache,
        create,
        signal,
      }),
  );
  return 0;
}

/** Let `write` create the target, and abort it if interrupted. */
async function store(
  host: ConversionHost,
  sources: readonly BlockNode[],
  write: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const interruption = new AbortController();
  using target = new Target(host.program, host.target, sources);
  await host.named(() =>
    target.make(async () => {
      const stored = write(interruption.signal);
      target.abort = async () => {
        interruption.abort();
        await stored.catch(() => {});
      };
      try {
        await stored;
      } catch (error) {
        // The interruption is about to end the program.
        if (interruption.signal.aborted) await new Promise<never>(() => {});
        throw error;
      }
    })
  );
  target.complete();
  host.progress.complete();
}

/** Convert standard input, which is a pipe. */
export async function convertPipe(
  host: ConversionHost,
  pipes: Pipes,
): Promise<number> {
  checkPipes(host.settings, pipes);
  const { readInput } = await import("./standard_streams.ts");
  const { program, settings: { image: { format } } } = host;
  return await convertStream(host, readInput(program, format));
}

/**
 * Convert the raw disk in a packed file.
 *
 * @returns The exit code; `undefined` if the file is not packed, or offers
 * random access.
 */
export async function convertPacked(
  host: ConversionHost,
  name: string,
  pipes: Omit<Pipes, "fromPipe">,
): Promise<number | undefined> {
  const { findPacked } = await import("./packed_source.ts");
  const packed = await findPacked(host.program, name, host.settings);
  if (!packed) return undefined;
  return await usingNodes([packed.file], async () => {
    checkPacked(host.settings, pipes);
    return await convertStream(host, packed.content(), [packed.file]);
  });
}

/**
 * Convert the bytes of a raw disk.
 *
 * @param sources The files that they are read from.
 */
async function convertStream(
  host: ConversionHost,
  input: AsyncGenerator<Uint8Array, void>,
  sources: readonly BlockNode[] = [],
): Promise<number> {
  host.sources = sources;
  const { convertStream } = await import("../core/jobs/convert_stream.ts");
  const { program, settings, target, progress } = host;
  const created = settings.skipCreate ? undefined : await host.createValues([]);
  checkBacking(settings, created?.backing_file !== undefined, 1);
  if (created) checkCreation(settings, created);
  if ((created?.preallocation ?? "off") !== "off") {
    throw new CommandError("Preallocation needs a size that is known before");
  }
  const isStream = created !== undefined && await host.isStream(created);
  if (isStream && settings.targetFormat !== "raw") {
    throw new CommandError(
      `${sources.length > 0 ? "What is unpacked" : "A pipe"} can be stored ` +
        `in '${target}' only as raw data: the ` +
        "source has to be read twice for other formats",
    );
  }
  // Check the input before the target is touched.
  const first = await input.next();
  if (isStream) {
    const { chunksToFile } = await import("../core/jobs/stream_file.ts");
    const bytes = inSectors(prepended(first, input));
    await store(
      host,
      sources,
      (signal) => chunksToFile(target, bytes, { ...creating(program), signal }),
    );
    return 0;
  }
  await host.withTarget(created, async (node, facts) => {
    const all = prepended(first, input);
    const resize = created !== undefined;
    await convertStream(all, node, { ...host.copyOptions, ...facts, resize });
  });
  progress.complete();
  return 0;
}

async function* prepended<T>(
  first: IteratorResult<T, void>,
  rest: AsyncIterable<T>,
): AsyncGenerator<T> {
  if (first.done) return;
  yield first.value;
  yield* rest;
}

/** Pad a stream with zeroes to whole sectors. */
async function* inSectors(
  chunks: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void> {
  let length = 0;
  for await (const chunk of chunks) {
    length += chunk.length;
    yield chunk;
  }
  const rest = roundUp(length, SECTOR_SIZE) - length;
  if (rest > 0) yield new Uint8Array(rest);
}
