/**
 * Loads in advance what opening, copying, `raw` and `qcow2` otherwise load on
 * demand. Where Deno loads modules lazily (as in this repository's `deno.json`),
 * loading one later needs permission to read files, which stacks in memory
 * should not need.
 *
 * @module
 */
import "../core/alignment.ts";
import "../core/compression.ts";
import "../core/detect_zeroes.ts";
import "../core/inflate.ts";
import "../core/jobs/offload.ts";
import "../core/kept_nodes.ts";
import "../core/named_files.ts";
import "../core/probe.ts";
import "../core/probe_guard.ts";
import "../core/secrets.ts";
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
import "./qcow2/refcount_blocks.ts";
import "./qcow2/resize.ts";
import "./qcow2/snapshot_list.ts";
import "./qcow2/snapshot_table.ts";
import "./qcow2/snapshots.ts";
import "./qcow2/stream.ts";
import "./qcow2/unmap.ts";
import "./qcow2/write_compressed.ts";
import "./creating.ts";
