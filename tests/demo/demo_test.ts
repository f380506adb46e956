/** The demo, and that its commands work when copied. @module */
import { assertEquals } from "@std/assert";
import { run, runOk, TempDir } from "../qemu.ts";

const DEMO = new URL("demo.ts", import.meta.url).pathname;
const CONFIG = new URL("../../deno.json", import.meta.url).pathname;

Deno.test("the demo's commands work when copied", async () => {
  await using dir = new TempDir();
  const folder = dir.file("a folder");
  const text = await runOk(
    [Deno.execPath(), "run", "-A", `--config=${CONFIG}`, DEMO, folder],
    { env: { NO_COLOR: "1" } },
  );
  const lines = text.split("\n");
  const commands = [
    ...lines.filter((line) => /^(cd |bdrv\(\))/.test(line)),
    ...lines.filter((line) => line.startsWith("$ ")).map((line) =>
      line.slice(2)
    ),
  ];
  const script = `set -u\n${commands.join("\n")}\n`;
  const { code, stdout, stderr } = await run(["sh", "-c", script]);
  assertEquals([code, stderr], [0, ""]);
  assertEquals(stdout.split("\n").at(-2), "Images are identical.");
});
