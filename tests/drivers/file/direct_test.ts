/** `cache=none`: bypassing the page cache, as QEMU does. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { createImage, openImage } from "../../../mod.ts";
import { isLibcAvailable } from "../../platforms.ts";
import { BDRV, mustSkip, qemuTest, run, TempDir } from "../../qemu.ts";

const needed = { others: { libc: isLibcAvailable() } };
const O_DIRECT = Deno.build.arch === "aarch64" ? 0o200000 : 0o40000;

/** The flags with which this process has a path open. */
function flagsOf(path: string): number[] {
  const folder = "/proc/self/fd";
  return [...Deno.readDirSync(folder)].flatMap(({ name }) => {
    try {
      if (Deno.readLinkSync(`${folder}/${name}`) !== path) return [];
      const facts = Deno.readTextFileSync(`/proc/self/fdinfo/${name}`);
      return [parseInt(/^flags:\s*(\d+)$/m.exec(facts)![1], 8)];
    } catch {
      return []; // Closed in the meantime.
    }
  });
}

Deno.test({
  name: "cache=none opens the files of an image with O_DIRECT, others do not",
  ignore: mustSkip(needed),
  async fn() {
    await using dir = new TempDir();
    const path = dir.file("disk");
    await createImage("qcow2", path, { size: 1 << 20 });
    for (const cache of ["none", "directsync", "writeback"] as const) {
      await using image = await openImage(path, { cache });
      const flags = flagsOf(path);
      assertEquals(flags.length, 1);
      assertEquals((flags[0] & O_DIRECT) !== 0, cache !== "writeback", cache);
      const bytes = new Uint8Array(70_001).fill(7);
      await image.write(12_345, bytes);
      assertEquals(await image.read(12_345, bytes.length), bytes);
    }
  },
});

Deno.test({
  name: "without the C library, cache=none is refused, and says why",
  async fn() {
    await using dir = new TempDir();
    const path = dir.file("disk");
    await createImage("raw", path, { size: 1 << 20 });
    const file = { driver: "file", filename: path, io: "deno" };
    const error = await assertRejects(
      () => openImage({ driver: "raw", file }, { cache: "none" }),
      BlockError,
    );
    assertEquals(
      error.message,
      `Could not open '${path}': filesystem does not support O_DIRECT`,
    );
    assert(error.hint);
    const command = BDRV.map((word) =>
      word === "--allow-all" ? "--allow-read" : word
    );
    const args = ["bench", "-t", "none", "-c", "1", "-f", "raw", path];
    const { code, stderr } = await run([...command, ...args]);
    assertEquals(code, 1);
    assert(stderr.includes("does not support O_DIRECT\n"), stderr);
    assert(stderr.includes("--allow-ffi"), stderr);
  },
});

/** What both programs must say about a file, and leave in it. */
const CALLS: readonly string[][] = [
  ["qemu-io", "-f", "raw", "-t", "none", "-c", "write -q -P 3 100 1024", "odd"],
  [
    ...["qemu-io", "-f", "raw", "-r", "-t", "none"],
    ...["-c", "read -q 100 1024", "-c", "read -q 1000000 448", "odd"],
  ],
  [
    ...["qemu-io", "-f", "raw", "-t", "none", "-c", "write -q -P 3 100 1024"],
    ...["-c", "write -q -P 4 65535 3000", "-c", "discard -q 4096 8192", "even"],
  ],
  ["qemu-io", "-f", "raw", "-r", "-t", "none", "/proc/version"],
  ["qemu-img", "bench", "-w", "-t", "none", "-c", "4", "-f", "raw", "odd"],
  [
    "qemu-img",
    "convert",
    "-t",
    "none",
    "-T",
    "none",
    "-O",
    "raw",
    "odd",
    "new",
  ],
  ["qemu-img", "convert", "-t", "none", "-O", "qcow2", "even", "new"],
  [
    ...["qemu-io", "-f", "raw", "-t", "none"],
    ...["-c", "write -q -P 5 983040 65535", "-c", "map", "short"],
  ],
  [
    ...["qemu-img", "map", "--output=json", "--image-opts"],
    "driver=raw,file.driver=file,file.filename=short,cache.direct=on",
  ],
  [
    ...["qemu-img", "map", "--output=json", "--image-opts"],
    "driver=raw,file.driver=file,file.filename=short",
  ],
];

qemuTest("cache=none says and does what it does in QEMU", async () => {
  for (const [program, ...args] of CALLS) {
    const outcomes = [];
    for (const command of [[program], [...BDRV, program]]) {
      await using dir = new TempDir();
      Deno.writeFileSync(dir.file("odd"), new Uint8Array(1_000_448).fill(1));
      Deno.writeFileSync(dir.file("even"), new Uint8Array(1 << 20).fill(1));
      // The last sector is incomplete; all but the first one is a hole.
      Deno.writeFileSync(dir.file("short"), new Uint8Array(4096).fill(1));
      Deno.truncateSync(dir.file("short"), (1 << 20) - 1);
      const outcome = await run([...command, ...args], { cwd: dir.path });
      const isTimed = args[0] === "bench";
      outcomes.push({
        ...outcome,
        stdout: isTimed ? "" : outcome.stdout,
        odd: Deno.readFileSync(dir.file("odd")),
        even: Deno.readFileSync(dir.file("even")),
        short: Deno.readFileSync(dir.file("short")),
      });
    }
    assertEquals(outcomes[1], outcomes[0], args.join(" "));
  }
}, { tools: ["qemu-img", "qemu-io"], ...needed });
