/** VMDKs on the command line: images of several files, and streams. @module */
import { assert, assertEquals } from "@std/assert";
import { BDRV, mustSkip, run, runOk, TempDir } from "../qemu.ts";

const bdrv = (folder: TempDir, line: string) =>
  run(
    [
      "bash",
      "-c",
      line.replaceAll("bdrv", BDRV.map((w) => `'${w}'`).join(" ")),
    ],
    { cwd: folder.path },
  );

function files(folder: TempDir): string[] {
  return [...Deno.readDirSync(folder.path)].map(({ name }) => name).sort();
}

Deno.test("a failed convert removes every file of its target", async () => {
  await using folder = new TempDir();
  await Deno.writeFile(folder.file("disk"), new Uint8Array(4 << 20).fill(1));
  for (
    const subformat of [
      "monolithicSparse",
      "monolithicFlat",
      "twoGbMaxExtentSparse",
      "twoGbMaxExtentFlat",
      "streamOptimized",
    ]
  ) {
    const noise = subformat === "streamOptimized"
      ? "head -c 4M /dev/urandom > disk; "
      : "";
    // While Deno's own caches are cold, they would exceed the limit too.
    await bdrv(
      folder,
      `${noise}bdrv convert -O vmdk -o subformat=${subformat} disk x.vmdk; ` +
        "rm x*.vmdk",
    );
    const { code, stderr } = await bdrv(
      folder,
      `${noise}(ulimit -f 2048; bdrv convert -O vmdk -o subformat=${subformat} ` +
        "disk x.vmdk)",
    );
    assertEquals(code, 1);
    assert(stderr.includes("File too large"), stderr);
    assertEquals(files(folder), ["disk"]);
  }
});

Deno.test("an extent that the system refuses is not blamed on the format", async () => {
  await using folder = new TempDir();
  const options = "-f vmdk -o subformat=monolithicFlat";
  for (const name of ["bdrv", "bdrv qemu-img"]) {
    // With warm caches, as above.
    await bdrv(folder, `${name} create ${options} x.vmdk 1M; rm x*.vmdk`);
    const { code, stderr } = await bdrv(
      folder,
      `ulimit -f 2048; ${name} create ${options} x.vmdk 64M`,
    );
    assertEquals(code, 1);
    assert(
      stderr.endsWith(": x.vmdk: Could not resize file: File too large\n"),
      stderr,
    );
    assertEquals(files(folder), []);
  }
});

Deno.test("a source is never overwritten as an extent of the new image", async () => {
  await using folder = new TempDir();
  const bytes = new Uint8Array(1 << 20).fill(7);
  await Deno.writeFile(folder.file("x-flat.vmdk"), bytes);
  const options = "-O vmdk -o subformat=monolithicFlat";
  const { code, stderr } = await bdrv(
    folder,
    `bdrv convert ${options} x-flat.vmdk x.vmdk`,
  );
  assertEquals(code, 1);
  assert(stderr.includes("'x-flat.vmdk' is also a source"), stderr);
  assertEquals(await Deno.readFile(folder.file("x-flat.vmdk")), bytes);
  assertEquals(files(folder), ["x-flat.vmdk"]);
});

Deno.test("options that make no sense destroy no file", async () => {
  await using folder = new TempDir();
  await Deno.writeFile(folder.file("disk"), new Uint8Array(1 << 20));
  await Deno.writeTextFile(folder.file("x.vmdk"), "precious");
  for (
    const options of [
      "subformat=custom",
      "subformat=streamOptimized,adapter_type=none",
      "subformat=monolithicFlat,zeroed_grain=on",
    ]
  ) {
    for (
      const verb of ["convert -O vmdk disk x.vmdk", "create -f vmdk x.vmdk 1M"]
    ) {
      const { code } = await bdrv(folder, `bdrv ${verb} -o ${options}`);
      assertEquals(code, 1);
    }
  }
  assertEquals(await Deno.readTextFile(folder.file("x.vmdk")), "precious");
});

Deno.test("streams go through pipes, and are the same as in files", async () => {
  await using folder = new TempDir();
  const disk = new Uint8Array(9 << 20);
  disk.fill(3, 1_000_000, 3_000_000);
  await Deno.writeFile(folder.file("disk"), disk);
  const options = "-f raw -O vmdk -o subformat=streamOptimized";
  // What goes to standard output calls itself disk.vmdk.
  const script = `
    set -e
    bdrv convert ${options} disk disk.vmdk
    bdrv convert ${options} disk - > b.vmdk
    bdrv convert -c -S 0 ${options} disk c.vmdk
    bdrv create -q -f vmdk -o subformat=streamOptimized d.vmdk 9M
    bdrv convert -n -f raw -O vmdk disk d.vmdk
    bdrv create -q -f vmdk base.vmdk 9M
    bdrv convert -B base.vmdk -F vmdk ${options} disk e.vmdk
    for image in disk b c d e; do bdrv compare -f raw -F vmdk disk $image.vmdk; done
    for image in disk b c d e; do bdrv check $image.vmdk; done`;
  const { code, stderr } = await bdrv(folder, script);
  assertEquals([code, stderr], [0, ""]);
  const withoutId = (name: string) =>
    new TextDecoder("latin1").decode(Deno.readFileSync(folder.file(name)))
      .replace(/CID=[0-9a-f]{8}/, "");
  assertEquals(withoutId("disk.vmdk") === withoutId("b.vmdk"), true);
  assert(withoutId("c.vmdk").length > withoutId("disk.vmdk").length);
});

Deno.test({
  name: "QEMU reads all of these streams",
  ignore: mustSkip({ tools: ["qemu-img"] }),
  fn: async () => {
    await using folder = new TempDir();
    const disk = new Uint8Array(5 << 20).fill(9, 12345, 3_456_789);
    await Deno.writeFile(folder.file("disk"), disk);
    const cwd = { cwd: folder.path };
    const options = "-f raw -O vmdk -o subformat=streamOptimized disk x.vmdk";
    for (const more of ["", "-S 0", "-c"]) {
      const { code, stderr } = await bdrv(
        folder,
        `bdrv convert ${more} ${options}`,
      );
      assertEquals([code, stderr], [0, ""]);
      await runOk(["qemu-img", "check", "x.vmdk"], cwd);
      const compare = "qemu-img compare -f raw -F vmdk disk x.vmdk";
      await runOk(compare.split(" "), cwd);
    }
  },
});
