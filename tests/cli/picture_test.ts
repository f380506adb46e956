/** `bdrv map --picture`, `--svg` and `--png`. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { BDRV, run, runOk, TempDir } from "../qemu.ts";

async function images(folder: TempDir): Promise<void> {
  const { path: cwd } = folder;
  const bdrv = (line: string) => runOk([...BDRV, ...line.split(" ")], { cwd });
  await bdrv("create -q -f qcow2 base.qcow2 1M");
  await bdrv("create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2");
  await bdrv("bitmap --add disk.qcow2 since");
  await runOk([...BDRV, "qemu-io", "-c", "write 64k 64k", "disk.qcow2"], {
    cwd,
  });
}

Deno.test("map draws pictures on a terminal and in files", async () => {
  await using folder = new TempDir();
  await images(folder);
  const { path: cwd } = folder;
  const map = (...args: string[]) => run([...BDRV, "map", ...args], { cwd });
  const text = await map("--picture", "disk.qcow2");
  assertEquals([text.code, text.stderr], [0, ""]);
  assertMatch(text.stdout, /^Disk: 1 MiB, 64 KiB a cell\n\.D\.{14}\n/);
  assertMatch(text.stdout, /^ {2}D data: 64 KiB$/m);
  const dirty = await map("--picture", "--bitmap=since", "disk.qcow2");
  assertMatch(dirty.stdout, /^ {2}\* dirty in the bitmap: 64 KiB$/m);

  const files = await map("--svg", "a.svg", "--png=a.png", "disk.qcow2");
  assertEquals(files, { code: 0, stdout: "", stderr: "" });
  const svg = await Deno.readTextFile(folder.file("a.svg"));
  assert(svg.startsWith("<svg ") && svg.endsWith("</svg>\n"));
  const png = await Deno.readFile(folder.file("a.png"));
  assertEquals([...png.subarray(1, 4)], [0x50, 0x4e, 0x47]);
  const out = await map("--svg", "-", "disk.qcow2");
  assertEquals(out.stdout, svg);
});

Deno.test("map refuses impossible pictures, and overwrites no image with one", async () => {
  await using folder = new TempDir();
  await images(folder);
  const { path: cwd } = folder;
  await Deno.link(folder.file("base.qcow2"), folder.file("link"));
  const before = await Deno.readFile(folder.file("disk.qcow2"));
  const cases: [args: string, message: RegExp][] = [
    ["--svg disk.qcow2", /would destroy the image it shows/],
    ["--png link", /would destroy the image it shows/],
    ["--svg none/a.svg", /Could not write 'none\/a.svg': No such file/],
    ["--bitmap since", /--bitmap needs --picture, --svg or --png/],
    ["--picture --bitmap none", /Dirty bitmap 'none' not found/],
    ["--picture --output=json", /no -s, -l or --output/],
    ["--picture --svg -", /Only one picture can go to standard output/],
  ];
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await run(
      [...BDRV, "map", ...args.split(" "), "disk.qcow2"],
      { cwd },
    );
    assertEquals([code, stdout], [1, ""], args);
    assertMatch(stderr, message, args);
  }
  assertEquals(await Deno.readFile(folder.file("disk.qcow2")), before);
  const theirs = [...BDRV, "qemu-img", "map", "--picture", "disk.qcow2"];
  assertMatch(
    (await run(theirs, { cwd })).stderr,
    /unrecognized option '--picture'/,
  );
});
