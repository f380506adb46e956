/** `rebase`: change the backing file of an image. @module */
import "../../drivers/writing.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import { backingOf } from "../../core/extents.ts";
import { canonicalName } from "../../core/sources.ts";
import {
  type BackingName,
  changeBacking,
  rebase,
} from "../../core/jobs/rebase.ts";
import { isAbsolute, resolveName } from "../../core/names.ts";
import type { BlockNode } from "../../core/node.ts";
import { nameOf } from "../../core/node_names.ts";
import { openNode } from "../../core/open.ts";
import type { CacheMode } from "../../core/open_options.ts";
import { findDriver } from "../../core/registry.ts";
import {
  BACKING_FORMAT,
  CACHE,
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  PROGRESS,
  QUIET,
  SOURCE_CACHE,
} from "../command.ts";
import {
  cacheMode,
  openImageArgument,
  reporting,
  usingNodes,
} from "../images.ts";
import { Interruption } from "../interruption.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program, usageError } from "../program.ts";

class Settings {
  cache = "writeback";
  sourceCache = "writeback";
  backing?: string;
  backingFormat?: string;
  compressed = false;
  unsafe = false;
}

/** The command. */
export const command: Command = {
  summary: "Change the backing file of an image",
  operands: "FILE",
  options: [
    HELP,
    QUIET,
    PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    FORMAT,
    {
      short: "b",
      long: "backing",
      argument: "NAME",
      help: 'the new backing file, relative to FILE\'s folder; "": none',
    },
    { ...BACKING_FORMAT, help: "format of the new backing file" },
    {
      short: "u",
      long: "backing-unsafe",
      help: "change only the name: the disk may read differently",
    },
    {
      short: "c",
      long: "compress",
      help: "compress the data that is copied into FILE",
    },
    CACHE,
    { ...SOURCE_CACHE, long: "backing-cache" },
  ],
  notes:
    "The content of the disk does not change: data that the new backing file\n" +
    "lacks is copied into FILE before its name is recorded.",

  async run(invocation) {
    const { program } = invocation;
    const settings = parse(invocation);
    const [file] = invocation.operands;
    const { forceShare, ...image } = invocation.image;
    const progress = await Progress.begin(program, invocation.showsProgress, 2);
    try {
      const cache = cacheMode(settings.cache, "cache option");
      const sourceCache = cacheMode(
        settings.sourceCache,
        "source cache option",
      );
      const overlay = await openImageArgument(program, file, {
        ...image,
        cache,
        writable: true,
        backing: !settings.unsafe,
      });
      await usingNodes([overlay], async () => {
        checkFormat(settings.backingFormat);
        if (settings.unsafe) await changeName(overlay, settings);
        else {
          await rebaseSafely({
            program,
            settings,
            file,
            overlay,
            sourceCache,
            forceShare,
            progress,
          });
        }
        progress.complete();
      });
    } finally {
      progress.end();
    }
    return 0;
  },
};

function parse(invocation: Invocation): Settings {
  const settings = new Settings();
  for (const [option, argument] of invocation.options()) {
    if (option === "b") settings.backing = argument;
    else if (option === "F") settings.backingFormat = argument;
    else if (option === "t") settings.cache = argument;
    else if (option === "T") settings.sourceCache = argument;
    else if (option === "u") settings.unsafe = true;
    else if (option === "c") settings.compressed = true;
  }
  invocation.expectOneImage();
  if (!settings.unsafe && settings.backing === undefined) {
    throw usageError("Must specify backing file (-b) or use unsafe mode (-u)");
  }
  if (settings.unsafe && settings.compressed) {
    throw usageError("Cannot compress in unsafe mode: nothing is copied");
  }
  return settings;
}

function checkFormat(format: string | undefined): void {
  if (format === undefined || findDriver(format)) return;
  throw new CommandError(`Invalid format name: '${format}'`);
}

/** The name to record; QEMU requires the format. */
function newName(
  { backing, backingFormat }: Settings,
): BackingName | undefined {
  if (!backing) return undefined;
  if (backingFormat !== undefined) {
    return { name: backing, format: backingFormat };
  }
  throw new CommandError(
    `Could not change the backing file to '${backing}': backing format must ` +
      "be specified",
  );
}

async function changeName(
  overlay: BlockNode,
  settings: Settings,
): Promise<void> {
  try {
    await changeBacking(overlay, newName(settings));
  } catch (error) {
    if (settings.backing !== undefined) throw error;
    // How C prints a null string.
    const { code, message } = asBlockError(error);
    throw new BlockError(code, message.replace("to ''", "to '(null)'"), {
      cause: error,
    });
  }
}

/** Everything needed to rebase without changing the content. */
interface SafeRebase {
  readonly program: Program;
  readonly settings: Settings;
  /** The overlay's name, as given by the user. */
  readonly file: string;
  readonly overlay: BlockNode;
  readonly sourceCache: CacheMode;
  /** Whether others may write to the new backing file meanwhile. */
  readonly forceShare?: boolean;
  readonly progress: Progress;
}

async function rebaseSafely(call: SafeRebase): Promise<void> {
  const { program, settings, file, overlay, progress } = call;
  const opened = settings.backing ? await openBacking(call) : undefined;
  await usingNodes([opened?.isOurs ? opened.node : undefined], async () => {
    if (opened && program.isOurs) {
      settings.backingFormat ??= opened.node.driver.name;
    }
    const name = newName(settings);
    using interruption = new Interruption();
    await interruption.run(
      (signal) =>
        rebase(overlay, opened && name && { ...name, node: opened.node }, {
          compressed: settings.compressed,
          signal,
          progress: (done, total) => progress.update(done, total),
        }),
      `'${file}' reads as it did, with the backing file that it had; rebase ` +
        "it again",
    );
  });
}

/**
 * The new backing file: an image of the overlay's chain, or one opened here,
 * which the caller must close.
 */
async function openBacking(
  { program, settings, overlay, sourceCache, forceShare }: SafeRebase,
): Promise<{ node: BlockNode; isOurs: boolean }> {
  const backing = settings.backing!;
  const filename = resolvedName(overlay, backing);
  const { backingFormat: format } = settings;
  const known = findInChain(overlay, filename, format);
  if (known) return { node: known, isOurs: false };
  try {
    const node = await openNode(filename, {
      ...(format !== undefined && { format }),
      readOnly: true,
      cache: sourceCache,
      forceShare,
      gate: "allow",
      maxChain: program.maxChain,
      secrets: program.secrets,
      ...reporting(program),
    });
    return { node, isOurs: true };
  } catch (error) {
    const prefix = `Could not open new backing file '${backing}': `;
    throw asBlockError(error).prefixed(prefix);
  }
}

/** Resolve the name of a backing file. */
function resolvedName(overlay: BlockNode, backing: string): string {
  if (isAbsolute(backing)) return backing;
  const name = nameOf(overlay);
  if (!name.startsWith("json:")) return resolveName(name, backing);
  throw new CommandError(
    "Could not resolve backing filename: Cannot use relative backing file " +
      `names for '${name}'`,
  );
}

function findInChain(
  overlay: BlockNode,
  filename: string,
  format: string | undefined,
): BlockNode | undefined {
  const wanted = canonicalName(filename);
  let node = backingOf(overlay);
  while (node && canonicalName(nameOf(node)) !== wanted) node = backingOf(node);
  // The same file in another format is a different disk.
  return node && (format ?? node.driver.name) === node.driver.name
    ? node
    : undefined;
}
