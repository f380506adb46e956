import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";

for (const subformat of ["dynamic", "fixed"] as const) {
  conformance(`vhdx (${subformat})`, {
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      const options = { size, subformat, block_size: 1024 * 1024 };
      await createImage("vhdx", file, options);
      const open = () => openNode({ driver: "vhdx", file });
      return { node: await open(), reopen: open };
    },
  });
}
