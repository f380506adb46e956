/**
 * Keys of TLS that both ends have been given in advance (PSK), as GnuTLS keeps
 * them in files.
 *
 * @module
 */
import { invalid } from "./errors.ts";

/** The most bytes of a user's name and of a key that OpenSSL takes. */
const MAX_NAME = 256;
const MAX_KEY = 512;

/**
 * Parse a file as `psktool` makes it: in each line, a user's name, a colon, and
 * a key in hexadecimal. Of two lines for one user, the first counts. A name
 * that begins with `#` is in hexadecimal itself.
 *
 * @throws {BlockError} EINVAL if a line is anything else.
 */
export function parseSharedKeys(text: string): Map<string, Uint8Array> {
  const keys = new Map<string, Uint8Array>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === "") continue;
    const colon = line.indexOf(":");
    const name = colon < 0 ? undefined : parseName(line.slice(0, colon));
    const key = parseHex(line.slice(colon + 1).trim());
    // What the line contains is a secret.
    if (!name || !key || name.length > MAX_NAME || key.length > MAX_KEY) {
      throw invalid(`Line ${index + 1} is not a user's name, ':', and a key`);
    }
    if (!keys.has(name)) keys.set(name, key);
  }
  return keys;
}

function parseName(name: string): string | undefined {
  if (!name.startsWith("#")) return name;
  const bytes = parseHex(name.slice(1));
  return bytes && new TextDecoder().decode(bytes);
}

function parseHex(digits: string): Uint8Array | undefined {
  if (!/^([0-9a-f]{2})+$/i.test(digits)) return undefined;
  const bytes = digits.match(/../g)!;
  return Uint8Array.from(bytes, (byte) => parseInt(byte, 16));
}
