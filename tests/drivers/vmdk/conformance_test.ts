import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";
import { TempDir } from "../../qemu.ts";

for (const zeroed_grain of [false, true]) {
  conformance(`vmdk (zeroed grains: ${zeroed_grain})`, {
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("vmdk", file, { size, zeroed_grain });
      const open = () => openNode({ driver: "vmdk", file });
      return { node: await open(), reopen: open };
    },
  });
}

for (const subformat of ["monolithicFlat", "twoGbMaxExtentSparse"]) {
  conformance(`vmdk (${subformat})`, {
    async open(size) {
      const folder = new TempDir();
      const file = folder.file("disk.vmdk");
      await createImage("vmdk", file, { size, subformat });
      const open = () => openNode(file);
      const dispose = () => folder[Symbol.asyncDispose]();
      return { node: await open(), reopen: open, dispose };
    },
  });
}
