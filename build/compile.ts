/**
 * `deno task compile [TARGET…] [PERMISSION…]`: compiles the command line to one
 * executable file, with links named after QEMU's programs.
 *
 * Each target has its own folder in `dist/`; the default target is this
 * machine, `all` means all five. The permissions are compiled in: those given,
 * such as `--allow-read=/images`, or else all of them.
 *
 * With `--with=bun`, the file contains Bun in place of Deno: for this machine
 * only, and without permissions, which Bun does not have.
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

/** Permission flags that `deno compile` takes. */
const PERMISSION = /^(-[A-Z]|--(allow|deny|ignore)-[a-z])/;

/** The flag that selects Bun. */
const WITH_BUN = "--with=bun";

/** Names of links that select a program. */
const LINKS = ["qemu-img", "qemu-io", "qemu-nbd"];

/** Compile for one target. */
async function compile(
  target: string,
  permissions: readonly string[],
): Promise<void> {
  const folder = `${ROOT}dist/${target}`;
  const isWindows = target.includes("windows");
  const name = isWindows ? "bdrv.exe" : "bdrv";
  await Deno.mkdir(folder, { recursive: true });
  const config = await wholeConfig();
  const { code, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["compile", "--quiet", "--no-check", "--no-prompt", ...permissions],
      ...["--config", config, "--target", target],
      ...["--output", `${folder}/${name}`, "cli.ts"],
    ],
    cwd: ROOT,
    env: { NO_COLOR: "1" },
    stderr: "piped",
  }).output().finally(() => Deno.remove(config));
  if (code !== 0) {
    // This rightly fails if an earlier run left other files there.
    await Deno.remove(folder).catch(() => {});
    throw new Error(reasonOf(new TextDecoder().decode(stderr)));
  }
  console.log(`dist/${target}/${name}`);
  // On Windows, links need a privilege; there the program's name is an
  // argument.
  if (!isWindows) await makeLinks(`dist/${target}`, name);
}

/** Link QEMU's program names to the program. */
async function makeLinks(folder: string, name: string): Promise<void> {
  for (const link of LINKS) {
    await Deno.remove(`${ROOT}${folder}/${link}`).catch(() => {});
    await Deno.symlink(name, `${ROOT}${folder}/${link}`);
    console.log(`${folder}/${link}`);
  }
}

/** Compile with Bun. */
async function compileByBun(): Promise<void> {
  const { compileWithBun } = await import("./bun.ts");
  const isWindows = Deno.build.os === "windows";
  const name = isWindows ? "bdrv.exe" : "bdrv";
  await Deno.mkdir(`${ROOT}dist/bun`, { recursive: true });
  await compileWithBun(`${ROOT}dist/bun/${name}`);
  console.log(`dist/bun/${name}`);
  if (!isWindows) await makeLinks("dist/bun", name);
}

/**
 * Copy the configuration in a form that has Deno see all modules at once: those
 * that a checkout loads lazily must be in the file too.
 */
async function wholeConfig(): Promise<string> {
  const { unstable: _, ...config } = JSON.parse(
    await Deno.readTextFile(`${ROOT}deno.json`),
  );
  const path = await Deno.makeTempFile({
    dir: ROOT,
    prefix: ".compile-",
    suffix: ".json",
  });
  await Deno.writeTextFile(path, JSON.stringify(config));
  return path;
}

/** Why `deno compile` failed, as one line. */
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

/** Parse the arguments. */
function parse(args: readonly string[]) {
  const targets = args.filter((arg) => !arg.startsWith("-"));
  const permissions = args.filter((arg) => arg.startsWith("-"));
  // Other flags, such as --help, might have it not compile at all.
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
  if (Deno.args.includes(WITH_BUN)) {
    const other = Deno.args.find((arg) => arg !== WITH_BUN);
    if (other !== undefined) {
      throw new Error(`'${other}' does not go with ${WITH_BUN}`);
    }
    await compileByBun();
  } else {
    const { targets, permissions } = parse(Deno.args);
    for (const target of targets) await compile(target, permissions);
  }
} catch (error) {
  console.error(`Cannot compile: ${(error as Error).message}`);
  Deno.exitCode = 1;
}
