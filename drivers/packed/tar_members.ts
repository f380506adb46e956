/**
 * The members of a tar archive: ustar (POSIX 1003.1), its pax extensions, and
 * GNU tar's (long names, sizes in base 256).
 *
 * Nothing is unpacked under a member's name, so names may contain anything.
 *
 * @module
 */
import { roundUp } from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { shortened } from "../../core/values.ts";
import { bytesAt } from "./reading.ts";
import type { Window } from "./window.ts";

/** Bytes of a header; members are padded to multiples of them. */
export const BLOCK = 512;

/** Most members: an archive with more is not an appliance. */
const MAX_MEMBERS = 100_000;

/** Most bytes of a long name, or of an extended header. */
const MAX_EXTRA = 1024 * 1024;

/** A file in an archive. */
export interface TarMember extends Window {
  readonly name: string;
  /** Whether holes are left out. */
  readonly isSparse: boolean;
  /** Whether the archive ends within its data. */
  readonly isCut: boolean;
}

/** Attributes from extended headers before a member's own. */
interface Extra {
  name?: string;
  size?: number;
  isSparse?: boolean;
}

/** Types of members without data, whatever size they state. */
const WITHOUT_DATA = "123456V";
/** Types of regular files; a slash at the end of a name marks a folder. */
const REGULAR = "0\0" + "7S";

/**
 * The regular files of an archive, in order.
 *
 * @throws {BlockError} EINVAL if it is not an archive, or damaged.
 */
export async function tarMembers(file: BlockNode): Promise<TarMember[]> {
  const members: TarMember[] = [];
  const whole: Extra = {};
  let extra: Extra = {};
  let count = 0;
  for (let at = 0; at + BLOCK <= file.size;) {
    const block = await bytesAt(file, at, BLOCK);
    if (block.every((byte) => byte === 0)) break;
    const header = parseHeader(block, at);
    if (++count > MAX_MEMBERS) {
      throw new BlockError(
        "EFBIG",
        `The archive has more than ${MAX_MEMBERS} members`,
      );
    }
    const start = at + BLOCK;
    const { type } = header;
    if ("LKxgX".includes(type)) {
      const isCut = start + header.size > file.size;
      if (header.size > MAX_EXTRA || isCut) {
        throw invalid(`The extended header at byte ${at} is too long`);
      }
      const bytes = await bytesAt(file, start, header.size);
      if (type === "L") extra.name = textOf(bytes);
      else if (type === "g") Object.assign(whole, parsePax(bytes, at));
      else if (type !== "K") Object.assign(extra, parsePax(bytes, at));
      at = start + roundUp(header.size, BLOCK);
      continue;
    }
    const { name, size, isSparse = false } = { ...header, ...whole, ...extra };
    const stored = WITHOUT_DATA.includes(type) ? 0 : size;
    const isCut = start + stored > file.size;
    if (REGULAR.includes(type) && !name.endsWith("/")) {
      members.push({
        name: name.replace(/^(\.\/+)+/, ""),
        start,
        size: stored,
        isSparse: isSparse || type === "S",
        isCut,
      });
    }
    extra = {};
    if (isCut) break;
    at = start + roundUp(stored, BLOCK);
    // In GNU's old sparse format, blocks with more of the map may follow.
    if (header.hasMoreMap) at = await afterSparseMap(file, start, stored);
  }
  if (count === 0) throw invalid("It is not a tar archive");
  return members;
}

interface Header {
  readonly name: string;
  readonly size: number;
  readonly type: string;
  /** Whether blocks of a sparse map follow. */
  readonly hasMoreMap: boolean;
}

/** Offsets of the fields of a header. */
const FIELD = {
  name: [0, 100],
  size: [124, 12],
  checksum: [148, 8],
  type: 156,
  magic: 257,
  isExtended: 482,
  prefix: [345, 155],
} as const;

