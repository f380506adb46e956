/**
 * The checksum of VHDX structures: CRC-32C, with Castagnoli's polynomial.
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";

const TABLE = new Uint32Array(256).map((_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) {
    value = value >>> 1 ^ (value & 1 ? 0x82f63b78 : 0);
  }
  return value;
});

/** A checksum of bytes that arrive in parts of at least 4 bytes. */
export class Checksum {
  #crc = 0xffffffff;

  /** The checksum of all bytes added so far. */
  get value(): number {
    return ~this.#crc >>> 0;
  }

  /**
   * Add bytes.
   *
   * @param field Offset of 4 bytes that count as zeroes: the checksum itself.
   */
  add(bytes: Uint8Array, field = bytes.length): void {
    let crc = this.#crc;
    for (let i = 0; i < bytes.length; i++) {
      const byte = i >= field && i < field + 4 ? 0 : bytes[i];
      crc = crc >>> 8 ^ TABLE[(crc ^ byte) & 0xff];
    }
    this.#crc = crc;
  }
}

/** Whether the checksum at `field` is correct. */
export function hasChecksum(bytes: Uint8Array, field: number): boolean {
  return viewOf(bytes).getUint32(field, true) === checksum(bytes, field);
}

/** Set the checksum at `field`. */
export function putChecksum(bytes: Uint8Array, field: number): void {
  viewOf(bytes).setUint32(field, checksum(bytes, field), true);
}

function checksum(bytes: Uint8Array, field: number): number {
  const sum = new Checksum();
  sum.add(bytes, field);
  return sum.value;
}
