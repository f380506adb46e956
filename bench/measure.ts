/**
 * Running a program, and measuring its time and memory.
 *
 * @module
 */

/** The median of some numbers. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? sorted[middle]
    : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Run a program that must succeed, and drop its output. */
export async function runTool(
  folder: string,
  program: string,
  args: readonly string[],
): Promise<void> {
  const { code, stderr } = await new Deno.Command(program, {
    args: [...args],
    cwd: folder,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).output();
  if (code === 0) return;
  const said = new TextDecoder().decode(stderr).trim();
  throw new Error(`${program} ${args.join(" ")}: exit code ${code}\n${said}`);
}

/** Remove a file, if it exists. */
export async function removeFile(folder: string, name: string): Promise<void> {
  await Deno.remove(`${folder}/${name}`).catch(() => {});
}

/** The output of a program, which must succeed. */
export async function outputOf(
  [program, ...args]: readonly string[],
): Promise<string> {
  const { code, stdout } = await new Deno.Command(program, {
    args: [...args],
    stdin: "null",
    stderr: "inherit",
  }).output();
  if (code === 0) return new TextDecoder().decode(stdout);
  throw new Error(`${program} ${args.join(" ")}: exit code ${code}`);
}

/** Milliseconds from the start of a program to its end. */
export async function time(
  folder: string,
  [program, ...args]: readonly string[],
): Promise<number> {
  const start = performance.now();
  await runTool(folder, program, args);
  return performance.now() - start;
}

/** A program's peak resident memory, in MiB. */
export async function peakMemory(
  folder: string,
  command: readonly string[],
): Promise<number> {
  const report = `${folder}/peak-memory`;
  await runTool(folder, "/usr/bin/time", [
    ...["-f", "%M", "-o", report, ...command],
  ]);
  return Number(await Deno.readTextFile(report)) / 1024;
}

/**
 * The machine: processor, memory, system, versions, and its load before the
 * run.
 * With a load above 1 or so, the figures mean little.
 */
export async function machine(): Promise<string> {
  const cpuinfo = await Deno.readTextFile("/proc/cpuinfo");
  const model = /^model name\s*: (.*)$/m.exec(cpuinfo)?.[1] ?? Deno.build.arch;
  const { total } = Deno.systemMemoryInfo();
  const { stdout } = await new Deno.Command("qemu-img", { args: ["--version"] })
    .output();
  const qemu = /version ([\d.]+)/.exec(new TextDecoder().decode(stdout))?.[1];
  return `${model}, ${navigator.hardwareConcurrency} cores, ` +
    `${Math.round(total / 2 ** 30)} GiB; Linux ${Deno.osRelease()}; ` +
    `Deno ${Deno.version.deno}; qemu-img ${qemu}; ` +
    `load ${Deno.loadavg()[0].toFixed(1)}`;
}
