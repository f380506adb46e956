/**
 * Disk geometry (cylinders, heads, sectors) by the VHD specification, and the
 * disk size that Virtual PC derives from it.
 *
 * @module
 */
import { SECTOR_SIZE } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";

/** A geometry. */
export interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  /** Sectors per track. */
  readonly sectors: number;
}

/** The largest geometry, which means that the size field applies. */
export const LARGEST_GEOMETRY: Geometry = {
  cylinders: 65535,
  heads: 16,
  sectors: 255,
};

/** Sectors of the largest disk: 2040 GiB. */
export const MAX_SECTORS = 0xff000000;

/** Sectors of a disk with that geometry. */
export function sectorsOf({ cylinders, heads, sectors }: Geometry): number {
  return cylinders * heads * sectors;
}

const LARGEST = sectorsOf(LARGEST_GEOMETRY);

/** Whether it is the largest geometry. */
export function isLargest(geometry: Geometry): boolean {
  return sectorsOf(geometry) === LARGEST;
}

/** The geometry for a number of sectors; it often covers fewer. */
export function geometryOf(sectorCount: number): Geometry {
  const total = Math.min(sectorCount, LARGEST);
  const tracksOf = (sectors: number) => Math.floor(total / sectors);
  const made = (tracks: number, heads: number, sectors: number) => ({
    cylinders: Math.floor(tracks / heads),
    heads,
    sectors,
  });
  if (total >= 65535 * 16 * 63) return made(tracksOf(255), 16, 255);
  const heads = Math.max(4, Math.ceil(tracksOf(17) / 1024));
  if (tracksOf(17) < heads * 1024 && heads <= 16) {
    return made(tracksOf(17), heads, 17);
  }
  if (tracksOf(31) < 16 * 1024) return made(tracksOf(31), 16, 31);
  return made(tracksOf(63), 16, 63);
}

/**
 * The geometry with at least this many bytes, and its size. Disks too large for
 * any geometry keep their size.
 *
 * @param exact Whether to keep the size in any case.
 * @throws {BlockError} EFBIG if the disk is larger than 2040 GiB.
 */
export function roundedGeometry(
  size: number,
  exact: boolean,
): { geometry: Geometry; size: number } {
  const wanted = Math.ceil(size / SECTOR_SIZE);
  let geometry = exact
    ? LARGEST_GEOMETRY
    : { cylinders: 0, heads: 0, sectors: 0 };
  const least = Math.min(wanted, LARGEST);
  for (let more = 0; sectorsOf(geometry) < least; more++) {
    geometry = geometryOf(least + more);
  }
  if (!isLargest(geometry)) {
    return { geometry, size: sectorsOf(geometry) * SECTOR_SIZE };
  }
  if (wanted > MAX_SECTORS) {
    throw new BlockError(
      "EFBIG",
      "Disk size is too large, max size is 2040 GiB",
    );
  }
  return { geometry, size: wanted * SECTOR_SIZE };
}
