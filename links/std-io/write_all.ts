// Copyright 2025 the bdrv authors. MIT license.
// A stand-in for https://jsr.io/@std/io (module "./write-all"), for machines
// that cannot reach JSR; deno.json's "links" puts it in place.
// Signatures and behaviour are those of the real module.

/** Something bytes can be written to synchronously. */
export interface WriterSync {
  /** Write some of `p`; returns how many bytes. */
  writeSync(p: Uint8Array): number;
}

/** Synchronously write all of `data`. */
export function writeAllSync(writer: WriterSync, data: Uint8Array): void {
  let written = 0;
  while (written < data.length) {
    written += writer.writeSync(data.subarray(written));
  }
}
