/**
 * GUIDs, whose first three groups are stored little-endian.
 *
 * @module
 */

/** The null GUID. */
export const NO_GUID = "00000000-0000-0000-0000-000000000000";

/** The order of the text's bytes in a file. */
const ORDER = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

/** The GUID at an offset, as text. */
export function guidAt(bytes: Uint8Array, at: number): string {
  const hex = ORDER.map((i) => bytes[at + i].toString(16).padStart(2, "0"))
    .join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Store a GUID at an offset. */
export function putGuid(bytes: Uint8Array, at: number, guid: string): void {
  const hex = guid.replaceAll("-", "");
  ORDER.forEach((place, i) => {
    bytes[at + place] = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  });
}

/** A new GUID. */
export function newGuid(): string {
  return crypto.randomUUID();
}
