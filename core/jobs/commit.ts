/**
 * Committing: writing an overlay's data into an image below it.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../bytes.ts";
import { AMOUNT, checkOptions, checkWritable, nodeOf } from "../checks.ts";
import { asBlockError, BlockError, strerror } from "../errors.ts";
import { backingOf, chainStatus, isInherited } from "../extents.ts";
import type { BlockNode, Disk } from "../node.ts";
import { nameOf } from "../node_names.ts";
import { Concatenation } from "./concatenation.ts";
import { copy } from "./copy.ts";
import { Job, type JobNode } from "./job.ts";

/**
 * How to commit.
 *
 * @category Jobs
 */
export interface CommitOptions {
  /**
   * The image to write to, one of the overlay's chain, opened for writing (see
   * `writableBacking` of {@linkcode OpenOptions}). Images between the two are
   * invalid afterwards. Default: the overlay's own backing file.
   */
  base?: Disk;
  /**
   * Keep the overlay's content instead of emptying it. Default: false; true if
   * the base is not the overlay's own backing file, since emptying would then
   * expose the images in between.
   */
  keepOverlay?: boolean;
  /** Most bytes of data written per second; 0 for no limit. Default: 0. */
  rateLimit?: number;
  /** Ends the job with ECANCELED; nothing is lost. */
  signal?: AbortSignal;
  /** Receives how many bytes of data are done or under way, and the total. */
  progress?(done: number, total: number): void;
}

/**
 * A failed commit.
 *
 * @category Jobs
 */
export class CommitError extends BlockError {
  /**
   * The stage that failed: `copy` leaves the overlay unchanged; before `empty`,
   * everything is in the base.
   */
  readonly stage: "copy" | "empty";

  /** Thrown by {@linkcode commit}. */
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
 * Write the data of an overlay, and of the images between it and the base, into
 * the base, which grows if it is smaller. Then empty the overlay.
 *
 * The disk is intact at any moment, as seen through the overlay: data leaves
 * the overlay only once it is durable in the base.
 *
 * @throws {BlockError} EINVAL if there is no such base, EACCES if either cannot
 * be written to.
 * @throws {CommitError} if it fails or is cancelled.
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
 * await commit(overlay);
 * const bytes = new Uint8Array(5);
 * base.store.read(0, bytes);
 * assertEquals(new TextDecoder().decode(bytes), "hello");
 * ```
 *
 * @category Jobs
 */
export async function commit(
  disk: Disk,
  options: CommitOptions = {},
): Promise<void> {
  const overlay = nodeOf("The overlay", disk);
  const chosen = options?.base === undefined
    ? undefined
    : nodeOf("The base", options.base);
  checkOptions("commit", options, {
    keepOverlay: "boolean",
    rateLimit: AMOUNT,
    signal: "object",
    progress: "function",
  });
  const base = chosen ?? backingOf(overlay);
  if (!base) {
    throw new BlockError("EINVAL", "Image does not have a backing file");
  }
  checkInChain(base, overlay);
  const { keepOverlay = base !== backingOf(overlay) } = options;
  for (const node of keepOverlay ? [base] : [base, overlay]) {
    if (node.readOnly) {
      const why = `'${shortName(node)}' was opened read-only`;
      throw new BlockError("EACCES", why);
    }
    checkWritable("Cannot commit", node);
  }
  await using job = new Job(options.signal);
  const from = job.use(overlay);
  // The overlay's own backing file may be replaced.
  const to = base === backingOf(overlay)
    ? {
      get node() {
        return backingOf(from.node) ?? base;
      },
    }
    : job.use(base);
  try {
    await copyDown(job, from, to, options);
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
  if (!keepOverlay) await job.request(() => empty(from.node, to.node));
}

/** The file name, where there is one. */
function shortName(node: BlockNode): string {
  return node.filename || nameOf(node);
}

function checkInChain(base: BlockNode, overlay: BlockNode): void {
  let at = backingOf(overlay);
  while (at && at !== base) at = backingOf(at);
  if (at) return;
  throw new BlockError(
    "EINVAL",
    `'${shortName(base)}' is not in the backing chain of ` +
      `'${shortName(overlay)}'`,
  );
}

/** Write the data of the images above the base into it, durably. */
async function copyDown(
  job: Job,
  overlay: JobNode,
  base: JobNode,
  { rateLimit, signal, progress }: CommitOptions,
): Promise<void> {
  await job.request(() => growToFit(base.node, overlay.node));
  // Keep zeroes in the overlay's data as data: searching for them would cost
  // more time than it saves.
  await copy(job, await Concatenation.of([overlay.node], job), base, {
    zeroes: "known",
    baseOf: () => base.node,
    outOfOrder: true,
    rateLimit,
    signal,
    progress,
  });
  await job.request(() => base.node.flush?.());
  // Otherwise it does not hold what the overlay is about to lose.
  checkInChain(base.node, overlay.node);
}

async function growToFit(base: BlockNode, overlay: BlockNode): Promise<void> {
  if (!await mustGrow(base, overlay)) return;
  if (!base.truncate) throw new BlockError("ENOTSUP");
  await base.truncate(overlay.size);
}

/** Whether the base is too short for the data to be written to it. */
async function mustGrow(base: BlockNode, overlay: BlockNode): Promise<boolean> {
  const { size } = overlay;
  if (base.size >= size) return false;
  // Sizes count in sectors. A file whose last sector is incomplete keeps its
  // size, unless data has to be written there.
  if (roundUp(base.size, SECTOR_SIZE) < size) return true;
  const start = size - SECTOR_SIZE;
  const tail = await chainStatus(
    overlay,
    start,
    base.size - start,
    undefined,
    base,
  );
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
      `Nothing is lost: all data is in '${shortName(base)}'.`,
      cause,
    );
  }
}
