/**
 * Runs `suite.ts` on other runtimes than Deno, all from npm.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { canBundle } from "../cli/built.ts";
import { mustSkip, run, runOk, TempDir } from "../qemu.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

const RUNTIMES: { [name: string]: readonly string[] } = {
  "Node.js 22": ["npx", "-y", "node@22"],
  "Node.js 24": ["npx", "-y", "node@24"],
  "Bun": ["npx", "-y", "bun@1"],
};
const ESBUILD = ["npx", "-y", "esbuild@0.28"];

/**
 * Whether npm has a runtime for this machine, which may take a while the first
 * time.
 */
async function isThere(command: readonly string[]): Promise<boolean> {
  try {
    const limited = ["timeout", "120", ...command, "--version"];
    return (await run(limited)).code === 0;
  } catch {
    return false; // There may be no `timeout` here.
  }
}

const programs = { ...RUNTIMES, "esbuild": ESBUILD };
const found = await Promise.all(
  Object.entries(programs).map(async ([name, command]) =>
    [name, await isThere(command)] as const
  ),
);

Deno.test({
  name: "the core of the tests passes on Node.js 22 and 24 and on Bun",
  ignore: mustSkip({
    others: { ...Object.fromEntries(found), "deno bundle": await canBundle() },
  }),
  async fn() {
    await using dir = new TempDir();
    const suite = `${ROOT}tests/runtimes/suite.ts`;
    const config = `--config=${ROOT}deno.json`;
    const bundle = [Deno.execPath(), "bundle", "--quiet", config, suite];
    await runOk([...bundle, "-o", dir.file("suite.js")]);
    // As in the published package: only `using` has to be lowered.
    const lowered = dir.file("suite.mjs");
    const target = ["--target=node22", `--outfile=${lowered}`];
    await runOk([...ESBUILD, dir.file("suite.js"), ...target]);
    const outcomes = Object.entries(RUNTIMES).map(async ([name, command]) => {
      const { code, stdout, stderr } = await run([...command, lowered]);
      const isPassed = code === 0 && /^\d+ passed, 0 failed\n$/.test(stdout);
      return isPassed ? undefined : `${name}: ${code}\n${stdout}${stderr}`;
    });
    const failures = (await Promise.all(outcomes)).filter(Boolean);
    assertEquals(failures.join("\n"), "");
  },
});
