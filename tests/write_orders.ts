/**
 * Wrong orders of writes: steps that are swapped, or done too early or too
 * late. `tests/barriers.ts` looks whether the tests notice each.
 *
 * @module
 */
import { QCOW2_WRONG_ORDERS } from "./write_orders_qcow2.ts";
import { WHOLE_WRONG_ORDERS } from "./write_orders_whole.ts";
import { swapped, type WrongOrder } from "./wrong_order.ts";

/** A file of core is in the hands of several drivers. */
const sharedBy = (
  drivers: readonly string[],
  order: Omit<WrongOrder, "driver">,
): WrongOrder[] => drivers.map((driver) => ({ ...order, driver }));

const PUT = "      const first = head ? start : offset;\n";

export const WRONG_ORDERS: readonly WrongOrder[] = [
  ...sharedBy(["qcow2", "vmdk", "qed", "qcow"], {
    what: "entries before their data",
    file: "core/access.ts",
    changes: [
      [PUT, `      await room.commit();\n${PUT}`],
      ["    await room.commit();\n  }\n", "  }\n"],
    ],
  }),

  ...QCOW2_WRONG_ORDERS,
  ...WHOLE_WRONG_ORDERS,

  // vhdx
  {
    what: "the table before the log is active",
    file: "drivers/vhdx/log.ts",
    changes: [
      [
        "    for (const { offset, bytes } of changes) {\n      await file.writev!(offset, [bytes]);\n    }\n",
        "",
      ],
      [
        "    await this.#headers.change({ logGuid: guid });\n",
        "    for (const { offset, bytes } of changes) {\n      await file.writev!(offset, [bytes]);\n    }\n    await this.#headers.change({ logGuid: guid });\n",
      ],
    ],
  },
  {
    what: "the log empty before the table is written",
    file: "drivers/vhdx/log.ts",
    changes: [
      [
        "    for (const { offset, bytes } of changes) {\n      await file.writev!(offset, [bytes]);\n    }\n    await file.flush?.();\n",
        "",
      ],
      [
        "    await this.#headers.change({ logGuid: NO_GUID });\n    await file.flush?.();\n  }\n}",
        "    await this.#headers.change({ logGuid: NO_GUID });\n    for (const { offset, bytes } of changes) {\n      await file.writev!(offset, [bytes]);\n    }\n    await file.flush?.();\n  }\n}",
      ],
    ],
  },
  {
    what: "the log active before its entry",
    file: "drivers/vhdx/log.ts",
    changes: [
      swapped(
        "    await file.writev!(this.#log.offset + at, [entry]);\n",
        "    await this.#headers.change({ logGuid: guid });\n",
        "    await file.flush?.();\n",
      ),
    ],
  },
  {
    what: "a replayed log empty before its changes are done",
    file: "drivers/vhdx/log.ts",
    changes: [
      [
        "    for (const entry of pending) {\n      for await",
        "    await this.#headers.change({ logGuid: NO_GUID, fileWriteGuid: newGuid() });\n    for (const entry of pending) {\n      for await",
      ],
    ],
  },
  {
    what: "log entries replayed newest first",
    file: "drivers/vhdx/log.ts",
    changes: [
      [
        "    for (const entry of pending) {\n      for await",
        "    for (const entry of pending.toReversed()) {\n      for await",
      ],
    ],
  },
  {
    what: "a log entry over the last one",
    file: "drivers/vhdx/log.ts",
    changes: [["    this.#half = 1 - this.#half;\n", ""]],
  },
  {
    what: "a header over the current one",
    file: "drivers/vhdx/headers.ts",
    changes: [[
      "    const place = 1 - this.#place;\n",
      "    const place = this.#place;\n",
    ]],
  },
  {
    what: "data before the header that says so",
    file: "drivers/vhdx/driver.ts",
    changes: [
      swapped(
        "    if (!this.#hasChanged) await this.#beginChanges();\n",
        "    await super.write(offset, iov, flags);\n",
      ),
    ],
  },
  {
    what: "a file as long as its log wants after the header says it is done",
    file: "drivers/vhdx/log.ts",
    changes: [
      [
        "    if (file.size < lastSize) await file.truncate!(lastSize);\n    await file.flush?.();\n    await this.#headers.change({ logGuid: NO_GUID, fileWriteGuid: newGuid() });\n",
        "    await file.flush?.();\n    await this.#headers.change({ logGuid: NO_GUID, fileWriteGuid: newGuid() });\n    if (file.size < lastSize) await file.truncate!(lastSize);\n",
      ],
    ],
  },
  {
    what: "a footer after the table that needs its place",
    file: "core/block_table.ts",
    driver: "vpc",
    changes: [
      [
        "    await this.endFile();\n    if (!this.isDirty) return await this.file.flush?.();\n    await this.table.writeChanges((changes) => this.write(changes));\n",
        "    if (!this.isDirty) return await this.file.flush?.();\n    await this.table.writeChanges((changes) => this.write(changes));\n    await this.endFile();\n",
      ],
    ],
  },
  ...sharedBy(["vpc", "vdi", "parallels"], {
    what: "changes of the table that come while it is written",
    file: "core/paged_table.ts",
    changes: [
      [
        "const bytes = new Uint8Array(page.buffer, start, unit).slice();",
        "const bytes = new Uint8Array(page.buffer, start, unit);",
      ],
    ],
  }),

  // vmdk
  ...sharedBy(["vmdk", "qcow", "qed"], {
    what: "changes of tables that come while the data is made durable",
    file: "core/table_pages.ts",
    changes: [
      [
        "const bytes = new Uint8Array(buffer, start, SECTOR_SIZE).slice();",
        "const bytes = new Uint8Array(buffer, start, SECTOR_SIZE);",
      ],
    ],
  }),
  ...sharedBy(["vmdk", "qcow", "qed"], {
    what: "tables before the data is durable",
    file: "core/table_pages.ts",
    changes: [
      [
        "      await file.flush?.();\n      if (tableWrites",
        "      if (tableWrites",
      ],
    ],
  }),
  {
    what: "data before the content id says so",
    file: "drivers/vmdk/node.ts",
    changes: [
      swapped(
        "    if (!this.#isMarked) await this.#mark();\n",
        "    await this.#access.writev(offset, iov, flags);\n",
      ),
    ],
  },
  {
    what: "entries of a stream before their grains",
    file: "drivers/vmdk/sparse_extent.ts",
    changes: [
      ["    await this.file.writev!(start, parts);\n", ""],
      [
        "    if (this.#pages.isFull) await this.flush();\n  }\n\n  flush()",
        "    if (this.#pages.isFull) await this.flush();\n    await this.file.writev!(start, parts);\n  }\n\n  flush()",
      ],
    ],
  },
  {
    what: "a footer before the grain directory",
    file: "drivers/vmdk/stream.ts",
    changes: [
      swapped(
        "    yield* this.#put(bytes);\n",
        "    yield* this.#marker(1, MARKER.FOOTER);\n    yield* this.#put(this.#header(directory));\n",
      ),
    ],
  },
  {
    what: "the end of a grain's file after the grain",
    file: "drivers/vmdk/sparse_extent.ts",
    changes: [[
      "    if (this.file.size < end) await this.file.truncate!(end);\n",
      "",
    ]],
  },

  // vpc
  {
    what: "the table before the bitmaps of new blocks",
    file: "drivers/vpc/block_table.ts",
    changes: [
      [
        "      await this.#writeNewBitmaps();\n      await this.file.flush?.();\n",
        "      await this.file.flush?.();\n",
      ],
      [
        "      await this.file.flush?.();\n    });",
        "      await this.#writeNewBitmaps();\n      await this.file.flush?.();\n    });",
      ],
    ],
  },
  {
    what: "the table before the footer is moved",
    file: "drivers/vpc/block_table.ts",
    changes: [
      [
        "  protected override endFile(): Promise<void> {\n    return this.space.trim(this.#footer.bytes);\n",
        "  protected override endFile(): Promise<void> {\n    return this.space.trim();\n",
      ],
    ],
  },
];
