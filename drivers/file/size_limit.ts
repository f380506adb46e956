/**
 * The system's limit on the size of files (`ulimit -f`).
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
 * Make writes past the limit fail with EFBIG, instead of a signal that ends the
 * program without a message. Only if there is a limit, since listening to the
 * signal takes time.
 */
export function failAtSizeLimit(): void {
  if (isHeeded) return;
  isHeeded = true;
  if (isLimited(platform().libc())) surviveSignal("SIGXFSZ");
}

/** Whether there is a limit, as far as can be determined. */
function isLimited(library: Libc | null): boolean {
  const limits = new BigUint64Array(2);
  const result = library?.getrlimit(
    RLIMIT_FSIZE,
    new Uint8Array(limits.buffer),
  );
  return result !== 0 || limits[0] !== RLIM_INFINITY;
}
