/**
 * `deno task compile [TARGET…] [PERMISSION…]`: the command line as one
 * executable file, and links by which it is called as QEMU's programs are.
 *
 * Each target has a folder of its own in `dist/`; without one it is this
 * machine's. `all` stands for the five of them. Permissions are compiled in:
 * those that are given, such as `--allow-read=/images`, or else all.
 *
 * @module
 */
const ROOT = new URL("..", import.meta.url).pathname;

const TARGETS = [
  "x86_64-unknown-linux-gnu",
  "aarch64-unknown-linux-gnu",
  "x86_64-apple-darwin",
  "aarch64-apple-darwin",
  "x86_64-pc-windows-msvc",
];

/** What `deno compile` takes for a permission. */
const PERMISSION = /^(-[A-Z]|--(allow|deny|ignore)-[a-z])/;

/** The names that choose the program when they are what it is called by. */
const LINKS = ["qemu-img", "qemu-io", "qemu-nbd"];

/** What no import leads to: workers are started by their file's name. */
const INCLUDED = ["core/zlib_worker.ts"];

/** Compile for one target. */
async function compile(
  target: string,
  permissions: readonly string[],
): Promise<void> {
  const folder = `${ROOT}dist/${target}`;
  const isWindows = target.includes("windows");
  const name = isWindows ? "bdrv.exe" : "bdrv";
  await Deno.mkdir(folder, { recursive: true });
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["compile", "--quiet", "--no-check", "--no-prompt", ...permissions],
      ...INCLUDED.flatMap((file) => ["--include", file]),
      ...["--target", target, "--output", `${folder}/${name}`, "cli.ts"],
    ],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
    stderr: "piped",
  }).output();
  if (code !== 0) {
    // Only if nothing else is in it, from an earlier run.
    await Deno.remove(folder).catch(() => {});
    throw new Error(reasonOf(new TextDecoder().decode(stderr)));
  }
  console.log(`dist/${target}/${name}`);
  // Where links need a privilege, the name of the program is an argument.
  if (isWindows) return;
  for (const link of LINKS) {
    await Deno.remove(`${folder}/${link}`).catch(() => {});
    await Deno.symlink(name, `${folder}/${link}`);
    console.log(`dist/${target}/${link}`);
  }
}

/** Why `deno compile` failed, in a line. */
function reasonOf(said: string): string {
  const url = /error sending request for url \((\S+?)\)/.exec(said)?.[1];
  if (url?.includes("denort")) {
    return `the runtime cannot be downloaded from ${url}; ` +
      "DENORT_BIN may name a copy of it that you have";
  }
  if (url) return `${url} cannot be downloaded`;
  const [report] = said.split("Stack backtrace");
  const lines = report.split("\n").map((line) => line.trim());
  const first = lines.find((line) => line !== "") ?? "deno compile failed";
  const cause = lines.findLast((line) => /^\d+: /.test(line));
  return first.replace(/^error: /, "") +
    (cause ? `: ${cause.replace(/^\d+: /, "")}` : "");
}

/** What the arguments ask for. */
function parse(args: readonly string[]) {
  const targets = args.filter((arg) => !arg.startsWith("-"));
  const permissions = args.filter((arg) => arg.startsWith("-"));
  // With others, such as --help, nothing may be compiled.
  const other = permissions.find((flag) => !PERMISSION.test(flag));
  if (other !== undefined) {
    throw new Error(
      `'${other}' is no permission; those are ` +
        "--allow-all, --allow-read=FOLDER, --allow-write=FOLDER, --allow-ffi",
    );
  }
  const unknown = targets.find((name) =>
    name !== "all" && !TARGETS.includes(name)
  );
  if (unknown !== undefined) {
    throw new Error(
      `there is no target '${unknown}'; it must be one of all, ` +
        TARGETS.join(", "),
    );
  }
  return {
    targets: targets.includes("all")
      ? TARGETS
      : targets.length > 0
      ? targets
      : [Deno.build.target],
    permissions: permissions.length > 0 ? permissions : ["--allow-all"],
  };
}

try {
  const { targets, permissions } = parse(Deno.args);
  for (const target of targets) await compile(target, permissions);
} catch (error) {
  console.error(`Cannot compile: ${(error as Error).message}`);
  Deno.exitCode = 1;
}
