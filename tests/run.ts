/**
 * `deno task test`: prints a dot for each test, failures in full, and at the
 * end the reasons for skipped tests. Arguments are passed to `deno test`.
 *
 * With `BDRV_REQUIRE_QEMU=1` in the environment, as in CI, tests may be skipped
 * only for lack of a privilege, which they must name.
 *
 * @module
 */
const ROOT = new URL("..", import.meta.url).pathname;
const COLUMNS = 80;

/** Puts dots, which arrive a line each, next to each other. */
class Dots {
  #column = 0;

  /** Show a line of the reporter. */
  show(line: string): void {
    // deno-lint-ignore no-control-regex
    const mark = line.replace(/\x1b\[[0-9;]*m/g, "");
    const isDot = mark === "." || mark === "," || mark === "!";
    const gap = isDot
      ? this.#column === COLUMNS ? "\n" : ""
      : this.#column > 0
      ? "\n"
      : "";
    this.#column = isDot ? this.#column % COLUMNS + 1 : 0;
    write(gap + line + (isDot ? "" : "\n"));
  }
}

function write(text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) {
    at += Deno.stdout.writeSync(bytes.subarray(at));
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop()!;
    yield* lines;
  }
  if (rest !== "") yield rest;
}

/** Run `deno test`; returns its exit code, and how many tests it skipped. */
async function runTests(
  skips: string,
): Promise<{ code: number; ignored: number }> {
  const hasReporter = Deno.args.some((arg) => arg.startsWith("--reporter"));
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["test", "--quiet", "-A", "--doc", "--parallel"],
      // These have a task of their own, which starts the services.
      "--ignore=tests/services",
      ...hasReporter ? [] : ["--reporter=dot"],
      ...Deno.args,
    ],
    cwd: ROOT,
    env: {
      BDRV_SKIPS: skips,
      ...(!Deno.stdout.isTerminal() && { NO_COLOR: "1" }),
    },
    stdin: "null",
    stdout: "piped",
  }).spawn();
  const dots = new Dots();
  let ignored = 0;
  for await (const line of linesOf(child.stdout)) {
    dots.show(line);
    const summary = /^.*\| \d+ failed.* \| (\d+) ignored/.exec(line);
    if (summary) ignored = Number(summary[1]);
  }
  return { code: (await child.status).code, ignored };
}

const skips = Deno.makeTempFileSync({ prefix: "bdrv-skips-" });
try {
  const { code, ignored } = await runTests(skips);
  const reasons = Map.groupBy(
    Deno.readTextFileSync(skips).split("\n").filter((line) => line !== ""),
    (line) => line,
  );
  let allowed = 0;
  for (const [line, { length }] of reasons) {
    const [kind, ...words] = line.split(" ");
    if (kind === "privilege") allowed += length;
    const tests = length === 1
      ? "1 test that needs"
      : `${length} tests that need`;
    write(`Skipped: ${tests} ${words.join(" ")}\n`);
  }
  const isStrict = Deno.env.get("BDRV_REQUIRE_QEMU") === "1";
  const unsaid = isStrict ? ignored - allowed : 0;
  if (unsaid > 0) {
    write(`FAILED: ${unsaid} skipped, and not for want of a privilege\n`);
  }
  Deno.exitCode = code !== 0 ? code : unsaid > 0 ? 1 : 0;
} finally {
  Deno.removeSync(skips);
}
