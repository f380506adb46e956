/**
 * What tests against QEMU's own tools share: running programs, temporary
 * folders, and skipping by name where the tools are not installed.
 *
 * @module
 */

/** What a program left behind. */
export interface Outcome {
  /** Its exit code. */
  code: number;
  /** Everything it wrote to standard output. */
  stdout: string;
  /** Everything it wrote to standard error. */
  stderr: string;
}

/** How to run a program. */
export interface RunOptions {
  /** Its working folder. */
  cwd?: string;
  /** Variables added to its environment. */
  env?: Record<string, string>;
  /** What it reads from standard input; nothing if absent. */
  stdin?: string;
}

const ROOT = new URL("..", import.meta.url).pathname;

/** The command line of this project, as a list that `run` takes. */
export const BDRV: readonly string[] = [
  Deno.execPath(),
  "run",
  "--quiet",
  "--no-prompt",
  "--allow-all",
  `--config=${ROOT}deno.json`,
  `${ROOT}cli.ts`,
];

const installed = new Map<string, boolean>();

/** Whether a program can be run here. */
export function isInstalled(program: string): boolean {
  let known = installed.get(program);
  if (known === undefined) {
    try {
      new Deno.Command(program, {
        args: ["--version"],
        stdout: "null",
        stderr: "null",
      }).outputSync();
      // Not all of them know that option; it is enough that they run.
      known = true;
    } catch {
      known = false;
    }
    installed.set(program, known);
  }
  return known;
}

/**
 * A command that can take neither all memory nor all time, since QEMU's tools
 * take as much as a damaged image asks for.
 */
function withinLimits(command: readonly string[]): readonly string[] {
  if (!command[0].startsWith("qemu-") || !isInstalled("prlimit")) {
    return command;
  }
  return ["prlimit", "--as=3000000000", "--cpu=60", ...command];
}

/** Run a program, and wait for its end. */
export async function run(
  command: readonly string[],
  options: RunOptions = {},
): Promise<Outcome> {
  const [program, ...args] = withinLimits(command);
  const child = new Deno.Command(program, {
    args,
    cwd: options.cwd,
    env: { LC_ALL: "C", TZ: "UTC", ...options.env },
    stdin: options.stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writing = options.stdin === undefined
    ? Promise.resolve()
    : ReadableStream.from([new TextEncoder().encode(options.stdin)])
      .pipeTo(child.stdin);
  // Its output is read meanwhile: it may wait for that.
  const [{ code, stdout, stderr }] = await Promise.all([
    child.output(),
    writing.catch(() => {}), // It need not read everything.
  ]);
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

/** Run a program that must succeed; answers its standard output. */
export async function runOk(
  command: readonly string[],
  options?: RunOptions,
): Promise<string> {
  const { code, stdout, stderr } = await run(command, options);
  if (code !== 0) {
    throw new Error(`${command.join(" ")}: exit code ${code}\n${stderr}`);
  }
  return stdout;
}

/** A folder that disappears at the end of an `await using` block. */
export class TempDir implements AsyncDisposable {
  /** Its path, without a slash at the end. */
  readonly path: string = Deno.makeTempDirSync({ prefix: "bdrv-test-" });

  /** The path of a file in it. */
  file(name: string): string {
    return `${this.path}/${name}`;
  }

  /** Removes it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

/**
 * A test that needs QEMU's tools. Without them it is reported as ignored, by
 * its name; with `BDRV_REQUIRE_QEMU=1` in the environment it fails instead.
 *
 * @param tools The programs it needs. Default: `qemu-img`.
 */
export function qemuTest(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
  tools: readonly string[] = ["qemu-img"],
): void {
  const missing = tools.filter((tool) => !isInstalled(tool));
  const required = Deno.env.get("BDRV_REQUIRE_QEMU") === "1";
  Deno.test({
    name,
    ignore: missing.length > 0 && !required,
    fn: async (t) => {
      if (missing.length > 0) {
        throw new Error(`Not installed: ${missing.join(", ")}`);
      }
      await fn(t);
    },
  });
}
