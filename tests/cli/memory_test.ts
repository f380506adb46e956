/**
 * How much memory the command line needs, in a process of its own; the README
 * promises a limit.
 */
import { assert, assertEquals } from "@std/assert";
import { BDRV, TempDir } from "../qemu.ts";

/** The limit for every command, in MiB. */
const LIMIT = 130;

/** The limit for reading, in MiB: it grows a little with longer disks. */
const READING_LIMIT = 120;

/** Bytes that compress, but not to nothing, and never repeat. */
function sample(length: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(length / 4);
  let state = 1;
  for (let i = 0; i < words.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    // Half of the bits are noise.
    words[i] = state & 0xffff0000;
  }
  return new Uint8Array(words.buffer);
}

/** A command's peak memory in MiB; it must succeed. */
async function peakMemory(cwd: string, args: string[]): Promise<number> {
  const [program, ...before] = BDRV;
  const child = new Deno.Command(program, {
    args: [...before, ...args],
    cwd,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  let isOver = false;
  const ending = child.status.finally(() => isOver = true);
  let peak = 0;
  while (!isOver) {
    // The system keeps the peak: polling it now and then is enough.
    const status = await Deno.readTextFile(`/proc/${child.pid}/status`)
      .catch(() => "");
    peak = Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? 1024 * peak) / 1024;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assertEquals((await ending).code, 0);
  return peak;
}

Deno.test({
  name:
    "convert takes no more than 130 MiB, however small or large clusters are",
  ignore: Deno.build.os !== "linux",
  async fn(t) {
    await using dir = new TempDir();
    const cwd = dir.path;
    const size = 40 * 2 ** 20;
    await Deno.writeFile(dir.file("a.raw"), sample(size));
    // Garbage only piles up over a long input.
    await Deno.writeFile(dir.file("long.raw"), sample(4 * size));
    const make = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    for (
      const [options, source] of [
        ["cluster_size=512,compression_type=zstd", "a.raw"],
        ["cluster_size=512", "a.raw"],
        ["cluster_size=64k", "a.raw"],
        ["cluster_size=2M", "a.raw"],
        ["cluster_size=2M,compression_type=zstd", "long.raw"],
      ]
    ) {
      await t.step(options, async () => {
        const args = [...make, "-o", options, source, "a.qcow2"];
        const there = await peakMemory(cwd, args);
        assert(there < LIMIT, `compressing took ${there} MiB`);
        for (
          const reading of [
            "convert -O raw a.qcow2 b.raw",
            "convert -W -m 16 -O raw a.qcow2 b.raw",
            "convert -O qcow2 a.qcow2 -",
            `compare ${source} a.qcow2`,
          ]
        ) {
          const back = await peakMemory(cwd, reading.split(" "));
          assert(back < READING_LIMIT, `${reading} took ${back} MiB`);
        }
      });
    }
  },
});
