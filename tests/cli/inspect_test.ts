import { assert, assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";
import { faultsOf } from "../schema.ts";
import { inputs } from "../core/jobs/inspect_inputs.ts";

const SCHEMA = JSON.parse(
  await Deno.readTextFile(
    new URL("../../docs/inspect.schema.json", import.meta.url),
  ),
);

const inspect = (...args: string[]) => run([...BDRV, "inspect", ...args]);

Deno.test("inspect prints JSON as its schema says, and exits by severity", async () => {
  await using folder = new TempDir();
  // Each input costs a process: these cover all members between them.
  const wanted = [
    ...["qcow2", "qcow2 overlay", "qcow2 bit 1", "qcow2 and VDI", "vmdk flat"],
    ...["gpt", "ext", "luks", "empty", "qcow2 with snapshots"],
  ];
  const seen = new Set<string>();
  for await (const { name, bytes, dangers, warnings = [] } of inputs()) {
    if (!wanted.includes(name)) continue;
    const file = folder.file(name);
    await Deno.writeFile(file, bytes);
    const { code, stdout, stderr } = await inspect("--output=json", file);
    const found = JSON.parse(stdout);
    assertEquals(faultsOf(SCHEMA, found), [], name);
    const expected = dangers.length > 0 ? 2 : warnings.length > 0 ? 3 : 0;
    assertEquals([code, stderr], [expected, ""], name);
    for (const member of Object.keys(found)) seen.add(member);
  }
  assertEquals(
    Object.keys(SCHEMA.properties).filter((member) => !seen.has(member)),
    [],
  );
});

Deno.test("inspect prints a line for each finding, and no image can make it print more", async () => {
  await using folder = new TempDir();
  const file = folder.file("a");
  for await (const { name, bytes } of inputs()) {
    if (name !== "qcow2 with a backing file outside") continue;
    bytes.set(new TextEncoder().encode("\x1b[2J\nOK, ok"), 0xf000);
    await Deno.writeFile(file, bytes);
  }
  const { code, stdout } = await inspect(file);
  assertEquals(code, 2);
  assertEquals(
    stdout.replace(file, "a"),
    `image: a
file format: qcow2
file length: 192 KiB (197120 bytes)
virtual size: 64 MiB (67108864 bytes)
Files that it names:
    backing: \\x1b[2J\\x0aOK, ok (allowed)
Findings:
    danger: backing-file: it has the backing file '\\x1b[2J\\x0aOK, ok', which is read with it
    warning: backing-format: it does not say which format its backing file has
verdict: unsafe
`,
  );
});

Deno.test("inspect of something unreadable prints one line, and exits with 1", async () => {
  await using folder = new TempDir();
  for (
    const [args, message] of [
      [[folder.file("none")], "No such file or directory"],
      [[folder.path], "regular file"],
      [["--image-opts", "driver=qcow2,file.filename=x"], "name its file"],
      [["a", "b"], "Expecting one image file name"],
      [["--output=xml", "a"], "--output must be used with human or json"],
    ] as const
  ) {
    const { code, stdout, stderr } = await inspect(...args);
    assertEquals([code, stdout], [1, ""]);
    assert(stderr.includes(message), stderr);
  }
});

Deno.test("inspect - reads a file in place, and a pipe only as far as needed", async () => {
  await using folder = new TempDir();
  const file = folder.file("disk");
  await Deno.writeFile(file, new Uint8Array(3 << 20));
  const shell = async (command: string) =>
    await run(["sh", "-c", command.replaceAll("BDRV", BDRV.join(" "))]);
  const asFile = await shell(`BDRV inspect - < ${file}`);
  assert(asFile.stdout.includes("(3145728 bytes)"), asFile.stdout);
  assertEquals(asFile.code, 0);
  const piped = await shell(`cat ${file} | BDRV inspect -`);
  assert(piped.stdout.includes("end-not-seen"), piped.stdout);
  assertEquals(piped.code, 3);
  const whole = await shell(`cat ${file} | BDRV inspect --whole -`);
  assertEquals([whole.code, whole.stdout], [0, asFile.stdout]);
  const endless = await shell("cat /dev/zero | BDRV inspect -");
  assertEquals([endless.code, endless.stderr], [3, ""]);
  const pipe = folder.file("pipe");
  await runOk(["mkfifo", pipe]);
  const named = await shell(
    `cat ${file} > ${pipe} & BDRV inspect --whole ${pipe}`,
  );
  assertEquals(
    named.stdout,
    asFile.stdout.replace("image: -", `image: ${pipe}`),
  );
  assertEquals(named.code, 0);
});

qemuTest(
  "inspect opens only the image, whatever the image names",
  async () => {
    await using folder = new TempDir();
    const make = (...args: string[]) =>
      runOk(["qemu-img", "create", "-q", ...args], { cwd: folder.path });
    await make("-f", "qcow2", "base", "1M");
    await make("-f", "qcow2", "-b", "base", "-F", "qcow2", "overlay");
    await make("-f", "qcow2", "-o", "data_file=data", "with-data", "1M");
    await make("-f", "vmdk", "-o", "subformat=monolithicFlat", "flat", "1M");
    await make("-f", "vmdk", "parent.vmdk", "1M");
    await make("-f", "vmdk", "-b", "parent.vmdk", "-F", "vmdk", "link.vmdk");
    for (const name of ["overlay", "with-data", "flat", "link.vmdk"]) {
      const trace = folder.file("trace");
      const { code } = await run(
        [
          ...["strace", "-f", "-o", trace, "-e", "trace=open,openat,openat2"],
          ...[...BDRV, "inspect", name],
        ],
        { cwd: folder.path },
      );
      assertEquals(code, 2, name);
      const opened = (await Deno.readTextFile(trace)).split("\n")
        .flatMap((line) => /"([^"]*)"/.exec(line)?.[1] ?? [])
        .map((path) => path.replace(`${folder.path}/`, ""));
      assert(opened.includes(name), name);
      const others = ["base", "data", "flat-flat", "parent.vmdk"];
      assertEquals(opened.filter((path) => others.includes(path)), [], name);
    }
  },
  ["qemu-img", "strace"],
);

qemuTest(
  "inspect of a remote image reads at most 1 MiB",
  async () => {
    await using folder = new TempDir();
    for (const format of ["qcow2", "vhdx", "vmdk", "raw"]) {
      const file = folder.file(format);
      await runOk(["qemu-img", "create", "-q", "-f", format, file, "4G"]);
      const stats = folder.file("stats");
      const command = [...BDRV, "inspect", "--output=json"].join(" ");
      const stdout = await runOk([
        ...["nbdkit", "-U", "-", "--filter=stats", "file", file],
        ...[`statsfile=${stats}`, "--run", `${command} "$uri"`],
      ]);
      const found = JSON.parse(stdout);
      assertEquals([found.format, found.verdict], [format, "safe"]);
      const read = /^read: .*? s, ([\d.]+) (\w+)/m
        .exec(await Deno.readTextFile(stats));
      const units: { [unit: string]: number } = { bytes: 1, KiB: 1024 };
      const bytes = Number(read?.[1]) * (units[read?.[2] ?? ""] ?? Infinity);
      assert(bytes <= 1 << 20, `${format}: ${read?.[0]}`);
    }
  },
  ["qemu-img", "nbdkit"],
);
