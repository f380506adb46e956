/**
 * Damage to images of the read-only formats.
 *
 * @module
 */
import type { Random } from "../../model.ts";

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 4n, 8n, 127n, 511n, 512n, 513n, 4096n, 65536n],
  ...[0x7fffffffn, 0x80000000n, 0xffffffffn, 0x100000000n, 1n << 40n],
  ...[(1n << 44n) - 1n, (1n << 53n) - 1n, 1n << 53n, 1n << 55n, 3n << 62n],
  ...[1n << 62n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n],
];

/**
 * Fields, by their offset from the start, or from the end if it is negative.
 */
const FIELDS: { readonly [format: string]: readonly number[] } = {
  dmg: [24, 32, 40, 48, 60, 216, 224, 492].map((at) => at - 512),
  cloop: [...[128, 132], ...Array.from({ length: 66 }, (_, i) => 136 + 8 * i)],
  bochs: [...[0, 32, 48, 64, 68, 72, 76, 80, 84, 88], 512, 516, 520, 600],
  asif: [
    ...[0, 4, 16, 24, 48, 56, 64, 68, 512, 520, 528, 8192, 8200, 8208],
    ...[32768, 32776, 32784, 32800, 49152, 65536, 65792],
    ...[262144, 262152, 262176, 393216, 524288],
  ],
};

/** Store a number of some bytes, as far as they exist. */
export function putValue(
  bytes: Uint8Array,
  at: number,
  value: bigint,
  size: number,
  littleEndian = false,
): void {
  for (let i = 0; i < size && at + i < bytes.length; i++) {
    const shift = BigInt(8 * (littleEndian ? i : size - 1 - i));
    bytes[at + i] = Number(value >> shift & 0xffn);
  }
}

/** Change entries in the tables of a DMG, or other numbers in it. */
export function damageTables(bytes: Uint8Array, random: Random): string {
  const mish = positionsOf(bytes, "mish");
  if (mish.length > 0) {
    // In a resource fork, tables are stored as they are.
    const table = random.pick(mish);
    const at = random.pick([4, 8, 16, 24]) - 8 * random.below(2);
    const entry = 204 + 40 * random.below(20) + random.pick([0, 8, 16, 24, 32]);
    const where = table + random.pick([at, entry]);
    const value = random.pick(VALUES);
    putValue(bytes, where, value, 8);
    return `table at ${table}, ${where - table} = ${value}`;
  }
  const starts = positionsOf(bytes, "<data>");
  if (starts.length === 0) return "no table is left";
  const data = random.pick(starts) + 6;
  const end = data + bytes.subarray(data).indexOf("<".charCodeAt(0));
  const text = String.fromCharCode(...bytes.subarray(data, end));
  let content;
  try {
    content = atob(text);
  } catch {
    return "the table is no longer one"; // by an earlier change
  }
  const table = Uint8Array.from(content, (char) => char.charCodeAt(0));
  const entries = Math.max(1, Math.floor((table.length - 204) / 40));
  const at = random.pick([8, 24, 204, 204, 204, 204]);
  const where = at < 204
    ? at
    : at + 40 * random.below(entries) + random.pick([0, 8, 16, 24, 32]);
  const value = random.pick(VALUES);
  if (where % 40 === 4 && random.below(2) === 0) {
    putValue(table, where, BigInt(0x80000004 + random.below(6)), 4);
  } else putValue(table, where, value, 8);
  const encoded = btoa(String.fromCharCode(...table));
  // The same length, given the white space that this leaves.
  const packed = encoded.padEnd(end - data, " ").slice(0, end - data);
  bytes.set(new TextEncoder().encode(packed), data);
  return `table in a list, ${where} = ${value}`;
}

/** The offsets of a text. */
export function positionsOf(bytes: Uint8Array, magic: string): number[] {
  const text = new TextDecoder("latin1").decode(bytes);
  const found = [];
  for (
    let at = text.indexOf(magic);
    at >= 0;
    at = text.indexOf(magic, at + 1)
  ) {
    found.push(at);
  }
  return found;
}

/** Damage a field, a table or a byte. */
export function damage(
  bytes: Uint8Array,
  format: string,
  random: Random,
): string {
  const kind = random.below(format === "dmg" ? 5 : 3);
  if (kind === 0) {
    const at = random.below(bytes.length);
    bytes[at] ^= 1 << random.below(8);
    return `byte ${at} = ${bytes[at]}`;
  }
  if (kind >= 3) return damageTables(bytes, random);
  const field = random.pick(FIELDS[format]);
  const at = field < 0 ? bytes.length + field : field;
  const size = random.pick([4, 4, 8]);
  const isNear = random.below(3) === 0;
  const value = isNear ? BigInt(random.below(2000)) : random.pick(VALUES);
  putValue(bytes, at, value, size, format === "bochs");
  return `field ${field} = ${value} (${size} bytes)`;
}
