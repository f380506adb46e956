/** What `-p` shows on a terminal. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { ProgressLine, timeText } from "../../cli/progress_line.ts";
import { BDRV, mustSkip, run, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

Deno.test("ProgressLine shows the progress, the rate and the time left", () => {
  const line = new ProgressLine("bytes", 0);
  for (let at = 0; at <= 10_000; at += 50) {
    line.update(at / 10_000 * 500 * MIB, 2000 * MIB, at);
  }
  assertEquals(
    line.text(25, 10_000, 80),
    "   25.00 %   500 MiB of 1.95 GiB    50 MiB/s  0:30 left",
  );
  assertEquals(
    line.summary(40_000, 80),
    "  100.00 %  1.95 GiB  50 MiB/s  in 0:40",
  );
});

Deno.test("ProgressLine: the rate is that of the last seconds", () => {
  const line = new ProgressLine("bytes", 0);
  for (let at = 0; at <= 10_000; at += 100) {
    line.update(at * MIB, 100_000 * MIB, at);
  }
  for (let at = 10_000; at <= 16_000; at += 100) {
    line.update((10_000 + (at - 10_000) / 1000) * MIB, 100_000 * MIB, at);
  }
  assertMatch(line.text(10, 16_000, 80), / 1 MiB\/s {2}24:59:5\d left$/);
});

Deno.test("ProgressLine: a stall lowers the rate; without progress there is no time left", () => {
  const line = new ProgressLine("bytes", 0);
  line.update(0, 100 * MIB, 0);
  assertEquals(
    line.text(0, 60_000, 80),
    "    0.00 %      0 B of 100 MiB       0 B/s",
  );
});

Deno.test("ProgressLine: steps have no rate, and may start again", () => {
  const line = new ProgressLine("steps", 0);
  for (let at = 0; at <= 1000; at += 100) line.update(at, 4000, at);
  assertEquals(line.text(25, 1000, 80), "   25.00 %  0:03 left");
  line.update(10, 4000, 1100);
  assertEquals(line.text(0.25, 1100, 80), "    0.25 %");
  assertEquals(line.summary(2000, 80), "  100.00 %  in 0:02");
});

Deno.test("ProgressLine leaves out what a narrow terminal has no room for", () => {
  const line = new ProgressLine("bytes", 0);
  line.update(0, 100 * MIB, 0);
  line.update(50 * MIB, 100 * MIB, 1000);
  for (let columns = 0; columns < 90; columns++) {
    const text = line.text(50, 1000, columns);
    assert(text.length < Math.max(columns, 11), `${columns}: ${text}`);
  }
});

Deno.test("timeText() grows with the time", () => {
  const second = 1000;
  assertEquals(timeText(0), "0:00");
  assertEquals(timeText(1), "0:01");
  assertEquals(timeText(59 * second), "0:59");
  assertEquals(timeText(60 * second), "1:00");
  assertEquals(timeText(3600 * second), "1:00:00");
  assertEquals(timeText(3599 * second + 1), "1:00:00");
  assertEquals(timeText(100 * 3600 * second), "4 d 4 h");
  assertEquals(timeText(Infinity), "over 1000 d");
});

/** What a command prints on a terminal. */
async function onTerminal(line: string): Promise<string> {
  return (await run(["script", "-qec", line, "/dev/null"])).stdout;
}

Deno.test({
  name: "-p on a terminal shows more under our own name than under qemu-img's",
  ignore: mustSkip({ tools: ["script"] }),
  async fn() {
    await using dir = await new TempDir();
    const [source, target] = [dir.file("a.img"), dir.file("b.qcow2")];
    await Deno.writeFile(source, new Uint8Array(8 * MIB).fill(7));
    const args = `convert -p -f raw -O qcow2 ${source} ${target}`;
    const bdrv = BDRV.map((word) => `'${word}'`).join(" ");
    const ours = await onTerminal(`${bdrv} ${args}`);
    assertMatch(ours, /^ {4}0\.00 % *\r/);
    assertMatch(ours, /\r {2}100\.00 % {2}8 MiB.* in \d:\d\d *\r\r?\n$/);
    const theirs = await onTerminal(`${bdrv} qemu-img ${args}`);
    assertMatch(theirs, /^( {4}\(\d+\.\d\d\/100%\)\r)+\r?\n$/);
    // A message replaces the progress line, of which nothing remains.
    const compared = await onTerminal(
      `${bdrv} compare -p ${source} ${source}`,
    );
    assertMatch(compared, /\r +\rImages are identical\.\r\n$/);
    const failed = await onTerminal(`${bdrv} convert -p ${target} /dev/full/x`);
    assertMatch(failed, /^ {4}0\.00 %\r\r?\nbdrv: \/dev\/full\/x: [^\r]*\r\n$/);
  },
});

Deno.test("help COMMAND is COMMAND --help", async () => {
  const bdrv = (...args: string[]) => run([...BDRV, ...args]);
  for (const name of ["convert", "io", "serve", "completions", "help"]) {
    assertEquals(await bdrv("help", name), await bdrv(name, "--help"));
  }
  assertEquals(await bdrv("help"), await bdrv("--help"));
  for (const name of ["bdrv", "qemu-img", "qemu-io", "qemu-nbd"]) {
    assertEquals(await bdrv("help", name), await bdrv(name, "--help"));
  }
  assertEquals(
    await bdrv("help", "qemu-img", "info"),
    await bdrv("qemu-img", "info", "--help"),
  );
  assertMatch(await runOk([...BDRV, "help"]), /\n {2}help +Show what/);
  assertEquals(
    (await bdrv("help", "convrt")).stderr,
    "bdrv: Command not found: convrt (did you mean 'convert'?)\n" +
      "Try 'bdrv --help' for more information\n",
  );
  assertEquals((await bdrv("help", "map", "info")).code, 1);
  assertEquals((await bdrv("qemu-img", "help")).code, 1);
});
