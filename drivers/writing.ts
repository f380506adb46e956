/**
 * What reads, writes and creates `raw` and `qcow2` images in files; see
 * `reading.ts`.
 *
 * @module
 */
import "./file/hints.ts";
import "./file/libc_file.ts";
import "./file/size_limit.ts";
import "./qcow2/allocation.ts";
import "./qcow2/create.ts";
import "./qcow2/guest_data.ts";
import "./raw.ts";
