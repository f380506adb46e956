/**
 * The driver `zstd` (RFC 8878). A file is unpacked front to back, unless it
 * ends in a table of its frames ("Zstandard Seekable Format", version 0.1.0).
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import { decompress } from "../../core/compression.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { parseOptions } from "../../core/options.ts";
import { damaged, zstdUnpacker } from "./native.ts";
import { cannotSeek, unpacked } from "./sequence.ts";
import { bytesAt } from "./reading.ts";
import { MAX_UNIT, MAX_UNITS, Units, unitsNode } from "./units.ts";
import { checkReadOnly } from "./window.ts";

const FOOTER = 9;
const FOOTER_MAGIC = 0x8f92eab1;
/** The magic of the skippable frame that contains the table. */
const TABLE_MAGIC = 0x184d2a5e;
const FRAME_MAGIC = 0xfd2fb528;
/** The upper bits of the sixteen magics of skippable frames. */
const SKIPPABLE = 0x184d2a5;

/** A disk in a file that is compressed with zstd. */
export const zstdDriver: BlockDriver = {
  name: "zstd",
  role: "format",
  isContainer: true,
  openOptions: {},

  async open(options, context) {
    parseOptions({}, options, ["file"]);
    checkReadOnly(context, "A file compressed with zstd");
    const file = await context.openChild("file");
    await checkMagic(file);
    const frames = await framesOf(file);
    if (!frames) throw cannotSeek("A file compressed with zstd", "zstd -dk");
    if (frames.largest > MAX_UNIT) {
      throw cannotSeek(
        "A file compressed with zstd in large frames",
        "zstd -dk",
      );
    }
    return unitsNode(
      zstdDriver,
      file,
      frames,
      (stored, target) => decompress("zstd", stored, target),
    );
  },

  async *unpack(options, file) {
    parseOptions({}, options, ["file"]);
    await checkMagic(file);
    yield* unpacked(file, { start: 0, size: file.size }, zstdUnpacker());
  },
};

async function checkMagic(file: BlockNode): Promise<void> {
  const head = viewOf(await bytesAt(file, 0, 4));
  const magic = head.getUint32(0, true);
  if (magic === FRAME_MAGIC || magic >>> 4 === SKIPPABLE) return;
  throw invalid("It is not in zstd's format");
}

/** The frames of a file with a table; `undefined` without one. */
async function framesOf(file: BlockNode): Promise<Units | undefined> {
  if (file.size < FOOTER + 8) return undefined;
  const bytes = await bytesAt(file, file.size - FOOTER, FOOTER);
  const footer = viewOf(bytes);
  if (footer.getUint32(5, true) !== FOOTER_MAGIC) return undefined;
  const count = footer.getUint32(0, true);
  const descriptor = footer.getUint8(4);
  const entry = descriptor & 0x80 ? 12 : 8;
  if (descriptor & 0x7c) throw damaged("zstd");
  if (count > MAX_UNITS) {
    throw new BlockError("EFBIG", "The zstd file has too many frames");
  }
  const length = count * entry;
  const tableAt = file.size - FOOTER - length - 8;
  if (tableAt < 0) throw damaged("zstd");
  const table = viewOf(await bytesAt(file, tableAt, 8 + length));
  const isTable = table.getUint32(0, true) === TABLE_MAGIC &&
    table.getUint32(4, true) === length + FOOTER;
  if (!isTable) throw damaged("zstd");
  const units = new Units();
  let at = 0;
  for (let i = 0; i < count; i++) {
    const place = 8 + i * entry;
    const stored = table.getUint32(place, true);
    units.add(at, stored, table.getUint32(place + 4, true));
    at += stored;
  }
  if (at !== tableAt) throw damaged("zstd");
  return units;
}
