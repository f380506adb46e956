/**
 * Splitting a key into much more data, so that losing any part of it destroys
 * the key. (LUKS 1.2.1, "Anti-forensic information splitting")
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

/** Milliseconds of mixing before other tasks get a turn. */
const PATIENCE = 5;

/** Split a key into `stripes` parts of its own size. */
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

/** Merge the key of `length` bytes from its `stripes` parts. */
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

/** Mix the first `count` stripes, each into the next. */
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

/** Make each bit of a stripe depend on all others. */
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
