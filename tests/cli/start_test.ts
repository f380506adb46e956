/**
 * What a start costs: commands that do little must not touch parts of Deno that
 * are slow to initialize (its timers, `process`, and comparison by locale).
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { run, runOk, TempDir } from "../qemu.ts";

const ROOT = new URL("../..", import.meta.url).href;

/** Runs the command line, and reports each use of a slow part. */
const SPY = `
const scope = globalThis;
const report = (name) => console.error("USED " + name);
for (const name of ["setTimeout", "setInterval", "clearTimeout", "clearInterval"]) {
  const real = scope[name];
  scope[name] = (...args) => (report(name), real(...args));
}
for (const name of ["process", "Buffer"]) {
  const real = Object.getOwnPropertyDescriptor(scope, name);
  Object.defineProperty(scope, name, {
    configurable: true,
    get: () => (report(name), real.get ? real.get.call(scope) : real.value),
  });
}
for (const [type, name] of [[String, "localeCompare"], [Number, "toLocaleString"]]) {
  const real = type.prototype[name];
  type.prototype[name] = function (...args) {
    report(name);
    return real.apply(this, args);
  };
}
const { main } = await import("${ROOT}cli/main.ts");
Deno.exit(await main(Deno.args));
`;

const CALLS = [
  "--version",
  "--help",
  "create -f qcow2 a 1G",
  "snapshot -c one a",
  "snapshot -l a",
  "info a",
  "info --output=json a",
  "check a",
  "map a",
  "resize a 2G",
  "measure --size 1G",
  "amend -o lazy_refcounts=on a",
  "create -f qcow2 -b a -F qcow2 b",
  "rebase -u -b a -F qcow2 b",
  "info missing",
  "qemu-io -c info a",
];

Deno.test("commands that do little initialize nothing slow", async (t) => {
  await using dir = new TempDir();
  const cwd = dir.path;
  Deno.writeTextFileSync(dir.file("spy.js"), SPY);
  const flags = [
    "--quiet",
    "-A",
    `--config=${new URL(ROOT).pathname}deno.json`,
  ];
  const spied = [Deno.execPath(), "run", ...flags, dir.file("spy.js")];
  for (const call of CALLS) {
    await t.step(call, async () => {
      const { stderr } = await run([...spied, ...call.split(" ")], { cwd });
      assertEquals(stderr.match(/USED .*/g), null);
    });
  }
  await t.step(
    "compressing does, which proves that this test can fail",
    async () => {
      Deno.writeFileSync(dir.file("data"), new Uint8Array(1 << 16).fill(1));
      const { stderr } = await run(
        [...spied, ..."convert -c -O qcow2 data c".split(" ")],
        { cwd },
      );
      assertEquals(stderr.includes("USED process"), true);
      await runOk([...spied, "compare", "data", "c"], { cwd });
    },
  );
});
