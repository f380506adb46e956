/**
 * Helpers for tests against QEMU's tools: running programs, temporary folders,
 * and skipping tests if the machine lacks tools or privileges.
 *
 * @module
 */

import { RELEASES } from "../cli/qemu_releases.ts";

/** The outcome of a program. */
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
  /** Its standard input; empty if absent. */
  stdin?: string;
}

/** The newest QEMU's tools are in this folder, if the environment names it. */
const NEWEST = Deno.env.get("BDRV_QEMU_NEWEST");

let release: string | undefined;

/**
 * The release of the installed tools, with which our output is compared, such
 * as `7.2`; without any tools, that one.
 */
export function installedRelease(): string {
  return release ??= isInstalled("qemu-img") ? releaseOf("qemu-img") : "7.2";
}

/** The release of a `qemu-img`, or for later ones the newest that we know. */
function releaseOf(program: string): string {
  const { stdout } = new Deno.Command(program, { args: ["--version"] })
    .outputSync();
  const [found] = /\d+\.\d+/.exec(new TextDecoder().decode(stdout))!;
  return RELEASES.includes(found) ? found : RELEASES.at(-1)!;
}

const ROOT = new URL("..", import.meta.url).pathname;

/** A command to test in place of the source: a list of words, as JSON. */
const OTHER = Deno.env.get("BDRV_COMMAND");

/** The command line of this project, for `run`. */
export const BDRV: readonly string[] = OTHER ? JSON.parse(OTHER) : [
  Deno.execPath(),
  "run",
  "--quiet",
  "--no-prompt",
  "--allow-all",
  `--config=${ROOT}deno.json`,
  `${ROOT}cli.ts`,
];

/**
 * Whether the program under test can call system functions, which it needs to
 * lock files, to bypass the page cache, and to find holes: only on Deno.
 */
export const HAS_FFI = Deno.env.get("BDRV_HAS_FFI") !== "0";

/** Command lines that need more of files than every runtime offers. */
const NEEDS_FFI =
  /(^| )(-[tT]|--(source-)?cache)[ =](none|directsync)\b|\b(nocow|extent_size_hint)=|\bcache\.direct=on/;

/** The requirement of tests that need {@linkcode HAS_FFI}. */
export const FFI: Readonly<Record<string, boolean>> = {
  "locks, O_DIRECT and holes (this runtime has no FFI)": HAS_FFI,
};

/**
 * Whether to leave out a call that the program under test cannot do on its
 * runtime; this is recorded like a skipped test.
 *
 * @param needsHoles Whether the output depends on holes in files.
 */
export function isBeyond(call: string, needsHoles = false): boolean {
  if (HAS_FFI || !(needsHoles || NEEDS_FFI.test(call))) return false;
  noteSkip("privilege", Object.keys(FFI)[0]);
  return true;
}

/** Output without the warning that files cannot be locked. */
export function withoutUnlocked(text: string): string {
  if (HAS_FFI) return text;
  return text.split("\n").filter((line) => !/cannot be locked/.test(line))
    .join("\n");
}

const installed = new Map<string, boolean>();

/** Whether a program is installed. */
export function isInstalled(program: string): boolean {
  let known = installed.get(program);
  if (known === undefined) {
    try {
      new Deno.Command(program, {
        args: ["--version"],
        stdout: "null",
        stderr: "null",
      }).outputSync();
      // It may not know the option; it is enough that it runs.
      known = true;
    } catch {
      known = false;
    }
    installed.set(program, known);
  }
  return known;
}

/**
 * A command with limits on memory and time, since a damaged image may make
 * QEMU's tools use any amount.
 */
function withinLimits(command: readonly string[]): readonly string[] {
  if (!command[0].startsWith("qemu-") || !isInstalled("prlimit")) {
    return command;
  }
  return ["prlimit", "--as=3000000000", "--cpu=60", ...command];
}

/**
 * Run a program, and wait for its end. Ours prints what the installed QEMU
 * tools would, unless `BDRV_QEMU_VERSION` is among the variables.
 */
