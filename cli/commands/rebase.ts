/** `rebase`: change the backing file of an image. @module */
import "../../drivers/writing.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import { backingOf } from "../../core/extents.ts";
import { canonicalName } from "../../core/gate.ts";
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

class Wish {
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
    const wish = parse(invocation);
    const [file] = invocation.operands;
    const { forceShare, ...image } = invocation.image;
    const progress = await Progress.begin(program, invocation.showsProgress, 2);
    try {
      const cache = cacheMode(wish.cache, "cache option");
      const sourceCache = cacheMode(wish.sourceCache, "source cache option");
      const overlay = await openImageArgument(program, file, {
        ...image,
        cache,
        writable: true,
        backing: !wish.unsafe,
      });
      await usingNodes([overlay], async () => {
        checkFormat(wish.backingFormat);
        if (wish.unsafe) await changeName(overlay, wish);
        else {
          await rebaseSafely({
            program,
            wish,
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

function parse(invocation: Invocation): Wish {
  const wish = new Wish();
  for (const [option, argument] of invocation.options()) {
    if (option === "b") wish.backing = argument;
    else if (option === "F") wish.backingFormat = argument;
    else if (option === "t") wish.cache = argument;
    else if (option === "T") wish.sourceCache = argument;
    else if (option === "u") wish.unsafe = true;
    else if (option === "c") wish.compressed = true;
  }
  invocation.expectOneImage();
  if (!wish.unsafe && wish.backing === undefined) {
    throw usageError("Must specify backing file (-b) or use unsafe mode (-u)");
  }
  // QEMU's program leaves it to its user to notice.
  if (wish.unsafe && wish.compressed && invocation.program.isOurs) {
    throw usageError("Cannot compress in unsafe mode: nothing is copied");
  }
  return wish;
}

function checkFormat(format: string | undefined): void {
  if (format === undefined || findDriver(format)) return;
  throw new CommandError(`Invalid format name: '${format}'`);
}

/** The name to record; QEMU requires the format. */
function newName({ backing, backingFormat }: Wish): BackingName | undefined {
  if (!backing) return undefined;
  if (backingFormat !== undefined) {
    return { name: backing, format: backingFormat };
  }
  throw new CommandError(
    `Could not change the backing file to '${backing}': backing format must ` +
      "be specified",
  );
}

async function changeName(overlay: BlockNode, wish: Wish): Promise<void> {
  try {
    await changeBacking(overlay, newName(wish));
  } catch (error) {
    if (wish.backing !== undefined) throw error;
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
  readonly wish: Wish;
  /** The overlay's name, as given by the user. */
  readonly file: string;
  readonly overlay: BlockNode;
  readonly sourceCache: CacheMode;
  /** Whether others may write to the new backing file meanwhile. */
  readonly forceShare?: boolean;
  readonly progress: Progress;
}

async function rebaseSafely(call: SafeRebase): Promise<void> {
  const { program, wish, file, overlay, progress } = call;
  const opened = wish.backing ? await openBacking(call) : undefined;
  await usingNodes([opened?.isOurs ? opened.node : undefined], async () => {
    if (opened && program.isOurs) {
      wish.backingFormat ??= opened.node.driver.name;
    }
    const name = newName(wish);
    using interruption = new Interruption();
    await interruption.run(
      (signal) =>
        rebase(overlay, opened && name && { ...name, node: opened.node }, {
          compressed: wish.compressed,
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
  { program, wish, overlay, sourceCache, forceShare }: SafeRebase,
): Promise<{ node: BlockNode; isOurs: boolean }> {
  const backing = wish.backing!;
  const filename = resolvedName(overlay, backing);
  const { backingFormat: format } = wish;
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
