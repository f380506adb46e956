/**
 * Probing: what format an image has, as far as its bytes tell.
 *
 * @module
 */
import { allocate } from "./bytes.ts";
import type { BlockDriver } from "./driver.ts";
import { BlockError } from "./errors.ts";
import {
  formatOfTail,
  formatsOfHead,
  hasVhdFooter,
  HEAD_LENGTH,
  type ImageFormat,
  TAIL_LENGTH,
  wrappingOf,
} from "./formats.ts";
import type { BlockNode } from "./node.ts";
import { findDriver, listDrivers } from "./registry.ts";
import { readPadded } from "./requests.ts";

/** What probing looks at. */
export interface Sample {
  /** How the file begins: {@linkcode HEAD_LENGTH} bytes, zeroes past its end. */
  readonly head: Uint8Array;
  /** How it ends: {@linkcode TAIL_LENGTH} bytes; all of a shorter file. */
  readonly tail: Uint8Array;
  /** Bytes of the whole file. */
  readonly size: number;
}

/** The head and the tail of a file that has, or will have, `size` bytes. */
export async function takeSample(
  file: BlockNode,
  size: number = file.size,
): Promise<Sample> {
  const [head, tail] = [await readHead(file, size), await readTail(file, size)];
  return { head, tail, size };
}

async function readHead(file: BlockNode, size: number): Promise<Uint8Array> {
  const head = allocate(HEAD_LENGTH);
  await readPadded(file, 0, [head.subarray(0, Math.min(HEAD_LENGTH, size))]);
  return head;
}

async function readTail(file: BlockNode, size: number): Promise<Uint8Array> {
  const tail = allocate(Math.min(TAIL_LENGTH, size));
  await readPadded(file, size - tail.length, [tail]);
  return tail;
}

/** What the bytes of an image tell of its format. */
export interface Guess {
  /** The formats that it may have: one, unless they contradict each other. */
  readonly formats: readonly ImageFormat[];
  /** Whether it is a raw disk with the footer of a VHD behind it. */
  readonly hasVhdFooter: boolean;
}

/** Every image could be raw: what nobody claims is. */
const RAW: ImageFormat = { name: "raw" };

/** How sure a magic is, of 100; a driver may know less, by a name perhaps. */
const SURE = 100;

/** Look at a file: what it tells, and how it begins. */
export async function probe(
  file: BlockNode,
): Promise<{ guess: Guess; head: Uint8Array }> {
  const { filename, size } = file;
  const head = await readHead(file, size);
  const guess = guessFormat({ head, tail: allocate(0), size }, filename);
  if (guess.formats[0] !== RAW) return { guess, head };
  // A disk whose last sector cannot be read is still a disk.
  const tail = await readTail(file, size).catch(() => allocate(0));
  return { guess: guessFormat({ head, tail, size }, filename), head };
}

/**
 * The formats of which a registered driver, or the magics of the field, are
 * surest. A file without any content is raw.
 */
export function guessFormat(sample: Sample, filename: string): Guess {
  const { head, tail, size } = sample;
  const formats = size === 0 ? [] : surest(head, filename);
  if (formats.length > 0) return { formats, hasVhdFooter: false };
  const footed = formatOfTail(tail, size);
  if (footed) return { formats: [footed], hasVhdFooter: false };
  return { formats: [RAW], hasVhdFooter: hasVhdFooter(tail, size) };
}

/** What is known by the head; other formats than raw. */
function surest(head: Uint8Array, filename: string): ImageFormat[] {
  const known = new Map<string, [score: number, format: ImageFormat]>();
  for (const { name, probe } of listDrivers()) {
    const score = probe?.(head, filename) ?? 0;
    if (name !== RAW.name && score > 0) known.set(name, [score, { name }]);
  }
  for (const format of formatsOfHead(head)) {
    known.set(format.name, [SURE, format]);
  }
  const best = Math.max(...[...known.values()].map(([score]) => score));
  return [...known.values()].filter(([score]) => score === best)
    .map(([, format]) => format);
}

/**
 * The one format that an image has.
 *
 * @throws {BlockError} EINVAL if it looks like several.
 */
export function onlyFormat({ formats }: Guess, filename: string): ImageFormat {
  const [format, ...others] = formats;
  if (others.length === 0) return format;
  const names = formats.map(({ name }) => `'${name}'`).join(" and ");
  throw new BlockError(
    "EINVAL",
    `${cannotOpen(filename)}it looks like an image of the formats ${names} ` +
      "at once",
    { hint: "Say which one it has (-f)." },
  );
}

/**
 * A format that is known, but has no driver: ENOTSUP. Its bytes are not those
 * of a disk, so it is not taken for raw.
 */
export class UnsupportedFormatError extends BlockError {
  /** The name of the format's driver in QEMU. */
  readonly format: string;

  /** The error for an image. */
  constructor(format: ImageFormat, filename: string) {
    super(
      "ENOTSUP",
      `${cannotOpen(filename)}it ${withoutDriver(format)}`,
      {
        hint: "To have its bytes taken as they are, say that it is raw " +
          "(-f raw).",
      },
    );
    this.format = format.name;
  }
}

/** What is said of an image. */
export function withoutDriver({ name, title }: ImageFormat): string {
  const called = title ? `'${name}' (${title})` : `'${name}'`;
  return `has the format ${called}, for which there is no driver`;
}

function cannotOpen(filename: string): string {
  return filename === "" ? "" : `Could not open '${filename}': `;
}

/**
 * The driver of a format.
 *
 * @throws {UnsupportedFormatError} if there is none.
 */
export function driverOf(format: ImageFormat, filename: string): BlockDriver {
  const driver = findDriver(format.name);
  if (!driver) throw new UnsupportedFormatError(format, filename);
  return driver;
}

/** What the user should know of an image that is taken for raw. */
export function doubtsOfRaw(
  head: Uint8Array,
  guess: Guess,
  filename: string,
): string | undefined {
  if (guess.hasVhdFooter) {
    return `'${filename}' ends like a VHD of fixed size; it is taken for raw, ` +
      "and its footer for the last sector of the disk";
  }
  const wrapping = wrappingOf(head);
  return wrapping &&
    `'${filename}' is ${wrapping}; it is taken for raw as it is, and may have ` +
      "to be unpacked first";
}
