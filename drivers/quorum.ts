/**
 * The driver `quorum`: keeps a disk in several images, and returns the data
 * that enough of them agree on.
 *
 * @module
 */
import { checkSignal } from "../core/abort.ts";
import {
  allocate,
  copyIntoVector,
  type IoVector,
  vectorLength,
} from "../core/bytes.ts";
import type { BlockDriver, OpenContext } from "../core/driver.ts";
import { asBlockError, BlockError, invalid } from "../core/errors.ts";
import { chainStatus } from "../core/extents.ts";
import { interceptable } from "../core/filter.ts";
import type {
  BlockNode,
  Extent,
  ReadFlags,
  RequestFlags,
} from "../core/node.ts";
import {
  type OptionTable,
  type OptionValues,
  parseBoolean,
  parseOptions,
} from "../core/options.ts";
import { ACCESS } from "../core/permissions.ts";
import { writeZeroes } from "../core/requests.ts";
import { isEqual } from "../core/runtime.ts";
import { isPlainObject } from "../core/values.ts";

const OPEN_OPTIONS: OptionTable = {
  "vote-threshold": {
    type: "number",
    help: "The number of votes needed for reaching quorum",
  },
  blkverify: { type: "boolean", help: "Two images, which must agree" },
  "rewrite-corrupted": {
    type: "boolean",
    help: "Rewrite children that were outvoted",
  },
  "read-pattern": {
    type: "string",
    help: "How to read: quorum (all of them), or fifo (the first that can)",
  },
};

/** The parsed options. */
interface Rules {
  readonly threshold: number;
  readonly rewrites: boolean;
  /** Whether to use the first image that can be read. */
  readonly first: boolean;
}

/**
 * Several images of the same disk, listed in the option `children`. On a read
 * `vote-threshold` of them must agree; on a write as many must succeed. Other
 * options: `rewrite-corrupted`, `read-pattern`, `blkverify`.
 *
 * @example Two of three are enough
 * ```ts
 * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const children = [1, 2, 3].map(() => ({
 *   driver: "memory",
 *   store: new MemoryStore(),
 * }));
 * for (const child of children) await createImage("raw", child, { size: 512 });
 * const stack = { driver: "quorum", "vote-threshold": 2, children };
 * await using disk = await openImage(stack);
 * await disk.write(0, new Uint8Array(512).fill(1));
 * await using third = await openImage(children[2]);
 * await third.write(0, new Uint8Array(512).fill(9));
 * assertEquals(await disk.read(0, 1), new Uint8Array([1]));
 * ```
 */
export const quorumDriver: BlockDriver = {
  name: "quorum",
  role: "format",
  openOptions: OPEN_OPTIONS,
  strongOptions: Object.keys(OPEN_OPTIONS),
  // No single file name opens it.
  plainName: () => undefined,
  childPermissions: (_name, own, { options }) => ({
    needs: own.needs |
      (parseBoolean(options["rewrite-corrupted"]) ? ACCESS.WRITE : 0),
    // A child that others change would differ from the rest.
    shares: own.shares & ACCESS.READ | ACCESS.WRITE_UNCHANGED,
  }),

  async open(options, context) {
    const parsed = parseOptions(OPEN_OPTIONS, options, ["children"]);
    const described = childrenOf(options.children);
    const rules = rulesOf(parsed, described.length, context);
    const children: BlockNode[] = [];
    for (const [index, child] of described.entries()) {
      children.push(await context.openChild(`children.${index}`, child));
    }
    if (children.some(({ size }) => size !== children[0].size)) {
      throw new BlockError(
        "EIO",
        "Could not refresh total sector count: Input/output error",
      );
    }
    return quorumNode(children, rules, context.readOnly);
  },
};

/** The descriptions of the children: a list, or an object numbered from 0. */
function childrenOf(given: unknown): unknown[] {
  const children = Array.isArray(given) || isPlainObject(given)
    ? Object.values(given)
    : [];
  if (children.length > 0) return children;
  throw invalid("Number of provided children must be 1 or more");
}

function rulesOf(
  options: OptionValues,
  count: number,
  { readOnly }: OpenContext,
): Rules {
  const threshold = options["vote-threshold"] as number | undefined ?? 0;
  const pattern = options["read-pattern"] ?? "quorum";
  const rewrites = options["rewrite-corrupted"] === true;
  if (threshold < 1) {
    throw invalid("Parameter 'vote-threshold' expects a value >= 1");
  }
  if (threshold > count) {
    throw invalid("threshold may not exceed children count");
  }
  if (pattern !== "quorum" && pattern !== "fifo") {
    throw invalid("Please set read-pattern as fifo or quorum");
  }
  if (options.blkverify === true && (count !== 2 || threshold !== 2)) {
    throw invalid(
      "blkverify=on can only be set if there are exactly two files and " +
        "vote-threshold is 2",
    );
  }
  if (options.blkverify === true && rewrites) {
    throw invalid(
      "rewrite-corrupted=on cannot be used with blkverify=on",
    );
  }
  if (rewrites && readOnly) {
    throw new BlockError("EACCES", "Block node is read-only");
  }
  return { threshold, rewrites, first: pattern === "fifo" };
}

