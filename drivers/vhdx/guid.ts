/**
 * GUIDs, whose first three groups are little-endian in a file.
 *
 * @module
 */

/** The GUID that stands for none. */
export const NO_GUID = "00000000-0000-0000-0000-000000000000";

/** Where in a file the digits of the text come from, byte by byte. */
const ORDER = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

/** The GUID at an offset, as text. */
export function guidAt(bytes: Uint8Array, at: number): string {
  const hex = ORDER.map((i) => bytes[at + i].toString(16).padStart(2, "0"))
    .join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Put a GUID there. */
export function putGuid(bytes: Uint8Array, at: number, guid: string): void {
  const hex = guid.replaceAll("-", "");
  ORDER.forEach((place, i) => {
    bytes[at + place] = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  });
}

/** A new one. */
export function newGuid(): string {
  return crypto.randomUUID();
}