export async function run(
  command: readonly string[],
  options: RunOptions = {},
): Promise<Outcome> {
  const [program, ...args] = withinLimits(command);
  const child = new Deno.Command(program, {
    args,
    cwd: options.cwd,
    env: {
      LC_ALL: "C",
      TZ: "UTC",
      BDRV_QEMU_VERSION: installedRelease(),
      ...options.env,
    },
    stdin: options.stdin === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writing = options.stdin === undefined
    ? Promise.resolve()
    : ReadableStream.from([new TextEncoder().encode(options.stdin)])
      .pipeTo(child.stdin);
  // Read the output meanwhile, for which the program may wait.
  const [{ code, stdout, stderr }] = await Promise.all([
    child.output(),
    writing.catch(() => {}), // It may not read everything.
  ]);
  const text = new TextDecoder();
  return {
    code,
    stdout: text.decode(stdout),
    stderr: withoutUnlocked(text.decode(stderr)),
  };
}

/** Run a program that must succeed; returns its standard output. */
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

/** A function that runs `qemu-io` commands on an image in a folder. */
export function qemuIoIn(cwd: string) {
  return (image: string, ...commands: string[]): Promise<string> =>
    runOk(
      ["qemu-io", ...commands.flatMap((command) => ["-c", command]), image],
      { cwd },
    );
}

/** A folder that is removed at the end of an `await using` block. */
export class TempDir implements AsyncDisposable {
  /** Its path, without a trailing slash. */
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

/** What a test requires of the machine. */
export interface Requirements {
  /** Programs that must be installed. */
  tools?: readonly string[];
  /** Whether it must run as root. */
  root?: boolean;
  /** Whether it creates loop devices. */
  loop?: boolean;
  /** Other privileges by name ("mounting"), and whether they are available. */
  privileges?: Readonly<Record<string, boolean>>;
  /** Other requirements by name ("libc"), and whether they are met. */
  others?: Readonly<Record<string, boolean>>;
}

let loops: boolean | undefined;

/** Whether loop devices can be created, which only trying shows. */
function canMakeLoops(): boolean {
  loops ??= tryLoop();
  return loops;
}

function tryLoop(): boolean {
  if (!isInstalled("losetup")) return false;
  const file = Deno.makeTempFileSync({ prefix: "bdrv-test-" });
  const losetup = (...args: string[]) =>
    new Deno.Command("losetup", { args, stderr: "null" }).outputSync();
  try {
    Deno.truncateSync(file, 4096);
    const made = losetup("--find", "--show", file);
    if (!made.success) return false;
    losetup("--detach", new TextDecoder().decode(made.stdout).trim());
    return true;
  } finally {
    Deno.removeSync(file);
  }
}

/** The missing requirements, each in a few words, privileges separately. */
function missing(needed: Requirements) {
  const absent = (named: Readonly<Record<string, boolean>> = {}) =>
    Object.keys(named).filter((name) => !named[name]);
  const tools = needed.tools?.filter((tool) => !isInstalled(tool)) ?? [];
  return {
    privileges: [
      ...needed.root && Deno.uid() !== 0 ? ["root"] : [],
      ...needed.loop && !canMakeLoops() ? ["loop devices"] : [],
      ...absent(needed.privileges),
    ],
    others: [
      ...tools.map((tool) => `${tool} (not installed)`),
      ...absent(needed.others),
    ],
  };
}

const said = new Set<string>();

/**
 * Record why a test is skipped: in the file that `deno task test` names and
 * summarises, or else on standard error, each reason once.
 */
function noteSkip(kind: "privilege" | "other", reason: string): void {
  const file = Deno.env.get("BDRV_SKIPS");
  if (file) {
    Deno.writeTextFileSync(file, `${kind} ${reason}\n`, { append: true });
  } else if (!said.has(reason)) {
    said.add(reason);
    console.warn(`Tests are skipped that need ${reason}`);
  }
}

/**
 * Whether to skip a test (its `ignore`) because the machine lacks a
 * requirement; the reason is printed once. With `BDRV_REQUIRE_QEMU=1` in the
 * environment only privileges may be missing; any other test is run, and fails.
 */
export function mustSkip(needed: Requirements): boolean {
  const { privileges, others } = missing(needed);
  const strict = Deno.env.get("BDRV_REQUIRE_QEMU") === "1";
  if (others.length > 0 && !strict) {
    noteSkip("other", others.join(", "));
    return true;
  }
  if (privileges.length > 0) {
    noteSkip("privilege", privileges.join(", "));
    return true;
  }
  return false;
}

/**
 * A test that requires QEMU's tools or other things from the machine. Without
 * them it is ignored, and the reason is printed once ({@linkcode mustSkip}).
 *
 * @param needs The required programs, or all requirements. Default: `qemu-img`.
 */
export function qemuTest(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
  needs: readonly string[] | Requirements = ["qemu-img"],
): void {
  const needed = "length" in needs
    ? { tools: needs as readonly string[] }
    : needs as Requirements;
  Deno.test({
    name,
    ignore: mustSkip(needed),
    fn: async (t) => {
      const { others } = missing(needed);
      if (others.length > 0) throw new Error(`Missing: ${others.join(", ")}`);
      await fn(t);
    },
  });
}

/**
 * A test against the newest QEMU's tools. It is skipped where the machine has
 * no way to get them, even in CI.
 */
export function newestQemuTest(
  name: string,
  fn: (tools: Tools, t: Deno.TestContext) => Promise<void>,
): void {
  const needed = {
    privileges: { "the newest QEMU ($BDRV_QEMU_NEWEST)": NEWEST !== undefined },
  };
  Deno.test({
    name,
    ignore: mustSkip(needed),
    fn: async (t) => {
      const img = `${NEWEST}/qemu-img`;
      const io = `${NEWEST}/qemu-io`;
      await fn({ img: [img], io: [io], release: releaseOf(img) }, t);
    },
  });
}

/** A pair of QEMU's tools. */
export interface Tools {
  /** How to call `qemu-img`. */
  readonly img: readonly string[];
  /** How to call `qemu-io`. */
  readonly io: readonly string[];
  /** Their release, for `BDRV_QEMU_VERSION`. */
  readonly release: string;
}

/** The installed tools. */
export function installedTools(): Tools {
  return { img: ["qemu-img"], io: ["qemu-io"], release: installedRelease() };
}

/** Our stand-ins for them. */
export const OUR_TOOLS: Omit<Tools, "release"> = {
  img: [...BDRV, "qemu-img"],
  io: [...BDRV, "qemu-io"],
};