function quorumNode(
  children: BlockNode[],
  rules: Rules,
  readOnly: boolean,
): BlockNode {
  const all = (act: (child: BlockNode) => Promise<void> | undefined) =>
    enough(children.map(async (child) => await act(child)), rules.threshold);
  return {
    driver: quorumDriver,
    filename: children[0].filename,
    get size() {
      return children[0].size;
    },
    readOnly,
    get children() {
      return Object.fromEntries(
        children.map((child, index) => [`children.${index}`, child]),
      );
    },
    replaceChild(role, child) {
      const { size } = children[0];
      if (child.size !== size) {
        throw invalid(
          `Cannot replace '${role}': it has ${child.size} bytes, not ${size}`,
        );
      }
      children[Number(role.split(".")[1])] = child;
    },
    readv: (offset, iov, flags) =>
      rules.first
        ? readFirst(children, offset, iov, flags)
        : readVoted(children, rules, offset, iov, flags),
    status: (offset, length, flags) =>
      jointStatus(children, offset, length, flags),
    flush: (flags) => all((child) => child.flush?.(flags)),
    close: () => Promise.resolve(),
    ...interceptable(children, {
      writev(offset, iov, flags) {
        // `placed` of one child means nothing for the others, and an abort must
        // not leave the children different.
        const ownFlags = { ...flags, placed: undefined, signal: undefined };
        return all((child) => child.writev!(offset, iov, ownFlags));
      },
      writeZeroes: (offset, length, flags) =>
        all((child) =>
          writeZeroes(child, offset, length, { ...flags, signal: undefined })
        ),
    }, { writeZeroes: "writev" }),
  };
}

/** Wait for all; a minimum number must succeed. */
async function enough(
  requests: readonly Promise<void>[],
  threshold: number,
): Promise<void> {
  const outcomes = await Promise.allSettled(requests);
  const failures = outcomes.filter((outcome) => outcome.status === "rejected");
  if (outcomes.length - failures.length >= threshold) return;
  throw mostCommon(failures.map(({ reason }) => asBlockError(reason)));
}

/** The most frequent error. */
function mostCommon(errors: readonly BlockError[]): BlockError {
  const votes = (error: BlockError) =>
    errors.filter(({ code }) => code === error.code).length;
  return errors.reduce((most, error) =>
    votes(error) > votes(most) ? error : most
  );
}

async function readFirst(
  children: readonly BlockNode[],
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  for (const [index, child] of children.entries()) {
    try {
      return await child.readv(offset, iov, flags);
    } catch (error) {
      checkSignal(flags?.signal);
      if (index === children.length - 1) throw error;
    }
  }
}

/**
 * Read all children, and take the majority's data if it reaches the threshold.
 */
async function readVoted(
  children: readonly BlockNode[],
  { threshold, rewrites }: Rules,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  const length = vectorLength(iov);
  const versions: { bytes: Uint8Array; by: BlockNode[] }[] = [];
  await enough(
    children.map(async (child) => {
      const bytes = allocate(length);
      await child.readv(offset, [bytes], flags);
      const same = versions.find((version) => isEqual(version.bytes, bytes));
      if (same) same.by.push(child);
      else versions.push({ bytes, by: [child] });
    }),
    threshold,
  );
  versions.sort((a, b) => b.by.length - a.by.length);
  const [winner, ...others] = versions;
  if (winner.by.length < threshold) throw new BlockError("EIO");
  copyIntoVector(iov, 0, winner.bytes);
  if (!rewrites) return;
  for (const child of others.flatMap(({ by }) => by)) {
    // A failed repair is no reason to fail the read.
    await child.writev?.(offset, [winner.bytes]).catch(() => {});
  }
}

/** An extent is zero if all children report zero. */
async function jointStatus(
  children: readonly BlockNode[],
  offset: number,
  length: number,
  flags?: RequestFlags,
): Promise<Extent> {
  let zeroes = length;
  let data = 0;
  for (const child of children) {
    const extent = await chainStatus(child, offset, length, flags);
    if (extent.zero) zeroes = Math.min(zeroes, extent.length);
    else data = Math.max(data, extent.length);
  }
  return data > 0
    ? { length: data, allocated: true, zero: false }
    : { length: zeroes, allocated: true, zero: true };
}
