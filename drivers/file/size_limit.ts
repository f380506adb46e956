/**
 * The limit that a system may set to the size of files (`ulimit -f`).
 *
 * @module
 */
import type { Libc } from "../../core/platform/libc.ts";
import { platform } from "../../core/platform/mod.ts";
import { surviveSignal } from "../../core/runtime.ts";

const RLIMIT_FSIZE = 1;
const RLIM_INFINITY = 0xffff_ffff_ffff_ffffn;

let isHeeded = false;

/**
 * Have writes past the limit fail with EFBIG. The signal that comes first would
 * end the program without a word; to listen to it takes a millisecond or two,
 * and a limit is rare.
 */
export function heedSizeLimit(): void {
  if (isHeeded) return;
  isHeeded = true;
  if (isLimited(platform().libc())) surviveSignal("SIGXFSZ");
}

/** Whether there is a limit, as far as that can be told. */
function isLimited(library: Libc | null): boolean {
  const limits = new BigUint64Array(2);
  const result = library?.getrlimit(
    RLIMIT_FSIZE,
    new Uint8Array(limits.buffer),
  );
  return result !== 0 || limits[0] !== RLIM_INFINITY;
}
