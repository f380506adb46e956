import { assert, assertEquals, assertRejects } from "@std/assert";
import { headOf } from "../../cli/io/source_file.ts";
import { BlockError } from "../../core/errors.ts";
import { BDRV, run, TempDir } from "../qemu.ts";

Deno.test("headOf() reads what a file has, and no more than is asked for", async () => {
  await using dir = new TempDir();
  Deno.writeTextFileSync(dir.file("text"), "abcdef");
  const read = async (most: number) =>
    new TextDecoder().decode(await headOf(dir.file("text"), most));
  assertEquals(await read(4), "abcd");
  assertEquals(await read(100), "abcdef");
});

Deno.test("headOf() reads devices, whatever size they claim", async () => {
  assertEquals((await headOf("/dev/urandom", 100_000)).length, 100_000);
  assertEquals(await headOf("/dev/zero", 3), new Uint8Array(3));
  assertEquals((await headOf("/dev/null", 3)).length, 0);
});

Deno.test("headOf() reads a pipe, but does not wait for ever for a writer", async () => {
  await using dir = new TempDir();
  const pipe = dir.file("pipe");
  new Deno.Command("mkfifo", { args: [pipe] }).outputSync();
  const reading = headOf(pipe, 100);
  await Deno.writeTextFile(pipe, "from somewhere");
  assertEquals(new TextDecoder().decode(await reading), "from somewhere");
  const error = await assertRejects(() => headOf(pipe, 100, 10), BlockError);
  assertEquals(error.code, "ENXIO");
  // Let the blocked opener go.
  await Deno.writeTextFile(pipe, "too late").catch(() => {});
});

Deno.test("headOf() fails as the system does", async () => {
  for (const [name, code] of [["/dev", "EISDIR"], ["/no/such", "ENOENT"]]) {
    const error = await assertRejects(() => headOf(name, 1), BlockError);
    assertEquals(error.code, code);
  }
});

Deno.test("write -s takes random bytes, and those of a pipe", async () => {
  await using dir = new TempDir();
  const { path: cwd } = dir;
  const io = [...BDRV, "io", "-f", "raw"];
  Deno.writeFileSync(dir.file("disk"), new Uint8Array(65536));
  const call = [...io, "-c", "write -s /dev/urandom 0 64k", "disk"];
  assertEquals((await run(call, { cwd })).code, 0);
  const bytes = Deno.readFileSync(dir.file("disk"));
  assert(new Set(bytes).size > 200);
  const command = `${io.join(" ")} -c "write -s $0 0 5" disk`;
  const shell = [
    "bash",
    "-c",
    `f() { ${command.replace("$0", "$1")}; }; ` +
    "f <(printf ab)",
  ];
  assertEquals((await run(shell, { cwd })).code, 0);
  const head = Deno.readFileSync(dir.file("disk")).subarray(0, 5);
  assertEquals(new TextDecoder().decode(head), "ababa");
});
