/**
 * The driver `gzip`: RFC 1952. A file is unpacked front to back, unless it is
 * BGZF ("Sequence Alignment/Map Format Specification", section 4.1), whose
 * members are small and state their length.
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { decompress } from "../../core/compression.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { parseOptions } from "../../core/options.ts";
import { crc32 } from "./crc32.ts";
import { damaged, inflater } from "./native.ts";
import { bytesOf, cannotSeek, unpacked } from "./sequence.ts";
import { bytesAt } from "./reading.ts";
import { Units, unitsNode } from "./units.ts";
import { checkReadOnly } from "./window.ts";

/** Bytes of a member's header in BGZF, which has one extra field. */
const HEADER = 18;
/** Bytes after the data: checksum and length. */
const TRAILER = 8;
/** Most bytes of an unpacked member. */
const MAX_MEMBER = 65536;

/** A disk in a file that is compressed with gzip. */
export const gzipDriver: BlockDriver = {
  name: "gzip",
  role: "format",
  isContainer: true,
  openOptions: {},

  async open(options, context) {
    parseOptions({}, options, ["file"]);
    checkReadOnly(context, "A file compressed with gzip");
    const file = await context.openChild("file");
    await checkMagic(file);
    const units = await membersOf(file);
    if (!units) throw cannotSeek("A file compressed with gzip", "gunzip -k");
    return unitsNode(gzipDriver, file, units, unpackMember);
  },

  async *unpack(options, file, warn) {
    parseOptions({}, options, ["file"]);
    await checkMagic(file);
    const whole = { start: 0, size: file.size };
    const unpacker = inflater("gzip", warn);
    if (unpacker) return yield* unpacked(file, whole, unpacker);
    yield* unpackedByRuntime("gzip", bytesOf(file, whole));
  },
};

async function checkMagic(file: BlockNode): Promise<void> {
  const [one, two, method] = await bytesAt(file, 0, 3);
  if (one !== 0x1f || two !== 0x8b) throw invalid("It is not in gzip's format");
  if (method === 8) return;
  throw new BlockError("ENOTSUP", "The gzip data has an unknown method");
}

/** The members of a BGZF file; `undefined` for other gzip files. */
async function membersOf(file: BlockNode): Promise<Units | undefined> {
  const units = new Units();
  let next = await bytesAt(file, 0, HEADER);
  for (let at = 0; at < file.size;) {
    const stored = memberLength(next);
    const end = at + stored;
    // What follows the last member is judged by whoever unpacks all.
    if (stored === 0) return await isZero(file, at) ? units : undefined;
    if (end > file.size) {
      if (at === 0) return undefined;
      throw new BlockError("EIO", "The gzip data is cut off");
    }
    // The end of one member and the header of the next.
    const both = await bytesAt(file, end - 4, 4 + HEADER);
    const length = viewOf(both).getUint32(0, true);
    if (length > MAX_MEMBER) {
      if (at === 0) return undefined;
      throw damaged("gzip");
    }
    units.add(at, stored, length);
    next = both.subarray(4);
    at = end;
  }
  return units;
}

/** Whether only padding follows, as on tapes. */
async function isZero(file: BlockNode, start: number): Promise<boolean> {
  const rest = bytesOf(file, { start, size: file.size - start });
  for await (const bytes of rest) {
    if (bytes.some((byte) => byte !== 0)) return false;
  }
  return true;
}

/** The length of a member with this header; 0 if it is not stated. */
function memberLength(header: Uint8Array): number {
  const view = viewOf(header);
  const isMember = view.getUint32(0) === 0x1f8b0804 &&
    view.getUint16(10, true) === 6 && view.getUint16(12) === 0x4243 &&
    view.getUint16(14, true) === 2;
  const length = view.getUint16(16, true) + 1;
  return isMember && length > HEADER + TRAILER ? length : 0;
}

async function unpackMember(
  stored: Uint8Array,
  target: Uint8Array,
): Promise<void> {
  const end = stored.length - TRAILER;
  await decompress("zlib", stored.subarray(HEADER, end), target);
  const sum = viewOf(stored).getUint32(
    end,
    true,
  );
  if (crc32(target) !== sum) throw damaged("gzip");
}

/**
 * Unpack without a library, which requires a gzip file with only one member.
 */
export async function* unpackedByRuntime(
  format: "gzip" | "deflate-raw",
  bytes: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  const parts = bytes[Symbol.asyncIterator]();
  const packed = new ReadableStream<Uint8Array<ArrayBuffer>>({
    async pull(controller) {
      const { value, done } = await parts.next();
      if (done) controller.close();
      else controller.enqueue(value.slice());
    },
    async cancel() {
      await parts.return?.();
    },
  });
  const reader = packed.pipeThrough(new DecompressionStream(format))
    .getReader();
  try {
    for (;;) {
      let part: ReadableStreamReadResult<Uint8Array>;
      try {
        part = await reader.read();
      } catch (error) {
        if (error instanceof BlockError) throw error;
        if (format === "deflate-raw") throw damaged("zip");
        throw new BlockError("EIO", "The gzip data is damaged", {
          hint: "If it has several members, or something follows it, zlib is " +
            "needed (--allow-ffi).",
        });
      }
      if (part.done) return;
      yield part.value;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
