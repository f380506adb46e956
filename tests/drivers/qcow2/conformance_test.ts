import { createImage, MemoryStore } from "../../../mod.ts";
import { openNode, openProtocol } from "../../../core/open.ts";
import type { OptionValues } from "../../../core/options.ts";
import { conformance } from "../../conformance.ts";
import { DelayNode, Scheduler } from "../../delay.ts";
import { Random } from "../../model.ts";
import { TempDir } from "../../qemu.ts";

const VARIANTS: { readonly [name: string]: OptionValues } = {
  "with default options": {},
  "version 2": { compat: "v2" },
  "smallest clusters, 1-bit refcounts": { cluster_size: 512, refcount_bits: 1 },
  "largest clusters, 64-bit refcounts": {
    cluster_size: "2M",
    refcount_bits: 64,
  },
  "preallocated": { preallocation: "metadata" },
  "extended L2 entries": { extended_l2: true, cluster_size: 16384 },
  "extended L2 entries, preallocated": {
    extended_l2: true,
    preallocation: "metadata",
  },
};

for (const [name, options] of Object.entries(VARIANTS)) {
  conformance(`qcow2, ${name}`, {
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("qcow2", file, { size, ...options });
      const open = () => openNode({ driver: "qcow2", file });
      return { node: await open(), reopen: open };
    },
  });
}

conformance("qcow2, on a file", {
  async open(size) {
    const folder = new TempDir();
    const file = { driver: "file", filename: folder.file("disk.qcow2") };
    await createImage("qcow2", file, { size });
    const open = () => openNode({ driver: "qcow2", file });
    return {
      node: await open(),
      reopen: open,
      dispose: () => folder[Symbol.asyncDispose](),
    };
  },
});

for (const data_file_raw of [false, true]) {
  const name = data_file_raw ? "a raw data file" : "a data file";
  conformance(`qcow2, with ${name} and extended L2 entries`, {
    async open(size) {
      const folder = new TempDir();
      const filename = folder.file("disk.qcow2");
      await createImage("qcow2", filename, {
        size,
        extended_l2: true,
        data_file: folder.file("data"),
        data_file_raw,
      });
      const open = () => openNode(filename);
      return {
        node: await open(),
        reopen: open,
        dispose: () => folder[Symbol.asyncDispose](),
      };
    },
  });
}

conformance("qcow2, with small caches and slow requests", {
  async open(size) {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("qcow2", file, { size, cluster_size: 4096 });
    const random = new Random(size);
    const scheduler = new Scheduler(random);
    const open = async () =>
      openNode({
        driver: "qcow2",
        file: new DelayNode(await openProtocol(file), scheduler, random),
        "l2-cache-size": 0,
        "l2-cache-entry-size": 512,
        "refcount-cache-size": 0,
      });
    return { node: await open(), reopen: open };
  },
});
