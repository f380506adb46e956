/**
 * Wrong orders of the steps that change an image as a whole, or its header;
 * `tests/write_orders.ts` says what they are for.
 *
 * @module
 */
import { swapped, type WrongOrder } from "./wrong_order.ts";

export const WHOLE_WRONG_ORDERS: readonly WrongOrder[] = [
  // qcow2
  {
    what: "a snapshot's L1 table freed before the snapshot is gone",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      ["    await state.refcounts.free(entry.l1TableOffset, l1.length);\n", ""],
      [
        "  await writeTable(state, others).catch((error) => {\n",
        "  await state.refcounts.free(entry.l1TableOffset, l1.length);\n" +
        "  await writeTable(state, others).catch((error) => {\n",
      ],
    ],
  },
  {
    what: "COPIED flags cleared after the snapshot is in the table",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      swapped(
        "      await clearCopiedFlags(state);\n",
        "      await writeTable(state, [...state.snapshots, entry]);\n",
      ),
    ],
  },
  {
    what: "clusters of a snapshot counted after the disk has its L1 table",
    file: "drivers/qcow2/snapshots.ts",
    changes: [
      [
        "    await countTree(state, l1, 1).catch((error) => {\n",
        "    await Promise.resolve().catch((error) => {\n",
      ],
      [
        "    await state.overwrite(header.l1TableOffset, replaced, old);\n",
        "    await state.overwrite(header.l1TableOffset, replaced, old);\n" +
        "    await countTree(state, viewOf(l1), 1);\n",
      ],
    ],
  },
  {
    what: "the dirty bit after the change that it is for",
    file: "drivers/qcow2/state.ts",
    changes: [
      ["    if (this.#isMarked) await this.#setDirty();\n", ""],
      [
        "      result = await change(undo);\n",
        "      result = await change(undo);\n" +
        "      if (this.#isMarked) await this.#setDirty();\n",
      ],
    ],
  },
  {
    what: "version 3 before the snapshots' entries have what it requires",
    file: "drivers/qcow2/amend.ts",
    changes: [
      ["  await state.changeHeader({ version: 3 });\n", ""],
      [
        "  progress(0, 2);\n",
        "  progress(0, 2);\n  await state.changeHeader({ version: 3 });\n",
      ],
    ],
  },
  {
    what: "the header before a bitmap directory",
    file: "drivers/qcow2/bitmaps/store.ts",
    changes: [
      [
        "    await file.writev!(offset, iov);\n    return offset;\n",
        "    this.late = () => file.writev!(offset, iov);\n    if (isLate) return offset;\n    await this.late();\n    return offset;\n",
      ],
      [
        "  async #write(...parts: Uint8Array[]): Promise<number> {\n",
        '  late?: () => Promise<void>;\n  async #write(...parts: Uint8Array[]): Promise<number> {\n    const isLate = new Error().stack!.includes("directory");\n',
      ],
      [
        "      autoclear: { high, low: (low | Autoclear.BITMAPS) >>> 0 },\n    });\n",
        "      autoclear: { high, low: (low | Autoclear.BITMAPS) >>> 0 },\n    });\n    await this.late!();\n",
      ],
    ],
  },
  {
    what: "the header before the blocks of a larger refcount table",
    file: "drivers/qcow2/refcount_blocks.ts",
    changes: [
      [
        "    await file.writev!(offset, [bytes]);\n    writeUint64(viewOf(table)",
        "    late.push(() => file.writev!(offset, [bytes]));\n    writeUint64(viewOf(table)",
      ],
      [
        "  for (let block = 0; block < blocks; block++) {\n    const bytes",
        "  const late: (() => Promise<void>)[] = [];\n" +
        "  for (let block = 0; block < blocks; block++) {\n    const bytes",
      ],
      [
        "  refcounts.replaceTable(table);\n",
        "  for (const write of late) await write();\n  refcounts.replaceTable(table);\n",
      ],
    ],
  },
  {
    what: "a data file cut off before the disk is smaller",
    file: "drivers/qcow2/resize.ts",
    changes: [
      [
        "  await state.changeHeader({ size });\n  await fitDataFile(state, size);\n",
        "  await fitDataFile(state, size);\n  await state.changeHeader({ size });\n",
      ],
    ],
  },
  {
    what: "a larger disk before its data file",
    file: "drivers/qcow2/resize.ts",
    changes: [
      ["    await fitDataFile(state, size);\n    using _", "    using _"],
      [
        "  header.size = oldSize;\n  await state.changeHeader({ size });\n}",
        "  header.size = oldSize;\n  await state.changeHeader({ size });\n  await fitDataFile(state, size);\n}",
      ],
    ],
  },
  {
    what: "entries before the zeroes of expanded clusters",
    file: "drivers/qcow2/expand_zeroes.ts",
    changes: [
      [
        "      await zeroCluster(state, host!, guest);\n",
        "      late.push(() => zeroCluster(state, host!, guest));\n",
      ],
      [
        "  const fresh = await takeClusters(state, table, wanted);\n",
        "  const fresh = await takeClusters(state, table, wanted);\n  const late: (() => Promise<void>)[] = [];\n",
      ],
      [
        "    await file.writev!(offset, [bytes]);\n",
        "    await file.writev!(offset, [bytes]);\n    for (const write of late) await write();\n",
      ],
    ],
  },
  {
    what: "clusters freed before expanded tables leave them",
    file: "drivers/qcow2/expand_zeroes.ts",
    changes: [
      ["  await release(state, table, freed);\n}", "}"],
      [
        "  const fresh = await takeClusters(state, table, wanted);\n",
        "  await release(state, table, freed);\n" +
        "  await state.flushCaches();\n" +
        "  const fresh = await takeClusters(state, table, wanted);\n",
      ],
    ],
  },
  {
    what: "the header before a rebuilt refcount table",
    file: "drivers/qcow2/rebuild.ts",
    changes: [
      ['    await this.#write(offset, bytes, "reftable");\n', ""],
      [
        "    await file.flush?.();\n    header.refcountTableOffset = offset;\n",
        '    await this.#write(offset, bytes, "reftable");\n    await file.flush?.();\n    header.refcountTableOffset = offset;\n',
      ],
    ],
  },
  {
    what: "an old snapshot table freed before a repair leaves it",
    file: "drivers/qcow2/repair.ts",
    changes: [
      ["    await freeOldTable(run, old.offset, old.length);\n", ""],
      [
        "    const pointer = allocate(12);\n    viewOf(pointer).setUint32(0, snap",
        "    await freeOldTable(run, old.offset, old.length);\n" +
        "    await run.stored.flush();\n" +
        "    const pointer = allocate(12);\n    viewOf(pointer).setUint32(0, snap",
      ],
    ],
  },

  // luks
  ...["luks", "qcow2"].map((driver) => ({
    what: "a key slot before its key material",
    file: "core/crypto/luks_volume.ts",
    driver,
    changes: [
      swapped(
        "    await this.#store.write(slots[index].offset, material);\n",
        "    await this.#change(index, { isActive: true, iterations, salt });\n",
      ),
    ],
  })),
  {
    what: "key material overwritten before its slot is inactive",
    file: "core/crypto/luks_volume.ts",
    driver: "luks",
    changes: [
      [
        "    await this.#change(index, { isActive: false, iterations: 0, salt });\n",
        "",
      ],
      [
        "      await this.#store.write(offset, randomBytes(length));\n    }\n",
        "      await this.#store.write(offset, randomBytes(length));\n    }\n" +
        "    await this.#change(index, { isActive: false, iterations: 0, salt });\n",
      ],
    ],
  },

  // parallels
  {
    what: "an image closed before its table is written",
    file: "drivers/parallels/driver.ts",
    changes: [
      [
        "    await this.#table.flush();\n    const { file } = this.children;\n    // Losing",
        "    const { file } = this.children;\n    // Losing",
      ],
      [
        "    await file.writev!(0, [this.#header.bytes]);\n    await file.flush?.();\n  }\n}",
        "    await file.writev!(0, [this.#header.bytes]);\n    await file.flush?.();\n    await this.#table.flush();\n  }\n}",
      ],
    ],
  },
  {
    what: "an extension dropped after the write that outdates it",
    file: "drivers/parallels/driver.ts",
    changes: [
      swapped(
        "    if (this.#hasExtension) await this.#dropExtension();\n",
        "    await super.write(offset, iov, flags);\n",
      ),
    ],
  },

  // vdi
  {
    what: "the map before the header counts its blocks",
    file: "drivers/vdi/block_table.ts",
    changes: [
      [
        "    await file.writev!(0, [this.#header.bytes]);\n    await file.flush?.();\n    for",
        "    await file.flush?.();\n    for",
      ],
      [
        "    await file.flush?.();\n  }\n}",
        "    await file.flush?.();\n    await file.writev!(0, [this.#header.bytes]);\n    await file.flush?.();\n  }\n}",
      ],
    ],
  },

  // qed
  {
    what: "an image clean before its tables are written",
    file: "drivers/qed/driver.ts",
    changes: [
      swapped(
        "    await this.flush();\n",
        "    await markClean(this.children.file, this.#header);\n",
      ),
    ],
  },
  {
    what: "clusters allocated before the header asks for a check",
    file: "core/two_level_map.ts",
    driver: "qed",
    changes: [
      ["    await this.#layout.allocating?.();\n", ""],
      [
        "        await this.relieve();\n      },\n",
        "        await this.relieve();\n        await this.#layout.allocating?.();\n      },\n",
      ],
    ],
  },
  {
    what: "the header before the name of another backing file",
    file: "drivers/qed/driver.ts",
    changes: [
      [
        "      await file.writev!(offset, [bytes]);\n      await file.flush?.();\n    }\n",
        "    }\n",
      ],
      [
        "      header.backingFile = name;\n    });\n",
        "      header.backingFile = name;\n    });\n    await file.flush?.();\n    if (bytes.length > 0) await file.writev!(offset, [bytes]);\n",
      ],
    ],
  },
];
