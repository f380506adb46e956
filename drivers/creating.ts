/**
 * What creating and writing `qcow2` images in files needs, also from `raw` ones;
 * see `reading.ts`.
 *
 * @module
 */
import "./creating_raw.ts";
import "./qcow2/allocation.ts";
import "./qcow2/create.ts";
import "./qcow2/header_encoding.ts";
import "./qcow2/option_tables.ts";
import "./qcow2/overlap.ts";
import "./qcow2/refcounts.ts";
