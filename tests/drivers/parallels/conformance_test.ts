import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";

for (const cluster_size of [62 * 512, 65536, 1048576]) {
  conformance(`parallels (clusters of ${cluster_size})`, {
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("parallels", file, { size, cluster_size });
      const open = () => openNode({ driver: "parallels", file });
      return { node: await open(), reopen: open };
    },
  });
}
