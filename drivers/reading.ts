/**
 * What reading `qcow2` images in files needs. Commands that need all of it
 * import this: modules loaded together load faster than one by one on demand.
 *
 * @module
 */
import "./file/libc_file.ts";
import "./qcow2/guest_data.ts";
import "./qcow2/holes.ts";
