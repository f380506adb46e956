import { createImage, MemoryStore } from "../../../mod.ts";
import { openNode } from "../../../core/open.ts";
import type { OptionValues } from "../../../core/options.ts";
import { conformance } from "../../conformance.ts";

const VARIANTS: { readonly [name: string]: OptionValues } = {
  "as it is by default": {},
  "version 2": { compat: "v2" },
  "smallest clusters, 1-bit refcounts": { cluster_size: 512, refcount_bits: 1 },
  "largest clusters, 64-bit refcounts": {
    cluster_size: "2M",
    refcount_bits: 64,
  },
  "preallocated": { preallocation: "metadata" },
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
