/**
 * Probing: finding the format of an image from its content.
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

/** The parts of a file that probing looks at. */
export interface Sample {
  /** The first {@linkcode HEAD_LENGTH} bytes, with zeroes past the end. */
  readonly head: Uint8Array;
  /** The last {@linkcode TAIL_LENGTH} bytes, or all of a shorter file. */
  readonly tail: Uint8Array;
  /** The size of the file, in bytes. */
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

/** The result of probing. */
export interface Guess {
  /** The possible formats: one, unless the magics contradict each other. */
  readonly formats: readonly ImageFormat[];
  /** Whether it is a raw disk followed by the footer of a VHD. */
  readonly hasVhdFooter: boolean;
}

/** The format of everything that no driver claims. */
const RAW: ImageFormat = { name: "raw" };

/** The score of a magic, out of 100; drivers that go by the name score less. */
const SURE = 100;

/** Probe a file; returns the guess and the sample. */
export async function probe(
  file: BlockNode,
): Promise<{ guess: Guess; head: Uint8Array }> {
  const { filename, size } = file;
  const head = await readHead(file, size);
  const guess = guessFormat({ head, tail: allocate(0), size }, filename);
  if (guess.formats[0] !== RAW) return { guess, head };
  // A disk may be usable even if its last sector cannot be read.
  const tail = await readTail(file, size).catch(() => allocate(0));
  return { guess: guessFormat({ head, tail, size }, filename), head };
}

/**
 * The formats with the highest score, of registered drivers and known magics.
 * An empty file is raw.
 */
export function guessFormat(sample: Sample, filename: string): Guess {
  const { head, tail, size } = sample;
  const formats = size === 0 ? [] : surest(head, filename);
  if (formats.length > 0) return { formats, hasVhdFooter: false };
  const footed = formatOfTail(tail, size);
  if (footed) return { formats: [footed], hasVhdFooter: false };
  return { formats: [RAW], hasVhdFooter: hasVhdFooter(tail, size) };
}

/** The formats found by the head, other than raw. */
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
 * The format of an image, if it is unambiguous.
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
 * A known format without a driver: ENOTSUP. Its bytes are not a disk's, so it
 * is not taken for raw.
 */
export class UnsupportedFormatError extends BlockError {
  /** The name of the format's driver in QEMU. */
  readonly format: string;

  /** Create the error for an image. */
  constructor(format: ImageFormat, filename: string) {
    super(
      "ENOTSUP",
      `${cannotOpen(filename)}it ${noDriverText(format)}`,
      {
        hint: "To have its bytes taken as they are, say that it is raw " +
          "(-f raw).",
      },
    );
    this.format = format.name;
  }
}

/** The message about an image, without its name. */
export function noDriverText({ name, title }: ImageFormat): string {
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

/** The warning about an image that is taken for raw. */
export function doubtsOfRaw(
  head: Uint8Array,
  guess: Guess,
  filename: string,
): string | undefined {
  if (guess.hasVhdFooter) {
    return `'${filename}' ends like a VHD of fixed size; it is taken for raw, ` +
      "and its footer for the last sector of the disk";
  }
  const wrapping = wrappingOf(head)?.what;
  return wrapping &&
    `'${filename}' is ${wrapping}; it is taken for raw as it is, and may have ` +
      "to be unpacked first";
}
