/**
 * Files always end with a whole sector: a program that sees the file as a
 * device would miss the rest.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { createImage, MemoryStore, openImage } from "../../mod.ts";

const SIZE = 3_000_320;
const FORMATS = [
  ["raw", {}],
  ["qcow", {}],
  ["qcow2", { cluster_size: 512 }],
  ["qed", {}],
  ["vdi", {}],
  ["vhdx", {}],
  ["vpc", {}],
  ["vpc", { subformat: "fixed" }],
  ["vmdk", {}],
  ["vmdk", { subformat: "streamOptimized" }],
  ["parallels", {}],
] as const;

for (const [format, options] of FORMATS) {
  const name = [format, ...Object.values(options)].join(" ");
  Deno.test(`files end with a whole sector: ${name}`, async () => {
    const store = new MemoryStore();
    const file = { driver: "memory", store };
    await createImage(format as string, file, { size: SIZE, ...options });
    await using image = await openImage({ driver: format, file });
    const { clusterSize = 65536 } = await image.info();
    const cluster = new Uint8Array(Math.min(clusterSize, 65536)).fill(7);
    for (let i = 1; i < 4; i++) {
      if (image.node.writeCompressed && clusterSize <= 65536) {
        await image.writeCompressed(i * clusterSize, cluster);
      }
      if (format === "vmdk" && "subformat" in options) continue;
      await image.write(1_000_001 + i * 200_000, cluster.subarray(0, 77));
    }
    if (image.node.writeCompressed && clusterSize <= 65536) {
      await image.writeCompressed(6 * clusterSize, cluster);
    }
    await image.close();
    assertEquals(store.size % 512, 0, `${store.size}`);
  });
}
