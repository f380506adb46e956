/**
 * Wrong orders of the writes to qcow2 images; `tests/write_orders.ts` has those
 * of the other formats, and says what they are for.
 *
 * @module
 */
import { swapped, type WrongOrder } from "./wrong_order.ts";

/** What makes refcounts of another width durable. */
const FLUSH =
  '    await naming("Failed to flush the refblock cache", async () => {\n      await state.flushCaches();\n    });\n';

export const QCOW2_WRONG_ORDERS: readonly WrongOrder[] = [
  {
    what: "entries of compressed clusters before their data",
    file: "drivers/qcow2/write_compressed.ts",
    changes: [
      ["    await writeRuns(state, group, places);\n", ""],
      [
        "  await releaseClusters(state, freed);\n  if (failure)",
        "  await writeRuns(state, group, places);\n" +
        "  await releaseClusters(state, freed);\n  if (failure)",
      ],
    ],
  },
  {
    what: "an old L2 table freed before the L1 entry leaves it",
    file: "drivers/qcow2/cluster_map.ts",
    changes: [
      [
        "      await this.setL1Entry(l1Index, offset);\n",
        "      if (oldOffset) await refcounts.free(oldOffset, clusterSize);\n" +
        "      await refcountCache.flush();\n" +
        "      await this.setL1Entry(l1Index, offset);\n",
      ],
      [
        "    if (oldOffset !== 0) await refcounts.free(oldOffset, clusterSize);\n",
        "",
      ],
    ],
  },
  {
    what: "an L1 entry before its table",
    file: "drivers/qcow2/cluster_map.ts",
    changes: [
      ["      await file.writev!(offset, [bytes]);\n", ""],
      [
        "      await this.setL1Entry(l1Index, offset);\n",
        "      await this.setL1Entry(l1Index, offset);\n" +
        "      await file.writev!(offset, [bytes]);\n",
      ],
    ],
  },
  {
    what: "the header before a larger L1 table",
    file: "drivers/qcow2/cluster_map.ts",
    changes: [
      ["      await file.writev!(offset, padded(bytes, SECTOR_SIZE));\n", ""],
      [
        "{ l1TableOffset: offset, l1Size: size });\n",
        "{ l1TableOffset: offset, l1Size: size });\n" +
        "      await file.writev!(offset, padded(bytes, SECTOR_SIZE));\n",
      ],
    ],
  },
  {
    what: "an old L1 table freed before the header leaves it",
    file: "drivers/qcow2/cluster_map.ts",
    changes: [
      [
        "      await refcountCache.flush();\n" +
        "      await this.#state.overlap.check(offset, bytes.length);\n",
        "      await refcounts.free(old.offset, old.size * ENTRY_SIZE);\n" +
        "      await refcountCache.flush();\n" +
        "      await this.#state.overlap.check(offset, bytes.length);\n",
      ],
      [
        "    await refcounts.free(old.offset, old.size * ENTRY_SIZE);\n  }\n",
        "  }\n",
      ],
    ],
  },
  {
    what: "a smaller size before the entries past it are gone",
    file: "drivers/qcow2/resize.ts",
    changes: [[
      "  await cutOff(state, geometry.clusterEnd(size), oldSize, ",
      "  await state.changeHeader({ size });\n" +
      "  await cutOff(state, geometry.clusterEnd(size), oldSize, ",
    ]],
  },
  {
    what: "a larger size before the new part is zero",
    file: "drivers/qcow2/resize.ts",
    changes: [
      [
        "  header.size = size;\n  try {\n",
        "  await state.changeHeader({ size });\n  try {\n",
      ],
    ],
  },
  {
    what: "the end of the file cut off before the refcount blocks leave it",
    file: "drivers/qcow2/resize.ts",
    changes: [
      [
        "  await state.changeHeader({ size });\n  await fitDataFile",
        "  await file.truncate?.(file.size - geometry.clusterSize);\n" +
        "  await state.changeHeader({ size });\n  await fitDataFile",
      ],
    ],
  },
  {
    what: "a snapshot before its refcounts",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      ["      await writeTable(state, [...state.snapshots, entry]);\n", ""],
      [
        "      await countTree(state, viewOf(l1), 1);\n      undo",
        "      await writeTable(state, [...state.snapshots, entry]);\n" +
        "      await countTree(state, viewOf(l1), 1);\n      undo",
      ],
    ],
  },
  {
    what: "a snapshot before its L1 table",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      ["      await file.writev!(entry.l1TableOffset, [copy]);\n", ""],
      [
        "      await writeTable(state, [...state.snapshots, entry]);\n",
        "      await writeTable(state, [...state.snapshots, entry]);\n" +
        "      await file.writev!(entry.l1TableOffset, [copy]);\n",
      ],
    ],
  },
  {
    what: "clusters of a snapshot freed before it is gone from the table",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      [
        "    await countTree(state, viewOf(l1), -1);\n    await state.ref",
        "    await state.ref",
      ],
      [
        "  await writeTable(state, others).catch((error) => {\n",
        "  await countTree(state, viewOf(l1), -1);\n" +
        "  await writeTable(state, others).catch((error) => {\n",
      ],
    ],
  },
  {
    what: "clusters of the disk freed before the L1 table is a snapshot's",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      ["    await countTree(state, viewOf(old), -1);\n", ""],
      [
        "    await state.overwrite(header.l1TableOffset, replaced, old);\n",
        "    await countTree(state, viewOf(old), -1);\n" +
        "    await state.refcountCache.flush();\n" +
        "    await state.overwrite(header.l1TableOffset, replaced, old);\n",
      ],
    ],
  },
  {
    what: "an old snapshot table freed before the header leaves it",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      [
        "    await state.flushCaches();\n    await state.changeHeader({\n      snap",
        "    if (old.length > 0) await refcounts.free(old.offset, old.length);\n    await state.flushCaches();\n    await state.changeHeader({\n      snap",
      ],
      ["  await refcounts.free(old.offset, old.length);\n}", "}"],
    ],
  },
  {
    what: "old bitmaps freed before the header leaves them",
    file: "drivers/qcow2/bitmaps/store.ts",
    changes: [
      [
        "    await storing.directory(stored",
        "    await storing.release();\n    await storing.directory(stored",
      ],
      ["  await storing.release();\n}", "}"],
    ],
  },
  {
    what: "bitmaps no longer in use before they are stored",
    file: "drivers/qcow2/bitmaps/bitmaps.ts",
    changes: [
      [
        "    try {\n      await storeBitmaps(",
        "    const all = this.#directory.filter(({ inUse }) => inUse);\n" +
        "    if (all.length > 0) await this.#writeMarks(all, false);\n" +
        "    try {\n      await storeBitmaps(",
      ],
    ],
  },
  {
    what: "bits recorded before the bitmap is marked as in use",
    file: "drivers/qcow2/bitmaps/bitmaps.ts",
    changes: [
      [
        "      await this.#markInUse(bitmaps);\n    }\n    for",
        "      this.#markInUse(bitmaps).catch(() => {});\n    }\n    for",
      ],
    ],
  },
  {
    what: "discards before the entries that leave the clusters",
    file: "drivers/qcow2/state.ts",
    changes: [
      swapped(
        "    await this.file.flush?.();\n",
        "    await this.refcounts.settle();\n",
      ),
    ],
  },
  {
    what: "a discard in a data file before the entry that leaves the cluster",
    file: "drivers/qcow2/data_clusters.ts",
    changes: [
      [
        "  {\n    using _ = await metadata.lock();\n    await l2Cache.flush();\n  }\n  for (",
        "  for (",
      ],
      [
        "inside).catch(() => {});\n  }\n}",
        "inside).catch(() => {});\n  }\n    using _ = await metadata.lock();\n    await l2Cache.flush();\n}",
      ],
    ],
  },
  {
    what: "refcounts zeroed before the L1 table",
    file: "drivers/qcow2/empty.ts",
    changes: [
      swapped(
        "      await zero(file, header.l1TableOffset, l1Clusters * clusterSize);\n",
        "      await zero(file, clusterSize, (total - 1) * clusterSize);\n",
        '      await state.event("empty_image_prepare");\n',
      ),
    ],
  },
  {
    what: "an empty image cut off first",
    file: "drivers/qcow2/empty.ts",
    changes: [
      [
        '      await state.event("l1_update");\n      await zero',
        "      await file.truncate?.(total * clusterSize);\n      await zero",
      ],
    ],
  },
  {
    what: "the header before a larger refcount table",
    file: "drivers/qcow2/refcount_blocks.ts",
    changes: [
      ["  await file.writev!(tableOffset, [table]);\n", ""],
      [
        "  refcounts.replaceTable(table);\n",
        "  await file.writev!(tableOffset, [table]);\n  refcounts.replaceTable(table);\n",
      ],
    ],
  },
  {
    what: "an old refcount table freed before the header leaves it",
    file: "drivers/qcow2/refcount_blocks.ts",
    changes: [
      [
        "  await refcounts.addClusters(old.offset / clusterSize, old.clusters, -1);\n",
        "",
      ],
      [
        '  await refcountCache.flush();\n  await host.event("refblock_alloc_switch',
        '  await refcounts.addClusters(old.offset / clusterSize, old.clusters, -1);\n  await refcountCache.flush();\n  await host.event("refblock_alloc_switch',
      ],
    ],
  },
  {
    what: "the entry of a refcount block before the block",
    file: "drivers/qcow2/refcount_blocks.ts",
    changes: [
      [
        '  await refcountCache.flush();\n  await host.event("refblock_alloc_hookup',
        '  await host.event("refblock_alloc_hookup',
      ],
      [
        "  refcounts.setBlockOffset(tableIndex, offset);\n}",
        "  await refcountCache.flush();\n  refcounts.setBlockOffset(tableIndex, offset);\n}",
      ],
    ],
  },
  {
    what: "refcount blocks freed before the table leaves them",
    file: "drivers/qcow2/refcount_blocks.ts",
    changes: [
      [
        "  await file.writev!(header.refcountTableOffset, [table]);\n  await file.flush?.();\n",
        "",
      ],
      [
        "    else refcounts.noteFree(cluster);\n  }\n",
        "    else refcounts.noteFree(cluster);\n  }\n  await refcountCache.flush();\n  await file.writev!(header.refcountTableOffset, [table]);\n  await file.flush?.();\n",
      ],
    ],
  },
  {
    what: "old refcounts freed before the header leaves them",
    file: "drivers/qcow2/refcount_width.ts",
    changes: [
      [
        `${FLUSH}    const old = oldStructure(state);\n`,
        "    const old = oldStructure(state);\n    for (const { offset, length } of old) {\n      await state.refcounts.free(offset, length);\n    }\n" +
        FLUSH,
      ],
      [
        "    state.refcounts.replaceTable(table);\n    for (const { offset, length } of old) {\n      await state.refcounts.free(offset, length);\n    }\n",
        "    state.refcounts.replaceTable(table);\n",
      ],
    ],
  },
  {
    what: "the header before new refcounts",
    file: "drivers/qcow2/refcount_width.ts",
    changes: [
      swapped(
        FLUSH,
        "    await state.changeHeader(structure.header);\n",
        "    const old = oldStructure(state);\n",
      ),
    ],
  },
  {
    what: "version 2 before zero clusters are gone",
    file: "drivers/qcow2/amend.ts",
    changes: [
      [
        "  try {\n    await expandZeroClusters",
        "  await state.changeHeader({ version: 2 });\n  header.version = 3;\n  try {\n    await expandZeroClusters",
      ],
    ],
  },
  {
    what: "no dirty bit before refcounts are written",
    file: "drivers/qcow2/state.ts",
    changes: [
      [
        "    await this.l2Cache.write();\n    await this.refcountCache.write();\n    await this.file.flush?.();\n    const { low, high } = this.header.incompatible;\n    const incompatible = { high, low: low & ~Incompatible.DIRTY };\n    await this.changeHeader({ incompatible });\n",
        "    const { low, high } = this.header.incompatible;\n    const incompatible = { high, low: low & ~Incompatible.DIRTY };\n    await this.changeHeader({ incompatible });\n    await this.l2Cache.write();\n    await this.refcountCache.write();\n    await this.file.flush?.();\n",
      ],
    ],
  },
  {
    what: "an autoclear feature gone after the first change",
    file: "drivers/qcow2/first_change.ts",
    changes: [
      swapped(
        "      await prepare();\n",
        "      await file.writev!(...args);\n",
      ),
    ],
  },
  {
    what: "entries before the zeroes of a raw data file",
    file: "drivers/qcow2/unmap.ts",
    changes: [
      ["    await writeZeroes(dataFile, start, end - start, { unmap });\n", ""],
      [
        "  changeRun(state, place, count, change, []);\n}",
        '  changeRun(state, place, count, change, []);\n  await state.l2Cache.flush();\n  if (typeof change !== "object") {\n    await writeZeroes(dataFile, start, end - start, { unmap: change !== "zero" });\n  }\n}',
      ],
    ],
  },
  {
    what: "the header before a repaired snapshot table",
    file: "drivers/qcow2/repair.ts",
    changes: [
      ["    await run.write(offset, table);\n", ""],
      [
        "    await file.flush?.();\n    header.snapshotCount",
        "    await file.flush?.();\n    await run.write(offset, table);\n    header.snapshotCount",
      ],
    ],
  },
  {
    what: "a repaired image clean before its refcounts are durable",
    file: "drivers/qcow2/check.ts",
    changes: [
      [
        "  await run.stored.flush();\n  // Before any",
        "  await markClean(run);\n  await run.stored.flush();\n  // Before any",
      ],
    ],
  },
  {
    what: "an overlay emptied before the base is durable",
    file: "core/jobs/commit.ts",
    driver: "qcow2",
    changes: [["  await job.request(() => base.node.flush?.());\n", ""]],
  },
  {
    what: "an overlay emptied before it is copied",
    file: "core/jobs/commit.ts",
    driver: "qcow2",
    changes: [
      [
        "  try {\n    await copyDown(job, from, to, options);\n",
        "  if (!keepOverlay) await job.request(() => empty(from.node, to.node));\n  try {\n    await copyDown(job, from, to, options);\n",
      ],
    ],
  },
  {
    what: "another backing file before the difference is copied",
    file: "core/jobs/rebase.ts",
    driver: "qcow2",
    changes: [
      [
        "  await new Merge(job, top",
        "  await changeBacking(top.node, backing);\n  await new Merge(job, top",
      ],
    ],
  },
];
