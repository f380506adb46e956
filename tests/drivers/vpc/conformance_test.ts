import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";

for (const subformat of ["dynamic", "fixed"] as const) {
  conformance(`vpc (${subformat})`, {
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      const options = { size, subformat, force_size: true };
      await createImage("vpc", file, options);
      const open = () => openNode({ driver: "vpc", file });
      return { node: await open(), reopen: open };
    },
  });
}
