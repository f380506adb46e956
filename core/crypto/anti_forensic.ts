/**
 * Spreading a key over much more data than it has, so that it is lost when any
 * part of that is. (LUKS 1.2.1, "Anti-forensic information splitting")
 *
 * @module
 */
import { allocate } from "../bytes.ts";
import { giveWay } from "../runtime.ts";
import {
  digestSize,
  type Hasher,
  hasher,
  type HashName,
  randomBytes,
} from "./hashes.ts";

/** Milliseconds of mixing before others get their turn. */
const PATIENCE = 5;

/** The key in `stripes` parts of its size. */
export async function splitKey(
  key: Uint8Array,
  stripes: number,
  hash: HashName,
): Promise<Uint8Array> {
  const material = randomBytes(key.length * stripes);
  const last = material.subarray(key.length * (stripes - 1));
  last.set(await mixed(material, key.length, stripes - 1, hash));
  for (let i = 0; i < key.length; i++) last[i] ^= key[i];
  return material;
}

/** The key of `length` bytes that was split into `stripes` parts. */
export async function mergeKey(
  material: Uint8Array,
  length: number,
  stripes: number,
  hash: HashName,
): Promise<Uint8Array> {
  const key = await mixed(material, length, stripes - 1, hash);
  const last = length * (stripes - 1);
  for (let i = 0; i < length; i++) key[i] ^= material[last + i];
  return key;
}

/** What becomes of the first `count` stripes, one mixed into the next. */
async function mixed(
  material: Uint8Array,
  length: number,
  count: number,
  hash: HashName,
): Promise<Uint8Array> {
  const digest = hasher(hash);
  const size = digestSize(hash);
  const block = allocate(length);
  let turn = performance.now() + PATIENCE;
  for (let stripe = 0; stripe < count; stripe++) {
    const start = stripe * length;
    for (let i = 0; i < length; i++) block[i] ^= material[start + i];
    await diffuse(block, size, digest);
    if (performance.now() < turn) continue;
    await giveWay();
    turn = performance.now() + PATIENCE;
  }
  return block;
}

/** Have each bit of a piece depend on all others of it. */
async function diffuse(
  block: Uint8Array,
  size: number,
  digest: Hasher,
): Promise<void> {
  for (let at = 0, index = 0; at < block.length; at += size, index++) {
    const piece = block.subarray(at, at + size);
    const input = new Uint8Array(4 + piece.length);
    new DataView(input.buffer).setUint32(0, index);
    input.set(piece, 4);
    const result = digest(input);
    const bytes = result instanceof Promise ? await result : result;
    piece.set(bytes.subarray(0, piece.length));
  }
}
