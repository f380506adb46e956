/**
 * LZVN, Apple's simpler compression, which LZFSE uses for small blocks: each
 * instruction is a byte, possibly with further operand bytes, followed by
 * literals.
 *
 * Source: the facts of Apple's reference implementation (lzfse 1.0).
 *
 * @module
 */

/** Instructions that use all bits as their code. */
const [END, NOTHING, NOTHING_EITHER] = [0x06, 0x0e, 0x16];
/** The shortest match with a distance. */
const MIN_MATCH = 3;
/** Lengths in a byte of their own start here. */
const LONG = 16;

/**
 * Decode LZVN from its first instruction to the terminating one.
 *
 * @param to Where in `target` the output begins: matches may refer to bytes
 * before.
 * @returns whether that filled `target` exactly.
 */
export function decodeLzvn(
  stored: Uint8Array,
  target: Uint8Array,
  to: number,
): boolean {
  let distance = 0;
  // Past the end, bytes read as 0, which is noticed afterwards.
  const byte = (at: number) => stored[at] ?? 0;
  for (let at = 0; at < stored.length;) {
    const code = stored[at++];
    if (code === END) return to === target.length;
    if (code === NOTHING || code === NOTHING_EITHER) continue;
    // The most common form: LLMMMDDD DDDDDDDD.
    let literals = code >> 6;
    let match = ((code >> 3) & 7) + MIN_MATCH;
    const low = code & 7;
    if (code >= 0xe0) {
      // 1110LLLL or 1111MMMM: only literals or only a match, with its length
      // here or in the next byte.
      const length = code & 15 || byte(at++) + LONG;
      [literals, match] = code < 0xf0 ? [length, 0] : [0, length];
    } else if (code >= 0xa0 && code < 0xc0) {
      // 101LLMMM DDDDDDMM DDDDDDDD
      literals = (code >> 3) & 3;
      match = (low << 2 | byte(at) & 3) + MIN_MATCH;
      distance = byte(at) >> 2 | byte(at + 1) << 6;
      at += 2;
    } else if ((code & 0xf0) === 0x70 || (code & 0xf0) === 0xd0) {
      return false;
    } else if (low === 7) {
      // LLMMM111 DDDDDDDD DDDDDDDD
      distance = byte(at) | byte(at + 1) << 8;
      at += 2;
    } else if (low < 6) {
      distance = low << 8 | byte(at++);
    } else if (literals === 0) {
      // LLMMM110 repeats the distance; without literals it is invalid.
      return false;
    }
    const end = at + literals;
    if (end > stored.length || to + literals + match > target.length) {
      return false;
    }
    while (at < end) target[to++] = stored[at++];
    if (match > 0) {
      if (!copyMatch(target, to, distance, match)) return false;
      to += match;
    }
  }
  return false;
}

/**
 * Copy earlier output; the match may overlap its own output.
 *
 * @returns whether there is output at that distance.
 */
export function copyMatch(
  target: Uint8Array,
  to: number,
  distance: number,
  length: number,
): boolean {
  if (distance > to || distance === 0) return false;
  if (distance >= length) {
    target.copyWithin(to, to - distance, to - distance + length);
    return true;
  }
  for (const end = to + length; to < end; to++) {
    target[to] = target[to - distance];
  }
  return true;
}
