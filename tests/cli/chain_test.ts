/** Long chains of backing files. */
import { assertEquals, assertMatch } from "@std/assert";
import { createImage, MemoryStore, openImage } from "../../mod.ts";
import { BDRV, run, runOk, TempDir } from "../qemu.ts";

const CLUSTER = 512;

/**
 * Images that name each other, from the base `0.qcow2` up. They are copies of
 * one image with the names patched, which is faster than creating each.
 */
async function makeChain(dir: TempDir, count: number): Promise<string> {
  const name = (index: number) => `${String(index).padStart(6, "0")}.qcow2`;
  await createImage("qcow2", dir.file(name(0)), {
    size: 1 << 16,
    cluster_size: CLUSTER,
  });
  {
    await using base = await openImage(dir.file(name(0)), { format: "qcow2" });
    await base.write(0, new Uint8Array(CLUSTER).fill(7));
  }
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, {
    size: 1 << 16,
    cluster_size: CLUSTER,
    backing_file: name(0),
    backing_fmt: "qcow2",
  });
  await using copy = await openImage({ driver: "raw", file });
  const bytes = await copy.read(0, copy.size);
  const text = new TextDecoder("latin1").decode(bytes);
  const at = text.indexOf(name(0));
  for (let index = 1; index < count; index++) {
    bytes.set(new TextEncoder().encode(name(index - 1)), at);
    await Deno.writeFile(dir.file(name(index)), bytes);
  }
  return name(count - 1);
}

Deno.test("chains of 4,000 images are opened, read and written", async () => {
  await using dir = new TempDir();
  const { path: cwd } = dir;
  const top = await makeChain(dir, 4000);
  const bdrv = (...args: string[]) => runOk([...BDRV, ...args], { cwd });
  await bdrv("convert", "-O", "raw", top, "a.raw");
  assertEquals((await Deno.readFile(dir.file("a.raw")))[511], 7);
  assertEquals(await bdrv("compare", top, "a.raw"), "Images are identical.\n");
  await bdrv("io", "-c", "read -P 7 0 512", "-c", "write 4k 512", top);
  await bdrv("check", top);
  await bdrv("commit", top);
  const described = await bdrv("info", "--backing-chain", "--output=json", top);
  assertEquals(JSON.parse(described).length, 4000);
});

Deno.test("--max-chain limits chains, and too many open files make an error of one line", async () => {
  await using dir = new TempDir();
  const { path: cwd } = dir;
  const top = await makeChain(dir, 300);
  const limited = (limit: string) =>
    run([...BDRV, "map", `--max-chain=${limit}`, top], { cwd });
  assertEquals((await limited("300")).code, 0);
  assertMatch((await limited("299")).stderr, /longer than 299 images\n$/);
  assertMatch((await limited("-1")).stderr, /Invalid --max-chain: '-1'/);
  if (Deno.build.os !== "linux") return;
  const few = `ulimit -n 128; exec "$@"`;
  const { code, stderr } = await run(
    ["sh", "-c", few, "sh", ...BDRV, "map", top],
    { cwd },
  );
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /^bdrv: Could not open '.*': Could not open '.*': Too many open files\n$/,
  );
});
