/** How commands report their progress. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { BDRV, run, runOk, TempDir, withoutUnlocked } from "../qemu.ts";

/** A raw file of 8 MiB, all data. */
async function makeSource(dir: TempDir): Promise<string> {
  const path = dir.file("source");
  await Deno.writeFile(path, new Uint8Array(8 * 1024 * 1024).fill(7));
  return path;
}

function percents(lines: string): number[] {
  return lines.trimEnd().split("\n").map((line) => JSON.parse(line).percent);
}

Deno.test("--progress=json writes an object a line to standard error", async () => {
  await using dir = await new TempDir();
  const source = await makeSource(dir);
  const args = [
    "convert",
    "--progress=json",
    "-f",
    "raw",
    source,
    dir.file("t"),
  ];
  const { code, stdout, stderr } = await run([...BDRV, ...args]);
  assertEquals([code, stdout], [0, ""]);
  const seen = percents(stderr);
  assertEquals([seen[0], seen.at(-1)], [0, 100]);
  assert(seen.length > 3);
  assertEquals(seen, seen.toSorted((a, b) => a - b));
});

Deno.test("--progress=json does not touch what a command prints", async () => {
  await using dir = await new TempDir();
  const source = await makeSource(dir);
  const args = ["compare", "--progress=json", "-f", "raw", "-F", "raw"];
  const { stdout, stderr } = await run([...BDRV, ...args, source, source]);
  assertEquals(stdout, "Images are identical.\n");
  assertEquals(percents(stderr)[0], 0);
});

Deno.test("--progress is -p; formats other than json are refused", async () => {
  await using dir = await new TempDir();
  const source = await makeSource(dir);
  const convert = (...args: string[]) =>
    run([...BDRV, ...args, "-f", "raw", source, dir.file("t")]);
  const line = (await convert("convert", "--progress")).stdout;
  assertEquals((await convert("convert", "-p")).stdout, line);
  assertMatch(line, /^ {4}\(0\.00\/100%\)\r.* {4}\(100\.00\/100%\)\r\n$/s);
  assertEquals((await convert("convert", "-q", "--progress=json")).stderr, "");
  assertEquals(
    (await convert("convert", "--progress=xml")).stderr,
    "bdrv: Invalid progress format: xml\n",
  );
  assertEquals(
    (await convert("qemu-img", "convert", "--progress=json")).stderr,
    "qemu-img: unrecognized option '--progress=json'\n" +
      "Try 'qemu-img --help' for more information\n",
  );
});

Deno.test("SIGUSR1 makes a command without -p print its progress", async () => {
  await using dir = await new TempDir();
  const source = dir.file("source");
  await runOk([...BDRV, "create", "-q", source, "4G"]);
  const child = new Deno.Command(BDRV[0], {
    args: [
      ...BDRV.slice(1),
      ...["convert", "-r", "1M", "-S", "0", "-f", "raw", source, dir.file("t")],
    ],
    stdin: "null",
    stderr: "piped",
  }).spawn();
  const reader = child.stderr.getReader();
  const target = () => Deno.stat(dir.file("t")).then(() => true, () => false);
  while (!await target()) await new Promise((done) => setTimeout(done, 20));
  await new Promise((done) => setTimeout(done, 300));
  child.kill("SIGUSR1");
  let said = "";
  while (said === "") {
    const { value } = await reader.read();
    said = withoutUnlocked(new TextDecoder().decode(value));
  }
  child.kill("SIGTERM");
  await reader.cancel();
  assertEquals((await child.status).code, 143);
  assertMatch(said, /^ {4}\(\d+\.\d\d\/100%\)\n$/);
});
