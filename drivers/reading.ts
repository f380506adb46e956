/**
 * What reading `qcow2` images in files needs. Commands that need all of it
 * import this: modules loaded together load faster than one by one on demand.
 * `writing.ts`, `creating.ts` and `creating_raw.ts` repeat it, rather than
 * import it, since each module takes time.
 *
 * @module
 */
import "./file/libc_file.ts";
import "./qcow2/guest_data.ts";
