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

Deno.test("info --limits: a raw image that was probed has requests of whole sectors", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  await Deno.writeFile(dir.file("X"), new Uint8Array(700));
  const cases: [args: string[], alignment: number][] = [
    [["X"], 512],
    [["-f", "raw", "X"], 1],
    [["--image-opts", "file.filename=X"], 512],
    [["--image-opts", "driver=raw,file.filename=X"], 1],
    [["json:{'file.driver':'file','file.filename':'X'}"], 512],
    [["json:{'driver':'raw','file.filename':'X'}"], 1],
  ];
  for (const [args, alignment] of cases) {
    const call = ["info", "--limits", "--output=json", ...args];
    const { limits } = JSON.parse(
      await runOk(tool("qemu-img", ...call), { cwd }),
    );
    assertEquals(limits["request-alignment"], alignment, args.join(" "));
  }
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

Deno.test("qemu-io registers buffers for requests that have them", async () => {
  await using dir = new TempDir();
  await Deno.writeFile(dir.file("X"), new Uint8Array(65536).fill(7));
  const output = async (release: string, ...commands: string[]) => {
    const words = commands.flatMap((command) => ["-c", command]);
    const { stdout } = await run(tool("qemu-io", "-f", "raw", ...words, "X"), {
      cwd: dir.path,
      env: { BDRV_QEMU_VERSION: release },
    });
    return stdout.split("\n").filter((line) => !/ops; /.test(line));
  };
  const commands = [
    "read -r -P 7 0 512",
    "readv -r -P 7 0 512 512",
    "write -r -P 1 0 512",
    "writev -r -P 2 512 512",
    "aio_read -r 0 512",
    "aio_flush",
    "aio_write -r 0 512",
    "aio_flush",
    "write -rz 0 512",
    "aio_write -rz 0 512",
    "read -rb 0 512",
  ];
  assertEquals(await output("11.1", ...commands), [
    "read 512/512 bytes at offset 0",
    "read 1024/1024 bytes at offset 0",
    "wrote 512/512 bytes at offset 0",
    "wrote 512/512 bytes at offset 512",
    "read 512/512 bytes at offset 0",
    "wrote 512/512 bytes at offset 0",
    "cannot combine zero write with registered I/O buffer",
    "cannot combine zero write with registered I/O buffer",
    "I/O buffer registration is not supported when reading from vmstate",
    "",
  ]);
  const usage = async (release: string) =>
    (await output(release, "help")).filter((line) => /^aio_write /.test(line));
  const words = "[-P pattern] off len [len..] -- " +
    "asynchronously writes a number of bytes";
  assertEquals(await usage("11.1"), [`aio_write [-Cfiqruz] ${words}`]);
  assertEquals(await usage("7.2"), [`aio_write [-Cfiquz] ${words}`]);
});

Deno.test("qemu-io shows the details of a format that its release knows", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  const key = ["--object", "secret,id=k,data=abc"];
  const made = ["-f", "luks", "-o", "key-secret=k,iter-time=10", "X", "1M"];
  await runOk(tool("qemu-img", "create", "-q", ...key, ...made), { cwd });
  const image = "driver=luks,key-secret=k,file.filename=X";
  const call = tool("qemu-io", ...key, "-c", "info", "--image-opts", image);
  for (const [release, isShown] of [["7.2", false], ["11.1", true]] as const) {
    const env = { BDRV_QEMU_VERSION: release };
    const shown = await runOk(call, { cwd, env });
    assertEquals(shown.includes("detached header: false"), isShown, release);
  }
});
