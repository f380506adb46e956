/**
 * What reads the data of `qcow2` images in files. Commands that need all of it
 * import this: modules loaded together are there sooner than modules loaded one
 * by one, each when it is used.
 *
 * @module
 */
import "./file/libc_file.ts";
import "./qcow2/guest_data.ts";
import "./qcow2/holes.ts";
