import { assertEquals } from "@std/assert";
import { mustSkip } from "./qemu.ts";
import { FORMATS, runMutations } from "./mutations.ts";

/** How many images of each format are mutated; BDRV_HOSTILE_SEEDS sets more. */
const COUNT = Number(Deno.env.get("BDRV_HOSTILE_SEEDS") ?? "120");

for (const format of FORMATS) {
  Deno.test({
    name: `a mutated ${format} image gives an error, or the right result`,
    ignore: format === "xz" && mustSkip({ tools: ["xz"] }),
    fn: async () => {
      assertEquals((await runMutations(format, 0, COUNT)).join("\n"), "");
    },
  });
}
