import { kill, WORKS } from "./kills.ts";

Deno.test("killed programs leave images sound", async () => {
  await kill(Object.keys(WORKS).length, 1);
});
