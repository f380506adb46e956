import { assertEquals } from "@std/assert";
import { mustSkip } from "./qemu.ts";
import { FORMATS, runMutations } from "./mutations.ts";

/** Images of each format that are changed; more with BDRV_HOSTILE_SEEDS. */
const COUNT = Number(Deno.env.get("BDRV_HOSTILE_SEEDS") ?? "120");

for (const format of FORMATS) {
  Deno.test({
    name:
      `changed bytes of a ${format} image lead to an error or to what is right`,
    ignore: format === "xz" && mustSkip({ tools: ["xz"] }),
    fn: async () => {
      assertEquals((await runMutations(format, 0, COUNT)).join("\n"), "");
    },
  });
}