function parseHeader(block: Uint8Array, at: number): Header {
  const field = ([start, length]: readonly [number, number]) =>
    block.subarray(start, start + length);
  const stated = parseNumber(field(FIELD.checksum), at, "checksum");
  if (!checksums(block).includes(stated)) {
    throw invalid(
      at === 0
        ? "It is not a tar archive, or its first header is damaged"
        : `The tar header at byte ${at} has a wrong checksum`,
    );
  }
  const type = String.fromCharCode(block[FIELD.type]);
  // GNU's magic ends in a space, and its prefix field has other uses.
  const isPosix = textOf(block.subarray(FIELD.magic, FIELD.magic + 6)) ===
      "ustar" && block[FIELD.magic + 5] === 0;
  const prefix = isPosix ? textOf(field(FIELD.prefix)) : "";
  const name = textOf(field(FIELD.name));
  return {
    type,
    name: prefix ? `${prefix}/${name}` : name,
    size: parseNumber(field(FIELD.size), at, "size"),
    hasMoreMap: type === "S" && block[FIELD.isExtended] === 1,
  };
}

/** Both sums: old programs added up signed bytes. */
function checksums(block: Uint8Array): number[] {
  let [unsigned, signed] = [0, 0];
  const [start, length] = FIELD.checksum;
  for (let i = 0; i < BLOCK; i++) {
    const byte = i >= start && i < start + length ? 32 : block[i];
    unsigned += byte;
    signed += byte > 127 ? byte - 256 : byte;
  }
  return [unsigned, signed];
}

/** A number in octal, or in base 256 if its highest bit is set. */
function parseNumber(bytes: Uint8Array, at: number, what: string): number {
  const refuse = () => invalid(`The tar header at byte ${at} has no ${what}`);
  let value = 0;
  if (bytes[0] === 0x80) {
    for (const byte of bytes.subarray(1)) value = value * 256 + byte;
  } else {
    const digits = textOf(bytes).trim();
    if (!/^[0-7]*$/.test(digits)) throw refuse();
    value = digits === "" ? 0 : parseInt(digits, 8);
  }
  if (!Number.isSafeInteger(value)) throw refuse();
  return value;
}

/** The records `LENGTH KEY=VALUE` of an extended header. */
function parsePax(bytes: Uint8Array, at: number): Extra {
  const extra: Extra = {};
  const refuse = () => invalid(`The extended header at byte ${at} is damaged`);
  for (let done = 0; done < bytes.length && bytes[done] !== 0;) {
    const space = bytes.indexOf(0x20, done);
    const digits = space < 0 ? "" : textOf(bytes.subarray(done, space));
    const length = /^\d{1,7}$/.test(digits) ? Number(digits) : 0;
    if (length <= digits.length + 1 || done + length > bytes.length) {
      throw refuse();
    }
    const record = bytes.subarray(space + 1, done + length - 1);
    const equals = record.indexOf(0x3d);
    if (equals < 0 || bytes[done + length - 1] !== 0x0a) throw refuse();
    const key = textOf(record.subarray(0, equals));
    const value = new TextDecoder().decode(record.subarray(equals + 1));
    if (key === "path") extra.name ??= value;
    // The real name of a sparse member, whose own name is generated.
    else if (key === "GNU.sparse.name") extra.name = value;
    else if (key === "size") {
      if (!/^\d{1,16}$/.test(value)) throw refuse();
      extra.size = Number(value);
      if (!Number.isSafeInteger(extra.size)) throw refuse();
    }
    if (key.startsWith("GNU.sparse.")) extra.isSparse = true;
    done += length;
  }
  return extra;
}

/**
 * The offset of the next header, after the blocks of a sparse map and the data.
 */
async function afterSparseMap(
  file: BlockNode,
  start: number,
  stored: number,
): Promise<number> {
  for (let at = start; at + BLOCK <= file.size; at += BLOCK) {
    const block = await bytesAt(file, at, BLOCK);
    if (block[504] !== 1) return at + BLOCK + roundUp(stored, BLOCK);
  }
  return file.size;
}

/** The bytes up to the first zero, as text. */
function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/**
 * Refuse a member whose bytes are not complete and contiguous.
 *
 * @throws {BlockError} ENOTSUP or EINVAL
 */
export function checkWhole({ name, isSparse, isCut }: TarMember): void {
  const called = `The member '${shortened(name, 255)}'`;
  if (isSparse) {
    throw new BlockError(
      "ENOTSUP",
      `${called} is stored sparse, in parts, and cannot be used in its archive`,
      { hint: "Unpack it first, with tar -x." },
    );
  }
  if (isCut) throw invalid(`${called} is cut off: the archive ends within it`);
}
