/**
 * Writing what an overlay holds into an image below it.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../bytes.ts";
import { AMOUNT, checkNode, checkOptions, checkWritable } from "../checks.ts";
import { asBlockError, BlockError, strerror } from "../errors.ts";
import { backingOf, chainStatus, isInherited } from "../extents.ts";
import type { BlockNode } from "../node.ts";
import { nameOf } from "../node_names.ts";
import { Concatenation } from "./concatenation.ts";
import { copy } from "./copy.ts";

/** How to commit. */
export interface CommitOptions {
  /**
   * The image to write to, one of the overlay's chain, opened for writing (see
   * `writableBacking` of {@linkcode OpenOptions}). Images between the two are
   * worthless afterwards. Default: the overlay's own backing file.
   */
  base?: BlockNode;
  /**
   * Leave the overlay as it is, instead of emptying it where its format can.
   * Default: false; true with another base than the overlay's backing file,
   * from where it could not be seen.
   */
  keepOverlay?: boolean;
  /** Most bytes of data written a second; 0: no limit. Default: 0. */
  rateLimit?: number;
  /** Ends the job with ECANCELED; nothing is lost. */
  signal?: AbortSignal;
  /** Told how many bytes of data are done with or under way, of how many. */
  progress?(done: number, total: number): void;
}

/** A commit that came to no good end. */
export class CommitError extends BlockError {
  /**
   * What failed: while it copies, the overlay holds all that it held; when it
   * is being emptied, all of that is in the base.
   */
  readonly stage: "copy" | "empty";

  /** Made by {@linkcode commit}. */
  constructor(
    stage: "copy" | "empty",
    message: string,
    hint: string,
    cause: BlockError,
  ) {
    super(cause.code, message, { cause, hint });
    this.stage = stage;
  }
}

/**
 * Write all that `overlay` holds, and the images between it and the base, into
 * the base, which grows if it is smaller. Then the overlay is emptied.
 *
 * At any moment the disk is whole, as seen through the overlay: what it gives
 * up is durable in the base before.
 *
 * @throws {BlockError} EINVAL if there is no such base, EACCES if one of both
 * cannot be written to.
 * @throws {CommitError} if it fails, or is ended, on its way.
 *
 * @example
 * ```ts
 * import { commit, createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const base = { driver: "memory", store: new MemoryStore(1 << 20) };
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 20 });
 * const stack = {
 *   driver: "qcow2",
 *   file,
 *   backing: { driver: "raw", "read-only": false, file: base },
 * };
 * await using overlay = await openImage(stack);
 * await overlay.write(0, new TextEncoder().encode("hello"));
 * await commit(overlay.node);
 * const bytes = new Uint8Array(5);
 * base.store.read(0, bytes);
 * assertEquals(new TextDecoder().decode(bytes), "hello");
 * ```
 */
export async function commit(
  overlay: BlockNode,
  options: CommitOptions = {},
): Promise<void> {
  checkNode("The overlay", overlay);
  if (options?.base !== undefined) checkNode("The base", options.base);
  checkOptions("commit", options, {
    keepOverlay: "boolean",
    rateLimit: AMOUNT,
    signal: "object",
    progress: "function",
  });
  const base = options.base ?? backingOf(overlay);
  if (!base) {
    throw new BlockError("EINVAL", "Image does not have a backing file");
  }
  if (!isInChain(base, overlay)) {
    throw new BlockError(
      "EINVAL",
      `'${shortName(base)}' is not in the backing chain of ` +
        `'${shortName(overlay)}'`,
    );
  }
  const { keepOverlay = base !== backingOf(overlay) } = options;
  for (const node of keepOverlay ? [base] : [base, overlay]) {
    if (node.readOnly) {
      const why = `'${shortName(node)}' was opened read-only`;
      throw new BlockError("EACCES", why);
    }
    checkWritable("Cannot commit", node);
  }
  try {
    await copyDown(overlay, base, options);
  } catch (thrown) {
    const cause = asBlockError(thrown);
    throw new CommitError(
      "copy",
      `Cannot commit '${shortName(overlay)}': ${cause.message}`,
      `Nothing is lost: '${shortName(overlay)}' holds what it held, and ` +
        `'${shortName(base)}' a part of that. Commit it again.`,
      cause,
    );
  }
  if (!keepOverlay) await empty(overlay, base);
}

/** The name of the file, where there is one. */
function shortName(node: BlockNode): string {
  return node.filename || nameOf(node);
}

function isInChain(base: BlockNode, overlay: BlockNode): boolean {
  let at = backingOf(overlay);
  while (at && at !== base) at = backingOf(at);
  return at === base;
}

/** Write what is above the base into it, durably. */
async function copyDown(
  overlay: BlockNode,
  base: BlockNode,
  { rateLimit, signal, progress }: CommitOptions,
): Promise<void> {
  if (await mustGrow(base, overlay)) {
    if (!base.truncate) throw new BlockError("ENOTSUP");
    await base.truncate(overlay.size);
  }
  // Zeroes among data are left to be data, as the overlay has them: to look
  // for them would cost more time than it saves.
  await copy(await Concatenation.of([overlay]), base, {
    zeroes: "known",
    base,
    outOfOrder: true,
    rateLimit,
    signal,
    progress,
  });
  await base.flush?.();
}

/** Whether the base is too short for what will be written to it. */
async function mustGrow(base: BlockNode, overlay: BlockNode): Promise<boolean> {
  const { size } = overlay;
  if (base.size >= size) return false;
  // Disks are counted in sectors. A file of which the last is cut short stays
  // as it is, unless there is something to be written there.
  if (roundUp(base.size, SECTOR_SIZE) < size) return true;
  const start = size - SECTOR_SIZE;
  const tail = await chainStatus(overlay, start, base.size - start, base);
  return !isInherited(tail);
}

async function empty(overlay: BlockNode, base: BlockNode): Promise<void> {
  if (!overlay.image?.makeEmpty) return;
  try {
    await overlay.image.makeEmpty();
  } catch (thrown) {
    const cause = asBlockError(thrown);
    throw new CommitError(
      "empty",
      `Failed to empty ${nameOf(overlay)}: ${strerror(cause.code)}`,
      `Nothing is lost: all of it is in '${shortName(base)}'.`,
      cause,
    );
  }
}
