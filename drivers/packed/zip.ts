/**
 * The driver `zip` (PKWARE's APPNOTE 6.3): an image in an archive. A stored
 * member is used in place; a compressed one can be unpacked front to back.
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { shortened } from "../../core/values.ts";
import { crc32 } from "./crc32.ts";
import { unpackedByRuntime } from "./gzip.ts";
import { damaged, inflater, xzUnpacker, zstdUnpacker } from "./native.ts";
import { bytesOf, cannotSeek, unpacked } from "./sequence.ts";
import { bytesAt } from "./reading.ts";
import {
  checkReadOnly,
  chooseMember,
  type Window,
  windowNode,
} from "./window.ts";

const OPEN_OPTIONS: OptionTable = {
  member: { type: "string", help: "The member that holds the image" },
};

/** A member of a zip archive. */
interface Member {
  readonly name: string;
  readonly isEncrypted: boolean;
  readonly method: number;
  readonly sum: number;
  /** Bytes in the archive. */
  readonly stored: number;
  /** Bytes, unpacked. */
  readonly size: number;
  /** Offset of its own header. */
  readonly headerAt: number;
}

/** Compression methods. */
const [STORED, DEFLATED, ZSTD, XZ] = [0, 8, 93, 95];

/** Most bytes of the directory, and most members. */
const [MAX_DIRECTORY, MAX_MEMBERS] = [64 * 1024 * 1024, 100_000];

/** A member of a zip archive as a child: its bytes, read-only. */
export const zipDriver: BlockDriver = {
  name: "zip",
  role: "format",
  isContainer: true,
  openOptions: OPEN_OPTIONS,
  strongOptions: ["member"],

  async open(options, context) {
    checkReadOnly(context, "An archive");
    const file = await context.openChild("file");
    const member = await memberOf(options, file);
    if (member.method !== STORED) {
      const name = shortened(member.name, 255);
      throw cannotSeek(`The compressed member '${name}'`, "unzip");
    }
    return windowNode(zipDriver, file, await placeOf(file, member));
  },

  async *unpack(options, file) {
    const member = await memberOf(options, file);
    let [size, sum] = [0, 0];
    for await (const bytes of contentOf(file, member)) {
      size += bytes.length;
      // A member larger than stated is damaged.
      if (size > member.size) throw damaged("zip");
      sum = crc32(bytes, sum);
      yield bytes;
    }
    if (size !== member.size || sum !== member.sum) throw damaged("zip");
  },
};

async function* contentOf(
  file: BlockNode,
  member: Member,
): AsyncGenerator<Uint8Array> {
  const place = await placeOf(file, member);
  switch (member.method) {
    case STORED:
      return yield* bytesOf(file, place);
    case ZSTD:
      return yield* unpacked(file, place, zstdUnpacker());
    case XZ:
      return yield* unpacked(file, place, xzUnpacker());
  }
  const unpacker = inflater("deflate");
  if (unpacker) return yield* unpacked(file, place, unpacker);
  yield* unpackedByRuntime("deflate-raw", bytesOf(file, place));
}

async function memberOf(
  options: OptionValues,
  file: BlockNode,
): Promise<Member> {
  const { member: wanted } = parseOptions(OPEN_OPTIONS, options, ["file"]);
  const members = await readDirectory(file);
  const member = chooseMember(members, wanted as string | undefined);
  const called = `The member '${shortened(member.name, 255)}'`;
  if (member.isEncrypted) {
    throw new BlockError("ENOTSUP", `${called} is encrypted`);
  }
  if (![STORED, DEFLATED, ZSTD, XZ].includes(member.method)) {
    throw new BlockError(
      "ENOTSUP",
      `${called} is compressed with method ${member.method}, which is unknown`,
      { hint: "Unpack it first." },
    );
  }
  return member;
}

/** The range of a member's data. */
async function placeOf(file: BlockNode, member: Member): Promise<Window> {
  const { headerAt, stored, method, size } = member;
  const header = viewOf(await bytesAt(file, headerAt, 30));
  const start = headerAt + 30 + header.getUint16(26, true) +
    header.getUint16(28, true);
  const isWhole = header.getUint32(0, true) === 0x04034b50 &&
    start + stored <= file.size && (method !== STORED || stored === size);
  if (!isWhole) throw damaged("zip");
  return { start, size: stored };
}

