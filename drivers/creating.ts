/**
 * What creating and writing `raw` and `qcow2` images in files needs; see
 * `reading.ts`.
 *
 * @module
 */
import "./file/hints.ts";
import "./qcow2/create.ts";
import "./qcow2/option_tables.ts";
import "./raw.ts";
import "./writing.ts";
