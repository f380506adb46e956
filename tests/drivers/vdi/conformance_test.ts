import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";

for (const isStatic of [false, true]) {
  conformance(`vdi (static ${isStatic})`, {
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("vdi", file, { size, static: isStatic });
      const open = () => openNode({ driver: "vdi", file });
      return { node: await open(), reopen: open };
    },
  });
}
