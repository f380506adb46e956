/**
 * What the command line must do on any runtime.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { run, runOk, type TempDir } from "../qemu.ts";

/** Test the program, comparing it with qemu-img. */
export async function commandLine(
  bdrv: readonly string[],
  dir: TempDir,
): Promise<void> {
  const cwd = dir.path;
  const ours = async (...args: string[]) =>
    await runOk([...bdrv, ...args], { cwd });
  const outcome = async (...args: string[]) => {
    const { code, stderr } = await run([...bdrv, ...args], { cwd });
    return [code, stderr] as const;
  };
  const data = new Uint8Array(2 << 20).map((_, i) => (i * i) >> 7);
  Deno.writeFileSync(dir.file("disk"), data);

  assertMatch(await ours("--version"), /^bdrv \d/);
  assert((await ours("--help")).includes("convert"));
  for (const type of ["zlib", "zstd"]) {
    // Images with QEMU's clusters, and with ours.
    await runOk(
      ["qemu-img", "convert", "-c", "-O", "qcow2", "-o"].concat(
        `compression_type=${type}`,
        "disk",
        "theirs",
      ),
      { cwd },
    );
    await ours("convert", "-O", "raw", "theirs", "plain");
    assertEquals(Deno.readFileSync(dir.file("plain")), data);
    const how = `compression_type=${type}`;
    await ours("convert", "-c", "-O", "qcow2", "-o", how, "disk", "ours");
    await runOk(["qemu-img", "compare", "disk", "ours"], { cwd });
    await runOk(["qemu-img", "check", "ours"], { cwd });
  }
  const stand = (...args: string[]) => ours("qemu-img", ...args);
  for (
    const args of [["info", "ours"], ["map", "--output=json", "ours"], [
      "check",
      "ours",
    ]]
  ) {
    await stand(...args);
  }
  const info = JSON.parse(await ours("info", "--output=json", "ours"));
  assertEquals([info.format, info["virtual-size"]], ["qcow2", data.length]);
  await ours("snapshot", "-c", "one", "ours");
  assert((await ours("snapshot", "-l", "ours")).includes("one"));
  const io = await ours("qemu-io", "-c", "write -q -P 7 0 64k", "ours");
  assertEquals(io, "");
  const script = { cwd, stdin: "read -q -P 7 0 64k\nread -P 1 0 1k\n" };
  const { stdout } = await run([...bdrv, "qemu-io", "ours"], script);
  assertMatch(stdout, /Pattern verification failed at offset 0, 1024 bytes/);
  await ours("snapshot", "-a", "one", "ours");
  assertEquals(
    await ours("compare", "disk", "ours"),
    "Images are identical.\n",
  );
  await ours("create", "-f", "qcow2", "-b", "ours", "-F", "qcow2", "top");
  await ours("resize", "top", "+1M");
  await runOk(["qemu-img", "check", "top"], { cwd });
  const raw = "convert -f raw -O raw - copy".split(" ");
  const text = "x".repeat(70_000);
  const piped = await run([...bdrv, ...raw], { cwd, stdin: text });
  assertEquals(piped.code, 0, piped.stderr);
  assert(Deno.readTextFileSync(dir.file("copy")).startsWith(text));

  // Some runtimes take this for an empty stream.
  const folder = await run(
    ["sh", "-c", 'exec "$@" < .', "sh", ...bdrv, "convert", "-", "none"],
    { cwd },
  );
  assertEquals(folder.code, 1);
  assertMatch(folder.stderr, /Is a directory/);
  assert(
    !(await Array.fromAsync(Deno.readDir(cwd), ({ name }) => name))
      .includes("none"),
  );

  assertEquals(await outcome("info", "missing"), [
    1,
    "bdrv: Could not open 'missing': No such file or directory\n",
  ]);
  assertEquals((await outcome("conver"))[0], 1);
  assertEquals((await outcome("compare", "disk", "theirs"))[0], 0);
  Deno.writeTextFileSync(dir.file("other"), "other");
  assertEquals((await outcome("compare", "disk", "other"))[0], 1);
}
