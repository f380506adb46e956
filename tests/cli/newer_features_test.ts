/**
 * What QEMU's programs have gained since 7.2, tested without them.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BDRV, FFI, mustSkip, run, runOk, TempDir } from "../qemu.ts";

const tool = (name: string, ...args: string[]) => [...BDRV, name, ...args];

Deno.test("info --limits shows the limits of requests", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  const create = ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on"];
  await runOk(tool("qemu-img", ...create, "X", "1M"), { cwd });
  const limits = async (...options: string[]) => {
    const args = ["info", "--limits", "--output=json", ...options, "X"];
    return JSON.parse(await runOk(tool("qemu-img", ...args), { cwd })).limits;
  };
  const expected = {
    "write-zeroes-alignment": 2048,
    "request-alignment": 1,
    "min-mem-alignment": 1,
    "discard-alignment": 65536,
    "opt-mem-alignment": 4096,
    "max-iov": 1024,
  };
  assertEquals(await limits(), expected);
  assertEquals(await limits("-t", "unsafe"), expected);
  const human = await runOk(tool("qemu-img", "info", "--limits", "X"), { cwd });
  const lines = human.split("\n");
  const start = lines.indexOf("Block limits:");
  assertEquals(lines.slice(start + 1, start + 8), [
    "    write zeroes alignment: 2048",
    "    request alignment: 1",
    "    min mem alignment: 1",
    "    discard alignment: 65536",
    "    opt mem alignment: 4096",
    "    max iov: 1024",
    "Format specific information:",
  ]);
});

Deno.test({
  name: "qemu-io has aio_discard, and the zone commands fail as QEMU's do",
  ignore: mustSkip({ privileges: FFI }),
  fn: async () => {
    await using dir = new TempDir();
    await Deno.writeFile(dir.file("X"), new Uint8Array(65536).fill(7));
    const commands = [
      "aio_discard 0 4k",
      "aio_discard -q 4k 4k",
      "aio_flush",
      "read -P 0 0 8k",
      "read -P 7 8k 56k",
      "aio_discard 64k 512",
      "aio_flush",
      "zone_report 0 1",
      "zone_append 0 4k",
    ];
    const words = commands.flatMap((command) => ["-c", command]);
    const { code, stdout, stderr } = await run(
      tool("qemu-io", "-f", "raw", ...words, "X"),
      { cwd: dir.path },
    );
    assertEquals(code, 1);
    const lines = stdout.split("\n").filter((line) => !/ops; /.test(line));
    assertEquals(lines, [
      "discarded  4096/4096 bytes at offset 0",
      "read 8192/8192 bytes at offset 0",
      "read 57344/57344 bytes at offset 8192",
      "aio_discard failed: Input/output error",
      "zone report failed: Operation not supported",
      "",
    ]);
    assertEquals(
      stderr,
      "bad argument count 2 to zone_append, expected between 3 and 4 arguments\n",
    );
  },
});
