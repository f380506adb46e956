/**
 * What creating `raw` images in files, also from `qcow2` ones, needs; see
 * `reading.ts`.
 *
 * @module
 */
import "../core/limits.ts";
import "./file/hints.ts";
import "./file/libc_file.ts";
import "./qcow2/guest_data.ts";
import "./raw.ts";
