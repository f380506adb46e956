import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";

for (const [cluster_size, table_size] of [[4096, 1], [65536, 4]]) {
  conformance(`qed (clusters of ${cluster_size})`, {
    onlyGrows: true,
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("qed", file, { size, cluster_size, table_size });
      const open = () => openNode({ driver: "qed", file });
      return { node: await open(), reopen: open };
    },
  });
}
