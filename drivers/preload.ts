/**
 * Loads at once what `raw` and `qcow2` otherwise load when they use it. Where
 * Deno loads modules lazily (as `deno.json` of this repository has it), loading
 * one later takes a permission to read files, and stacks on memory shall need
 * none.
 *
 * @module
 */
import "../core/alignment.ts";
import "../core/compression.ts";
import "../core/detect_zeroes.ts";
import "../core/inflate.ts";
import "../core/kept_nodes.ts";
import "../core/probe_guard.ts";
import "../core/reopen.ts";
import "../core/zlib_workers.ts";
import "./memory.ts";
import "./qcow2/amend.ts";
import "./qcow2/bitmaps/bitmaps.ts";
import "./qcow2/check.ts";
import "./qcow2/empty.ts";
import "./qcow2/encryption.ts";
import "./qcow2/luks.ts";
import "./qcow2/measure.ts";
import "./qcow2/option_tables.ts";
import "./qcow2/resize.ts";
import "./qcow2/snapshot_table.ts";
import "./qcow2/snapshots.ts";
import "./qcow2/stream.ts";
import "./qcow2/unmap.ts";
import "./qcow2/write_compressed.ts";
import "./creating.ts";
