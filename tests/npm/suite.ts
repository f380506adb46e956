/**
 * Runs the command line's tests on a program that is not run from source: the
 * npm package on some runtime, or a compiled file.
 *
 * `deno run -A tests/npm/suite.ts COMMAND [ARGUMENT…] [-- TEST…]` runs all of
 * `tests/cli`, or the named tests: it takes about as long as
 * `deno task test tests/cli`.
 *
 * @module
 */
import { assertEquals } from "@std/assert";

const ROOT = new URL("../..", import.meta.url).pathname;

/**
 * The tests that CI runs with every way to run the program; they take seconds.
 * All of them would take minutes each time, and some are about Deno, its
 * permissions and sources: `build`, `mistakes`, `permissions`, `program`,
 * `start`.
 */
export const SAMPLE: readonly string[] = [
  "bitmap",
  "chain",
  "failures",
  "json",
  "measure",
  "numbers",
  "resize",
  "snapshot",
].map((name) => `tests/cli/${name}_test.ts`);

/** Run tests on a command; returns their output, and whether all pass. */
export async function runSuite(
  command: readonly string[],
  tests: readonly string[],
): Promise<{ isPassed: boolean; output: string }> {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["test", "-A", "--no-check", "--parallel", "--quiet", ...tests],
    cwd: ROOT,
    env: {
      BDRV_COMMAND: JSON.stringify(command),
      // Neither Node.js nor Bun can call system functions.
      BDRV_HAS_FFI: "0",
      NO_COLOR: "1",
    },
  }).output();
  const text = new TextDecoder();
  const output = text.decode(stdout) + text.decode(stderr);
  return { isPassed: success, output };
}

/**
 * As {@linkcode runSuite}, for tests: fails, with the output, unless all pass.
 */
export async function assertSuite(command: readonly string[]): Promise<void> {
  const { isPassed, output } = await runSuite(command, SAMPLE);
  const failures = output.slice(Math.max(0, output.indexOf(" ERRORS ")));
  assertEquals(isPassed ? "" : failures, "");
}

if (import.meta.main) {
  const end = Deno.args.indexOf("--");
  const [command, tests] = end < 0
    ? [Deno.args, ["tests/cli"]]
    : [Deno.args.slice(0, end), Deno.args.slice(end + 1)];
  const { isPassed, output } = await runSuite(command, tests);
  console.log(output);
  Deno.exitCode = isPassed ? 0 : 1;
}
