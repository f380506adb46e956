/**
 * The command line as `deno task build` bundles it.
 *
 * @module
 */
import { run, runOk, TempDir } from "../qemu.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

/** Whether the bundler is installed, or can be downloaded. */
export async function canBundle(): Promise<boolean> {
  await using dir = new TempDir();
  Deno.writeTextFileSync(dir.file("a.ts"), "");
  const command = ["timeout", "30", Deno.execPath(), "bundle", "a.ts"];
  return (await run(command, { cwd: dir.path })).code === 0;
}

/** Build it into a folder. */
export async function build(folder: string): Promise<void> {
  const task = Deno.readTextFileSync(`${ROOT}deno.json`);
  const words: string[] = JSON.parse(task).tasks.build.command.split(" ");
  const outdir = words.indexOf("--outdir");
  const command = words.with(0, Deno.execPath()).with(outdir + 1, folder);
  await runOk(command, { cwd: ROOT });
}
