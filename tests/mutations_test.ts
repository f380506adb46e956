import { assertEquals } from "@std/assert";
import { FORMATS, runMutations } from "./mutations.ts";

/** Images of each format that are changed; more with BDRV_HOSTILE_SEEDS. */
const COUNT = Number(Deno.env.get("BDRV_HOSTILE_SEEDS") ?? "250");

for (const format of FORMATS) {
  Deno.test(`changed bytes of a ${format} image lead to an error or to what was written`, async () => {
    assertEquals((await runMutations(format, 0, COUNT)).join("\n"), "");
  });
}
