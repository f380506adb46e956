/**
 * What writing `qcow2` images in files needs; see `reading.ts`.
 *
 * @module
 */
import "../core/limits.ts";
import "./file/libc_file.ts";
import "./qcow2/allocation.ts";
import "./qcow2/guest_data.ts";
import "./qcow2/header_encoding.ts";
import "./qcow2/overlap.ts";
import "./qcow2/refcounts.ts";
