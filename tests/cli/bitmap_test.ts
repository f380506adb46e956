/**
 * `bitmap`, and what other commands do to bitmaps, compared with qemu-img: the
 * same calls in the same order in two folders.
 *
 * @module
 */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { BDRV, qemuTest, run, TempDir } from "../qemu.ts";

/** Tildes stand for blanks, `LONG` for a name that is too long. */
const CALLS = [
  "create -q -f qcow2 a 1M",
  "bitmap --add a b0",
  "bitmap --add --disable -g 32k a b1",
  "bitmap --add a b0",
  "bitmap --add -g 300 a x",
  "bitmap --add -g 256 a x",
  "bitmap --add -g 4G a x",
  "bitmap --add -g 2G a x2",
  "bitmap --add --granularity 0 a x3",
  "bitmap --add -g xyz a q",
  "bitmap --add a ",
  "bitmap --add a LONG",
  "create -q -f qcow2 -o compat=0.10 v2 1M",
  "bitmap --add v2 b",
  "bitmap --remove v2 b",
  "create -q -f raw r 1M",
  "bitmap --add -f raw r b",
  "bitmap --remove -f raw r b",
  "bitmap --merge x -f raw r b",
  "bitmap --remove a nope",
  "bitmap --clear a nope",
  "bitmap --enable a nope",
  "bitmap --merge nope a b0",
  "bitmap --merge b0 a nope",
  "bitmap --merge b0 a b0",
  "bitmap a b0",
  "bitmap a",
  "bitmap",
  "bitmap -g 64k --clear a b0",
  "bitmap -F qcow2 --clear a b0",
  "bitmap -b a --clear a b0",
  "bitmap --add a",
  "bitmap --add a b c",
  "bitmap --merge",
  "bitmap --foo a b",
  "create -q -f qcow2 -o cluster_size=2M huge 60T",
  "bitmap --add -g 512 huge b",
  "bitmap --add huge b0",
  "bitmap --add nofile q",
  "bitmap --merge b0 -b nofile a b0",
  "bitmap --merge b0 -b huge a b0",
  "bitmap --merge b0 -b huge -F raw a b0",
  "bitmap --add -f qcow2 --image-opts driver=qcow2,file.filename=a zz",
  "bitmap --add --image-opts driver=qcow2,file.filename=a zz",
  "bitmap --add --object secret,id=s,data=x a zz",
  "bitmap --add --disable --remove a t1",
  "bitmap --add --add a t2",
  "info --output=json a",
  "check -q a",
  "measure -O qcow2 a",
  "measure -O qcow2 -o cluster_size=4k --output=json a",
  "measure -O qcow2 -o compat=0.10 a",
  "snapshot -c s a",
  "snapshot -a s a",
  "snapshot -a none a",
  "snapshot -d s a",
  "resize a 3M",
  "resize --shrink a 2M",
  "convert --bitmaps -O qcow2 a c",
  "info --output=json c",
  "convert --bitmaps -O raw a c.raw",
  "convert --bitmaps -O qcow2 -o compat=0.10 a c2",
  "convert --bitmaps -n -O qcow2 a c",
  "convert --bitmaps -O qcow2 a a c3",
  "convert --bitmaps -f raw -O qcow2 r c3",
  // Ours marks bitmaps as in use only where it records into them.
  "bitmap --remove a b1",
  "KILL write~0~1 a",
  "resize a 5M",
  "bitmap --clear a b0",
  "bitmap --merge b0 a x2",
  "bitmap --add --merge b0 a b8",
  "bitmap --disable a b0",
  "info --output=json a",
  "convert --bitmaps -O qcow2 a c4",
  "convert --bitmaps --skip-broken-bitmaps -O qcow2 a c4",
  "info --output=json c4",
  "bitmap --remove a b0",
  "bitmap --remove --add -g 512 a x2",
  "measure -O qcow2 a",
  "info --output=json a",
  "check -q a",
];

