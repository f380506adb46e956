/** What a command that fails or is interrupted leaves behind. @module */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { BDRV, run, runOk, TempDir, withoutUnlocked } from "../qemu.ts";

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

/** A raw file that takes a while to copy with `-t writethrough -S 0`. */
function makeLarge(path: string): void {
  using file = Deno.openSync(path, { create: true, write: true });
  file.truncateSync(4 * 1024 ** 3);
}

/** Start a command, and signal it once its target exists. */
async function interrupt(
  args: string[],
  target: string,
  signal: Deno.Signal,
): Promise<{ code: number; stderr: string }> {
  const before = (await Deno.stat(target).catch(() => undefined))?.size ?? 0;
  const child = new Deno.Command(BDRV[0], {
    args: [...BDRV.slice(1), ...args],
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const output = child.output();
  for (let waited = 0; waited < 10_000; waited += 20) {
    const size = (await Deno.stat(target).catch(() => undefined))?.size ?? 0;
    if (size > before) break;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  child.kill(signal);
  const { code, stderr } = await output;
  return { code, stderr: withoutUnlocked(new TextDecoder().decode(stderr)) };
}

for (const [signal, number] of [["SIGINT", 2], ["SIGTERM", 15]] as const) {
  Deno.test(`convert removes its target when ended by ${signal}`, async () => {
    await using dir = await new TempDir();
    const [source, target] = [dir.file("source"), dir.file("target")];
    makeLarge(source);
    const args = ["convert", "-S", "0", "-f", "raw", "-O", "qcow2"];
    const result = await interrupt([...args, source, target], target, signal);
    assertEquals(result, { code: 128 + number, stderr: "" });
    assert(!await exists(target));
  });
}

Deno.test("convert -n leaves the target when interrupted, and says so", async () => {
  await using dir = await new TempDir();
  const [source, target] = [dir.file("source"), dir.file("target")];
  makeLarge(source);
  await runOk([...BDRV, "create", "-q", "-f", "qcow2", target, "4G"]);
  const args = ["convert", "-n", "-S", "0", "-f", "raw", "-O", "qcow2"];
  const result = await interrupt([...args, source, target], target, "SIGINT");
  assertEquals(result, {
    code: 130,
    stderr: `bdrv: '${target}' is left incomplete\n`,
  });
  assert(await exists(target));
});

Deno.test("a target that nothing was written to is not called incomplete", async () => {
  await using dir = new TempDir();
  const { path: cwd } = dir;
  await runOk([...BDRV, "create", "-q", "-f", "qcow2", "large", "2M"], { cwd });
  await runOk([...BDRV, "create", "-q", "-f", "qcow2", "small", "1M"], { cwd });
  await runOk([...BDRV, "create", "-q", "raw", "4M"], { cwd });
  const calls = [
    "convert -n -O qcow2 large small",
    "convert -n -O qcow2 large raw",
    "convert -n -O raw -c large raw",
    "convert -n -O qcow2 large missing",
  ];
  for (const call of calls) {
    const { code, stderr } = await run([...BDRV, ...call.split(" ")], { cwd });
    assertEquals(code, 1, call);
    assert(!stderr.includes("incomplete"), `${call}: ${stderr}`);
  }
});

Deno.test("convert removes its target when a source cannot be read", async () => {
  await using dir = await new TempDir();
  const [source, target] = [dir.file("source"), dir.file("target")];
  const create = [
    "create",
    "-q",
    "-f",
    "qcow2",
    "-o",
    "preallocation=metadata",
  ];
  await runOk([...BDRV, ...create, source, "1M"]);
  // The fifth cluster's entry points past the end of the file, unaligned.
  using file = await Deno.open(source, { read: true, write: true });
  const head = new Uint8Array(48);
  file.readSync(head);
  const l1Offset = Number(new DataView(head.buffer).getBigUint64(40));
  const entry = new DataView(new ArrayBuffer(8));
  await file.seek(l1Offset, Deno.SeekMode.Start);
  file.readSync(new Uint8Array(entry.buffer));
  const l2Offset = Number(entry.getBigUint64(0) & 0x00fffffffffffe00n);
  entry.setBigUint64(0, 0x8000000000000200n);
  await file.seek(l2Offset + 5 * 8, Deno.SeekMode.Start);
  file.writeSync(new Uint8Array(entry.buffer));

  const args = ["convert", "-O", "raw", source, target];
  const { code, stderr } = await run([...BDRV, ...args]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "bdrv: error while reading");
  assert(!await exists(target));
});

Deno.test("a convert that fails before it truncates its target keeps it", async () => {
  await using dir = await new TempDir();
  const [source, target] = [dir.file("source"), dir.file("target")];
  await runOk([...BDRV, "create", "-q", source, "1M"]);
  await Deno.writeTextFile(target, "precious");
  const invalid = ["-O", "qcow2", "-o", "cluster_size=3000"];
  const { code } = await run([...BDRV, "convert", ...invalid, source, target]);
  assertEquals(code, 1);
  assertEquals(await Deno.readTextFile(target), "precious");
});

Deno.test("a reader that goes away ends the command quietly", async () => {
  await using dir = await new TempDir();
  const image = dir.file("image");
  const create = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512"];
  await runOk([...BDRV, ...create, image, "64M"]);
  const { stderr } = await run(
    ["sh", "-c", `"$@" info ${image} | true`, "sh", ...BDRV],
  );
  assertEquals(stderr, "");
});

Deno.test("an interrupted commit ends cleanly, and says what each image holds", async () => {
  await using dir = await new TempDir();
  const [base, overlay] = [dir.file("base"), dir.file("overlay")];
  await runOk([...BDRV, "create", "-q", "-f", "qcow2", base, "64M"]);
  const below = ["-b", base, "-F", "qcow2"];
  await runOk([...BDRV, "create", "-q", "-f", "qcow2", ...below, overlay]);
  await runOk([...BDRV, "qemu-io", "-c", "write -P 7 0 2M", overlay]);
  const args = ["commit", "-r", "100k", overlay];
  assertEquals(await interrupt(args, base, "SIGTERM"), {
    code: 143,
    stderr: `bdrv: interrupted: '${overlay}' holds what it held, and ` +
      `'${base}' a part of that; commit it again\n`,
  });
  const read = ["qemu-io", "-r", "-c", "read -P 7 0 2M"];
  const holds = async (image: string) => {
    const { stdout } = await run([...BDRV, ...read, image]);
    return !stdout.includes("Pattern verification failed");
  };
  assert(await holds(overlay) && !await holds(base));
  await runOk([...BDRV, "commit", "-q", overlay]);
  assert(await holds(overlay) && await holds(base));
});
