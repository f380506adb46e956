/** Mere hints on where to look do not fail requests. */
import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  convert,
  createImage,
  MemoryStore,
  openImage,
  type Source,
} from "../../../mod.ts";
import { filterNode } from "../../../core/filter.ts";
import type { BlockNode } from "../../../core/node.ts";
import { qemuTest, run, runOk, TempDir } from "../../qemu.ts";
import { BDRV } from "../../qemu.ts";
import { kindOf } from "../../extents.ts";

const MIB = 1024 * 1024;

/** A file that claims to take next to no space on disk. */
function asSparse(file: BlockNode): BlockNode {
  return filterNode(file.driver, file, {
    info: () => Promise.resolve({ actualSize: 4096 }),
  });
}

/** Make the first entry of the refcount table point into a cluster. */
function misalign(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const table = Number(view.getBigUint64(48));
  view.setBigUint64(table, view.getBigUint64(table) | 0x200n);
}

/** A sparse, preallocated image of 4 MiB whose refcounts are damaged. */
async function damagedImage(): Promise<Source> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, {
    size: 4 * MIB,
    preallocation: "metadata",
  });
  {
    await using image = await openImage({ driver: "qcow2", file });
    await image.write(MIB, new Uint8Array(MIB).fill(5));
  }
  const head = new Uint8Array(256 * 1024);
  store.read(0, head);
  misalign(head);
  store.write(0, head);
  const memory = await openImage(file);
  return { driver: "qcow2", file: asSparse(memory.node) };
}

for (const readOnly of [true, false]) {
  const how = readOnly ? "read-only" : "for writing";
  Deno.test(`damaged refcounts do not fail queries for holes, opened ${how}`, async () => {
    const reports: string[] = [];
    const report = (line: string) => reports.push(line);
    await using image = await openImage(await damagedImage(), {
      readOnly,
      report,
    });
    const extents = await Array.fromAsync(image.extents());
    assertEquals(extents.map((one) => [kindOf(one), one.length]), [
      ["data", 4 * MIB],
    ]);
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("raw", file, { size: 4 * MIB });
    await using target = await openImage({ driver: "raw", file });
    await convert([image.node], target.node, { targetIsZero: true });
    assertEquals(await target.read(2 * MIB - 1, 2), new Uint8Array([5, 0]));
    // Reported once; a query does not mark the image.
    assertEquals(reports, [
      "qcow2: Image is corrupt: Refblock offset 0x20200 unaligned (reftable " +
      "index: 0); further non-fatal corruption events will be suppressed",
    ]);
    if (!readOnly) await image.write(MIB, new Uint8Array(4096));
  });
}

Deno.test("requests that need the refcounts still fail", async () => {
  await using image = await openImage(await damagedImage());
  await assertRejects(
    () => image.node.snapshots!.create({ name: "a" }),
    BlockError,
  );
});

Deno.test("a file that cannot be truncated does not keep a disk from shrinking", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size: 4 * MIB });
  const memory = await openImage(file);
  const fixed = filterNode(memory.node.driver, memory.node, {
    truncate: () => Promise.reject(new BlockError("ENOTSUP", "It is fixed")),
  });
  const reports: string[] = [];
  await using image = await openImage({ driver: "qcow2", file: fixed }, {
    report: (line) => reports.push(line),
  });
  await image.write(0, new Uint8Array(4 * MIB).fill(1));
  await image.resize(MIB);
  assertEquals(image.size, MIB);
  assertEquals(await image.read(MIB - 1, 1), new Uint8Array([1]));
  assertEquals(reports, [
    "warning: Failed to truncate the tail of the image: It is fixed",
  ]);
});

qemuTest(
  "a sparse image with damaged refcounts works as with qemu-img",
  async () => {
    await using dir = new TempDir();
    const file = dir.file("disk.qcow2");
    await runOk([
      ..."qemu-img create -q -f qcow2 -o preallocation=metadata".split(" "),
      file,
      "4M",
    ]);
    const bytes = Deno.readFileSync(file);
    misalign(bytes);
    Deno.writeFileSync(dir.file("copy"), bytes);
    await runOk(["cp", "--sparse=always", dir.file("copy"), file]);
    for (
      const call of [
        "map disk.qcow2",
        "map --output=json disk.qcow2",
        "convert -O raw disk.qcow2 disk.raw",
        "compare disk.qcow2 disk.raw",
        "measure -O qcow2 disk.qcow2",
      ]
    ) {
      const at = { cwd: dir.path };
      const expected = await run(["qemu-img", ...call.split(" ")], at);
      const ours = [...BDRV, "qemu-img", ...call.split(" ")];
      assertEquals(await run(ours, at), expected);
    }
  },
);