/** A call of QEMU's program or ours, with legitimate differences normalized. */
async function outcome(call: string, tool: readonly string[], cwd: string) {
  const [first, ...rest] = call.split(" ");
  const program = [...tool, "qemu-img"];
  if (first === "KILL") {
    const [command, image] = rest;
    const io = [...tool, "qemu-io"];
    const commands = [command.replaceAll("~", " "), "sigraise 9"];
    const words = commands.flatMap((command) => ["-c", command]);
    const { code } = await run([...io, ...words, image], { cwd });
    return { failed: code !== 0 };
  }
  const words = [first, ...rest].map((word) =>
    word === "LONG" ? "n".repeat(1024) : word
  );
  const { code, stdout, stderr } = await run([...program, ...words], { cwd });
  return {
    code,
    // Disk usage is the writer's choice.
    stdout: stdout.replace(/"actual-size": \d+/, ""),
    // QEMU numbers its nodes in a way that means nothing to anyone else.
    stderr: stderr.replace(/(persistent in )'[^']*'/, "$1'NODE'")
      .replace(/(bitmaps to )[^:]*:/, "$1NODE:"),
  };
}

qemuTest("bitmaps behave as qemu-img's do", async (t) => {
  await using dir = new TempDir();
  const theirs = dir.file("theirs");
  const ours = dir.file("ours");
  for (const folder of [theirs, ours]) Deno.mkdirSync(folder);
  for (const call of CALLS) {
    await t.step(call, async () => {
      const [expected, actual] = await Promise.all([
        outcome(call, [], theirs),
        outcome(call, BDRV, ours),
      ]);
      assertEquals(actual, expected);
    });
  }
}, ["qemu-img", "qemu-io"]);

qemuTest(
  "bitmaps that a change by others made stale are warned of",
  async () => {
    await using dir = new TempDir();
    const cwd = dir.path;
    await run(["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"], { cwd });
    await run(["qemu-img", "bitmap", "--add", "a", "b"], { cwd });
    {
      using file = Deno.openSync(dir.file("a"), { read: true, write: true });
      file.seekSync(88, Deno.SeekMode.Start); // Autoclear features.
      file.writeSync(new Uint8Array(8));
    }
    for (const call of ["info", "map"]) {
      const theirs = await run(["qemu-img", call, "a"], { cwd });
      const ours = await run([...BDRV, "qemu-img", call, "a"], { cwd });
      assertMatch(ours.stderr, /^qemu-img: warning: .*\nSome clusters may be/);
      // QEMU does not end the line.
      assertEquals(ours.stderr, `${theirs.stderr}\n`);
    }
  },
);

Deno.test("bitmap --remove-all drops all bitmaps", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  const bdrv = (...words: string[]) => run([...BDRV, ...words], { cwd });
  await bdrv("create", "-q", "-f", "qcow2", "a", "1M");
  for (const name of ["b0", "b1"]) await bdrv("bitmap", "--add", "a", name);
  const wrong = await bdrv("bitmap", "--remove-all", "a", "b0");
  assertEquals(wrong.code, 1);
  assertMatch(wrong.stderr, /Expecting filename\n$/);
  assertEquals((await bdrv("bitmap", "--remove-all", "a")).code, 0);
  const both = await bdrv("bitmap", "--remove-all", "--add", "a", "new");
  assertEquals(both.code, 0, both.stderr);
  const info = JSON.parse((await bdrv("info", "--output=json", "a")).stdout);
  assertEquals(info["format-specific"].data.bitmaps, [
    { flags: ["auto"], name: "new", granularity: 65536 },
  ]);
  assertEquals((await bdrv("check", "-q", "a")).code, 0);
});

Deno.test("convert --bitmaps leaves no bitmap that it could not fill", async () => {
  await using folder = new TempDir();
  const img = (call: string) =>
    run([...BDRV, "qemu-img", ...call.split(" ")], { cwd: folder.path });
  await img("create -q -f qcow2 small 1M");
  await img("bitmap --add small b");
  await img("create -q -f qcow2 large 2M");
  const { code, stderr } = await img(
    "convert --bitmaps -n -O qcow2 small large",
  );
  assertEquals(code, 1);
  assertStringIncludes(stderr, "Failed to populate bitmap b: Bitmaps are of");
  const { stdout } = await img("info --output=json large");
  assertEquals(stdout.includes('"bitmaps"'), false);
});
