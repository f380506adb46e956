/**
 * The checksum of gzip, zip and xz: CRC-32 of ISO 3309.
 *
 * @module
 */

/** Number of tables, and of bytes processed at once. */
const SLICES = 4;

let tables: Uint32Array[] | undefined;

function makeTables(): Uint32Array[] {
  const all = Array.from({ length: SLICES }, () => new Uint32Array(256));
  for (let byte = 0; byte < 256; byte++) {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) {
      value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    }
    all[0][byte] = value;
  }
  for (let slice = 1; slice < SLICES; slice++) {
    for (let byte = 0; byte < 256; byte++) {
      const before = all[slice - 1][byte];
      all[slice][byte] = (before >>> 8) ^ all[0][before & 255];
    }
  }
  return all;
}

/** Continue the checksum `before` with `bytes`. */
export function crc32(bytes: Uint8Array, before = 0): number {
  const [one, two, three, four] = tables ??= makeTables();
  let crc = ~before;
  let at = 0;
  for (; at + 4 <= bytes.length; at += 4) {
    crc ^= bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16 |
      bytes[at + 3] << 24;
    crc = four[crc & 255] ^ three[crc >>> 8 & 255] ^ two[crc >>> 16 & 255] ^
      one[crc >>> 24];
  }
  for (; at < bytes.length; at++) {
    crc = (crc >>> 8) ^ one[(crc ^ bytes[at]) & 255];
  }
  return ~crc >>> 0;
}
