/**
 * The header of an SESPARSE extent, made by ESX since version 6.5. There is no
 * specification: the layout follows QEMU's driver, and nothing else is
 * accepted.
 *
 * @module
 */
import { SECTOR_SIZE } from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  checked,
  readSector,
  readUint64,
  type SparseLayout,
} from "./layout.ts";

const MAGIC = 0xcafebaben;
const VOLATILE_MAGIC = 0xcafecafen;
const VERSION = 0x0000000200000001n;
/** Sectors of a grain and of a grain table. */
const [GRAIN, TABLE] = [8n, 64n];

/**
 * Read the headers of an extent.
 *
 * @throws {BlockError} EACCES unless read-only, EINVAL if it is not such an
 * extent, ENOTSUP if its kind is unknown, or its journal must be replayed.
 */
export async function readSeSparse(
  file: BlockNode,
  readOnly: boolean,
): Promise<SparseLayout> {
  if (!readOnly) {
    throw new BlockError(
      "EACCES",
      "No write support for seSparse images available",
    );
  }
  const header = await readSector(file, 0);
  checkHeader(header);
  const sectors = (at: number) => readUint64(header, at) * SECTOR_SIZE;
  checkVolatile(await readSector(file, sectors(80)));
  return checked({
    kind: "sesparse",
    version: 0,
    capacity: sectors(16),
    grainSize: Number(GRAIN) * SECTOR_SIZE,
    tableEntries: Number(TABLE) * SECTOR_SIZE / 8,
    directory: sectors(128),
    redundant: 0,
    overhead: 0,
    isCompressed: false,
    hasMarkers: false,
    zeroedGrains: false,
    hasFooter: false,
    descriptor: { offset: 0, length: 0 },
    areas: { tables: sectors(144), grains: sectors(192) },
  });
}

function checkHeader(header: DataView): void {
  const field = (at: number) => header.getBigUint64(at, true);
  const refuse = (what: string) => {
    throw new BlockError("ENOTSUP", `Unsupported ${what}`);
  };
  if (field(0) !== MAGIC) {
    throw invalid(`Bad const header magic: ${hex(field(0))}`);
  }
  if (field(8) !== VERSION) refuse(`version: ${hex(field(8))}`);
  if (field(24) !== GRAIN) refuse(`grain size: ${field(24)}`);
  if (field(32) !== TABLE) refuse(`grain table size: ${field(32)}`);
  if (field(40) !== 0n) refuse(`flags: ${hex(field(40))}`);
  const reserved = [48, 56, 64, 72].map(field);
  if (reserved.some((value) => value !== 0n)) {
    refuse(`reserved bits: ${reserved.map(hex).join(" ")}`);
  }
  if (!isZeroFrom(header, 208)) refuse("non-zero const header padding");
}

function checkVolatile(header: DataView): void {
  const field = (at: number) => header.getBigUint64(at, true);
  if (field(0) !== VOLATILE_MAGIC) {
    throw invalid(`Bad volatile header magic: ${hex(field(0))}`);
  }
  if (field(24) !== 0n) {
    throw new BlockError(
      "ENOTSUP",
      "Image is dirty, Replaying journal not supported",
    );
  }
  if (!isZeroFrom(header, 32)) {
    throw new BlockError(
      "ENOTSUP",
      "Unsupported non-zero volatile header padding",
    );
  }
}

function isZeroFrom(header: DataView, start: number): boolean {
  for (let at = start; at < SECTOR_SIZE; at++) {
    if (header.getUint8(at) !== 0) return false;
  }
  return true;
}

function hex(value: bigint): string {
  return `0x${value.toString(16).padStart(16, "0")}`;
}
