// Copyright 2025 the bdrv authors. MIT license.
// A stand-in for https://jsr.io/@std/io (module "./read-all"), for machines
// that cannot reach JSR; deno.json's "links" puts it in place.
// Signatures and behaviour are those of the real module.

/** Something bytes can be read from. */
export interface Reader {
  /** Read into `p`; answers how many bytes, `null` at the end. */
  read(p: Uint8Array): Promise<number | null>;
}

/** Something bytes can be read from synchronously. */
export interface ReaderSync {
  /** Read into `p`; answers how many bytes, `null` at the end. */
  readSync(p: Uint8Array): number | null;
}

const CHUNK = 32 * 1024;

/** Read until the end. */
export async function readAll(reader: Reader): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  for (;;) {
    const chunk = new Uint8Array(CHUNK);
    const read = await reader.read(chunk);
    if (read === null) return join(chunks);
    chunks.push(chunk.subarray(0, read));
  }
}

/** Synchronously read until the end. */
export function readAllSync(reader: ReaderSync): Uint8Array {
  const chunks: Uint8Array[] = [];
  for (;;) {
    const chunk = new Uint8Array(CHUNK);
    const read = reader.readSync(chunk);
    if (read === null) return join(chunks);
    chunks.push(chunk.subarray(0, read));
  }
}

function join(chunks: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(chunks.reduce((sum, c) => sum + c.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}