/** Bytes of the record at the end, and of the comment that may follow it. */
const [END, MAX_COMMENT] = [22, 65535];

interface Directory {
  readonly start: number;
  readonly length: number;
  readonly count: number;
  /** The origin of all offsets: a program may precede the archive. */
  readonly base: number;
}

async function findDirectory(file: BlockNode): Promise<Directory> {
  const { size } = file;
  const length = Math.min(size, END + MAX_COMMENT);
  const tail = await bytesAt(file, size - length, length);
  const view = viewOf(tail);
  let at = length - END;
  while (
    at >= 0 && !(view.getUint32(at, true) === 0x06054b50 &&
      at + END + view.getUint16(at + 20, true) <= length)
  ) at--;
  if (at < 0) throw invalid("It is not a zip archive, or is cut off");
  const part = view.getUint16(at + 4, true);
  if (part !== 0 && part !== 0xffff) {
    throw new BlockError("ENOTSUP", "The zip archive is split into files", {
      hint: "Join them first (zip -s 0 split.zip --out whole.zip).",
    });
  }
  let count = view.getUint16(at + 10, true);
  let bytes = view.getUint32(at + 12, true);
  let offset = view.getUint32(at + 16, true);
  let end = size - length + at;
  const locator = at - 20;
  if (locator >= 0 && view.getUint32(locator, true) === 0x07064b50) {
    const place = exact64(view, locator + 8);
    const record = viewOf(await bytesAt(file, place, 56));
    if (place > end || record.getUint32(0, true) !== 0x06064b50) {
      throw damaged("zip");
    }
    count = exact64(record, 32);
    bytes = exact64(record, 40);
    offset = exact64(record, 48);
    end = place;
  }
  const start = end - bytes;
  if (bytes > MAX_DIRECTORY || count > MAX_MEMBERS) {
    throw new BlockError("EFBIG", "The zip archive has too many members");
  }
  if (start < 0 || offset > start) throw damaged("zip");
  return { start, length: bytes, count, base: start - offset };
}

/** The files in an archive, without folders. */
async function readDirectory(file: BlockNode): Promise<Member[]> {
  const { start, length, count, base } = await findDirectory(file);
  const bytes = await bytesAt(file, start, length);
  const view = viewOf(bytes);
  const members: Member[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > length || view.getUint32(at, true) !== 0x02014b50) {
      throw damaged("zip");
    }
    const flags = view.getUint16(at + 8, true);
    const nameLength = view.getUint16(at + 28, true);
    const extraLength = view.getUint16(at + 30, true);
    const nameAt = at + 46;
    const extraAt = nameAt + nameLength;
    const next = extraAt + extraLength + view.getUint16(at + 32, true);
    if (next > length) throw damaged("zip");
    const name = new TextDecoder(flags & 0x800 ? "utf-8" : "latin1")
      .decode(bytes.subarray(nameAt, extraAt));
    const [size, stored, headerAt] = sizesOf(
      [24, 20, 42].map((place) => view.getUint32(at + place, true)),
      bytes.subarray(extraAt, extraAt + extraLength),
    );
    if (!name.endsWith("/")) {
      members.push({
        name,
        isEncrypted: (flags & 1) !== 0,
        method: view.getUint16(at + 10, true),
        sum: view.getUint32(at + 16, true),
        stored,
        size,
        headerAt: headerAt + base,
      });
    }
    at = next;
  }
  return members;
}

/** Sizes that do not fit in 32 bits are in an extra field, in order. */
function sizesOf(given: readonly number[], extra: Uint8Array): number[] {
  if (!given.includes(0xffffffff)) return [...given];
  const view = viewOf(extra);
  for (let at = 0; at + 4 <= extra.length;) {
    const length = view.getUint16(at + 2, true);
    if (view.getUint16(at, true) === 1) {
      let place = at + 4;
      const end = Math.min(extra.length, place + length);
      return given.map((value) => {
        if (value !== 0xffffffff) return value;
        if (place + 8 > end) throw damaged("zip");
        const long = exact64(view, place);
        place += 8;
        return long;
      });
    }
    at += 4 + length;
  }
  return [...given];
}

function exact64(view: DataView, at: number): number {
  const value = view.getUint32(at + 4, true) * 2 ** 32 +
    view.getUint32(at, true);
  if (!Number.isSafeInteger(value)) throw damaged("zip");
  return value;
}
