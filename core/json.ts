/**
 * JSON in the order in which QEMU prints it.
 *
 * @module
 */

/** A printable value; `undefined` members of objects are left out. */
export type Json =
  | string
  | number
  | bigint
  | boolean
  | null
  | undefined
  | readonly Json[]
  | { readonly [name: string]: Json };

/**
 * The order in which QEMU's dictionaries iterate: by the bucket of the key's
 * hash, the latest first within a bucket.
 */
export function inKeyOrder<T>(
  object: { readonly [name: string]: T },
): [name: string, value: T][] {
  const entries = Object.entries(object)
    .filter(([, value]) => value !== undefined)
    .map((entry, index) => ({ entry, index, bucket: bucketOf(entry[0]) }));
  entries.sort((a, b) => a.bucket - b.bucket || b.index - a.index);
  return entries.map(({ entry }) => entry);
}

/** The bucket of a key: gdbm's hash, 512 buckets. */
function bucketOf(key: string): number {
  const bytes = new TextEncoder().encode(key);
  let value = Math.imul(0x238f13af, bytes.length);
  for (let i = 0; i < bytes.length; i++) {
    value = (value + (bytes[i] << (i * 5 % 24))) | 0;
  }
  return (Math.imul(1103515243, value) + 12345) & 511;
}

/** A value on one line, with a blank after each comma and colon. */
export function compactJson(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(compactJson).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    const members = inKeyOrder(value as { readonly [name: string]: Json })
      .map(([name, item]) => `${quoteJson(name)}: ${compactJson(item)}`);
    return `{${members.join(", ")}}`;
  }
  return scalarJson(value as string | number | bigint | boolean | null);
}

/**
 * A value that is neither a list nor an object; whole numbers with all digits.
 */
export function scalarJson(
  value: string | number | bigint | boolean | null,
): string {
  if (typeof value === "string") return quoteJson(value);
  return Number.isInteger(value)
    ? BigInt(value as number).toString()
    : String(value);
}

/** A string in quotes, everything but plain ASCII escaped. */
export function quoteJson(text: string): string {
  return JSON.stringify(text).replace(
    // Match escaped backslashes too, so that what follows one is not misread.
    // deno-lint-ignore no-control-regex
    /\\\\|\\u[0-9a-f]{4}|[^\x00-\x7e]/g,
    (found) => {
      if (found === "\\\\") return found;
      const code = found.length > 1
        ? found.slice(2)
        : found.charCodeAt(0).toString(16).padStart(4, "0");
      return `\\u${code.toUpperCase()}`;
    },
  );
}
