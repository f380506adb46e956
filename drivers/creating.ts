/**
 * What creates and fills `raw` and `qcow2` images in files; see `reading.ts`.
 *
 * @module
 */
import "./file/hints.ts";
import "./qcow2/create.ts";
import "./raw.ts";
import "./writing.ts";
