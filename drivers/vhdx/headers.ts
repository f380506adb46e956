/**
 * The two headers of a VHDX image: the valid one with the higher sequence
 * number is current. Changes go to the other one, so that one of them is always
 * valid. (Microsoft's "[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format", as
 * for all parts of this driver.)
 *
 * @module
 */
import { allocate, isPowerOfTwo, viewOf } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { hasChecksum, putChecksum } from "./crc32c.ts";
import { fault } from "./faults.ts";
import { guidAt, newGuid, NO_GUID, putGuid } from "./guid.ts";

/** Alignment of regions and blocks, and the end of the headers. */
export const MIB = 1024 * 1024;
/** Bytes of a header. */
export const HEADER_SIZE = 4096;
/** Offsets of the headers. */
const PLACES = [64 * 1024, 128 * 1024] as const;

const SIGNATURE = "vhdxfile";
const HEADER_SIGNATURE = 0x64616568; // "head"

const AT = {
  checksum: 4,
  sequence: 8,
  fileWriteGuid: 16,
  dataWriteGuid: 32,
  logGuid: 48,
  logVersion: 64,
  version: 66,
  logLength: 68,
  logOffset: 72,
} as const;

/** The content of a header. */
export interface Header {
  readonly sequence: bigint;
  /** Changes with the content of the disk, so that overlays detect that. */
  readonly dataWriteGuid: string;
  /** The GUID of the log entries to replay; `NO_GUID` for none. */
  readonly logGuid: string;
  /** Bytes of the log. */
  readonly logLength: number;
  /** Its offset in the file. */
  readonly logOffset: number;
  /** The raw header. */
  readonly bytes: Uint8Array;
}

/** The fields of a header that change. */
export interface HeaderChanges {
  fileWriteGuid?: string;
  dataWriteGuid?: string;
  logGuid?: string;
}

/** The headers of an image. */
export class Headers {
  #file: BlockNode;
  #current: Header;
  /** The index of the current header. */
  #place: number;

  private constructor(file: BlockNode, current: Header, place: number) {
    this.#file = file;
    this.#current = current;
    this.#place = place;
  }

  /**
   * Read both headers.
   *
   * @throws {BlockError} EINVAL if it is not a VHDX image, or no header is
   * valid.
   */
  static async read(file: BlockNode): Promise<Headers> {
    const signature = allocate(8);
    const [first, second] = await Promise.all([
      readHeader(file, PLACES[0]),
      readHeader(file, PLACES[1]),
      readPadded(file, 0, [signature]),
    ]);
    if (String.fromCharCode(...signature) !== SIGNATURE) {
      throw fault(file.filename, "EINVAL", "it is no VHDX image");
    }
    const place = currentOf(first, second);
    if (place === undefined) {
      throw new BlockError("EINVAL", "No valid VHDX header found");
    }
    const current = [first, second][place]!;
    checkLog(file, current);
    return new Headers(file, current, place);
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** The current header. */
  get current(): Header {
    return this.#current;
  }

  /**
   * Write a new header over the one that is not current. The current one must
   * be durable, and so must the next write before another change.
   */
  async change(changes: HeaderChanges): Promise<void> {
    const bytes = this.#current.bytes.slice();
    const sequence = this.#current.sequence + 1n;
    viewOf(bytes).setBigUint64(AT.sequence, sequence, true);
    for (const [name, guid] of Object.entries(changes)) {
      putGuid(bytes, AT[name as keyof HeaderChanges], guid);
    }
    putChecksum(bytes, AT.checksum);
    const place = 1 - this.#place;
    await this.#file.writev!(PLACES[place], [bytes]);
    this.#current = decoded(bytes);
    this.#place = place;
  }
}

async function readHeader(
  file: BlockNode,
  offset: number,
): Promise<Header | undefined> {
  const bytes = allocate(HEADER_SIZE);
  await readPadded(file, offset, [bytes]);
  const view = viewOf(bytes);
  const isHeader = view.getUint32(0, true) === HEADER_SIGNATURE &&
    view.getUint16(AT.version, true) === 1 && hasChecksum(bytes, AT.checksum);
  return isHeader ? decoded(bytes) : undefined;
}

function decoded(bytes: Uint8Array): Header {
  const view = viewOf(bytes);
  return {
    sequence: view.getBigUint64(AT.sequence, true),
    dataWriteGuid: guidAt(bytes, AT.dataWriteGuid),
    logGuid: guidAt(bytes, AT.logGuid),
    logLength: view.getUint32(AT.logLength, true),
    logOffset: Number(view.getBigUint64(AT.logOffset, true)),
    bytes,
  };
}

/**
 * The index of the current header; if both are equally new, they must be equal.
 */
function currentOf(
  first: Header | undefined,
  second: Header | undefined,
): 0 | 1 | undefined {
  if (!first || !second) return first ? 0 : second ? 1 : undefined;
  if (first.sequence > second.sequence) return 0;
  if (first.sequence < second.sequence) return 1;
  return first.bytes.every((byte, i) => byte === second.bytes[i])
    ? 0
    : undefined;
}

function checkLog(file: BlockNode, header: Header): void {
  const { logOffset, logLength, bytes } = header;
  const refuse = (reason: string) => fault(file.filename, "EINVAL", reason);
  const isPlace = logOffset >= MIB && logOffset % MIB === 0 &&
    Number.isSafeInteger(logOffset + logLength);
  if (!isPlace) {
    throw refuse(`its log begins at ${logOffset}`);
  }
  if (logLength === 0 || logLength % MIB !== 0) {
    throw refuse(`its log has ${logLength} bytes`);
  }
  if (viewOf(bytes).getUint16(AT.logVersion, true) !== 0) {
    throw refuse("the version of its log is not known");
  }
}

/** Write the beginning of a new image: its signature and both headers. */
export async function writeNewHeaders(
  file: BlockNode,
  log: { offset: number; length: number },
): Promise<void> {
  const identifier = allocate(HEADER_SIZE);
  const text = (at: number, text: string, step: number) => {
    for (let i = 0; i < text.length; i++) {
      identifier[at + step * i] = text.charCodeAt(i);
    }
  };
  text(0, SIGNATURE, 1);
  text(8, "bdrv", 2);
  await file.writev!(0, [identifier]);
  const bytes = allocate(HEADER_SIZE);
  const view = viewOf(bytes);
  view.setUint32(0, HEADER_SIGNATURE, true);
  putGuid(bytes, AT.fileWriteGuid, newGuid());
  putGuid(bytes, AT.dataWriteGuid, newGuid());
  putGuid(bytes, AT.logGuid, NO_GUID);
  view.setUint16(AT.version, 1, true);
  view.setUint32(AT.logLength, log.length, true);
  view.setBigUint64(AT.logOffset, BigInt(log.offset), true);
  for (const [i, place] of PLACES.entries()) {
    view.setBigUint64(AT.sequence, BigInt(i + 1), true);
    putChecksum(bytes, AT.checksum);
    await file.writev!(place, [bytes.slice()]);
  }
}

/** Whether a block may have this many bytes. */
export function isBlockSize(bytes: number): boolean {
  return isPowerOfTwo(bytes) && bytes >= MIB && bytes <= MAX_BLOCK_SIZE;
}

/** Bytes of the largest block. */
export const MAX_BLOCK_SIZE = 256 * MIB;
