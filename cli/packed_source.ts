/**
 * Compressed files without random access as sources of `convert`.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { asBlockError } from "../core/errors.ts";
import {
  HEAD_LENGTH,
  unpackingCommand,
  type Wrapping,
  wrappingOf,
} from "../core/formats.ts";
import type { BlockNode } from "../core/node.ts";
import { openProtocol } from "../core/open.ts";
import type { OptionValues } from "../core/options.ts";
import { findDriver, loadDriver } from "../core/registry.ts";
import { readPadded } from "../core/requests.ts";
import { toStack, withFile } from "../core/sources.ts";
import { parseStack, type Source, type StackObject } from "../core/spec.ts";
import type { ConvertSettings } from "./convert_options.ts";
import { reporting } from "./images.ts";
import { CommandError, type Program } from "./program.ts";
import { checkedRaw } from "./standard_streams.ts";

/** A packed file that contains a raw disk. */
export interface Packed {
  /** The file; closed by the caller. */
  readonly file: BlockNode;
  /** The bytes of the disk. */
  content(): AsyncGenerator<Uint8Array, void>;
}

/**
 * The packed file that an argument names; `undefined` if it is not packed, or
 * offers random access.
 */
export async function findPacked(
  program: Program,
  text: string,
  { image: { format, imageOpts } }: ConvertSettings,
): Promise<Packed | undefined> {
  const source = imageOpts ? parseStack(text) : text;
  const found = await containerOf(program, source, format);
  if (!found) return undefined;
  const { driver, options, isRaw } = found;
  const { file: below, ...others } = options;
  const file = await openProtocol(below as Source, {
    readOnly: true,
    ...reporting(program),
  });
  return {
    file,
    async *content() {
      const warn = (message: string) => program.warn(`'${text}': ${message}`);
      const chunks = inside(driver.unpack!(others, file, warn), text);
      if (isRaw) return yield* chunks;
      const doubts = yield* checkedRaw(
        chunks,
        text,
        (format, wrapping) => notRaw(text, driver.name, format, wrapping),
      );
      if (doubts) program.warn(doubts);
    },
  };
}

/** A driver that unpacks a file, and its options. */
interface Container {
  readonly driver: BlockDriver;
  readonly options: OptionValues;
  /** Whether the user states that it contains a raw disk. */
  readonly isRaw: boolean;
}

async function containerOf(
  program: Program,
  source: Source,
  format: string | undefined,
): Promise<Container | undefined> {
  let stack: StackObject = toStack(source);
  let name = format ?? stack.driver;
  const isRaw = name === "raw" && format === undefined;
  if (isRaw) {
    // Only the file of a raw disk, without further options.
    if (Object.keys(stack).some((key) => key !== "driver" && key !== "file")) {
      return undefined;
    }
    stack = toStack(stack.file as Source);
    name = stack.driver;
  } else if (name === undefined && program.isOurs) {
    name = await wrappingDriver(program, source);
    if (typeof source === "string" || stack.file !== undefined) {
      stack = { file: stack.file ?? stack };
    }
  }
  const found = typeof name === "string" ? findDriver(name) : undefined;
  if (!found?.isContainer) return undefined;
  const driver = await loadDriver(found);
  if (!driver.unpack) return undefined;
  const { driver: _, ...options } = withFile(driver, stack);
  return options.file === undefined ? undefined : { driver, options, isRaw };
}

/**
 * The driver for a packed file, by its beginning; `undefined` if it is not one,
 * or cannot be opened.
 */
async function wrappingDriver(
  program: Program,
  source: Source,
): Promise<string | undefined> {
  let file: BlockNode;
  try {
    file = await openProtocol(source, {
      readOnly: true,
      ...reporting(program),
    });
  } catch {
    // Opening it as an image has failed before, and said why.
    return undefined;
  }
  try {
    const head = new Uint8Array(HEAD_LENGTH);
    await readPadded(file, 0, [head.subarray(0, file.size)]);
    return wrappingOf(head)?.driver;
  } finally {
    await file.close();
  }
}

/** Adds the file's name to errors of its content. */
async function* inside(
  chunks: AsyncIterable<Uint8Array>,
  name: string,
): AsyncGenerator<Uint8Array, void> {
  try {
    yield* chunks;
  } catch (error) {
    throw asBlockError(error).prefixed(`Could not unpack '${name}': `);
  }
}

/** The error for packed content other than a raw disk. */
function notRaw(
  name: string,
  driver: string,
  format: string,
  wrapping: Wrapping | undefined,
): Error | undefined {
  if (format === "raw" && !wrapping) return undefined;
  const what = wrapping?.what ?? `an image of format '${format}'`;
  return new CommandError(
    `In '${name}' there is ${
      what.replace(/^(?=compressed)/, "a file ")
    }; only ` +
      "a raw disk can be copied while it is unpacked",
    {
      hint:
        `Unpack it first (${
          unpackingCommand(driver)
        }); packed by 'xz -T0' or ` +
        "bgzip, an image of any format can be read.",
    },
  );
}
