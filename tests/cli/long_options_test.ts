/**
 * The long options that QEMU has gained since 7.2, whose programs knew most
 * options only by their letters.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { commandsOf } from "../../cli/image_tool.ts";
import { Program } from "../../cli/program.ts";
import { BDRV, isBeyond, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** The long form of each letter. Letters that are missing have none. */
const NAMES: { readonly [command: string]: { [letter: string]: string } } = {
  amend: { f: "format", o: "options", t: "cache", p: "progress", q: "quiet" },
  bench: {
    c: "count",
    d: "depth",
    f: "format",
    i: "aio",
    n: "native",
    o: "offset",
    q: "quiet",
    s: "buffer-size",
    S: "step-size",
    t: "cache",
    U: "force-share",
    w: "write",
  },
  bitmap: {
    b: "source-file",
    f: "format",
    F: "source-format",
    g: "granularity",
  },
  check: {
    f: "format",
    q: "quiet",
    r: "repair",
    T: "cache",
    U: "force-share",
  },
  commit: {
    b: "base",
    d: "drop",
    f: "format",
    p: "progress",
    q: "quiet",
    r: "rate-limit",
    t: "cache",
  },
  compare: {
    f: "a-format",
    F: "b-format",
    p: "progress",
    q: "quiet",
    s: "strict",
    T: "cache",
    U: "force-share",
  },
  convert: {
    b: "backing",
    c: "compress",
    C: "copy-range-offloading",
    f: "source-format",
    F: "backing-format",
    l: "snapshot",
    m: "parallel",
    n: "no-create",
    o: "target-format-options",
    O: "target-format",
    p: "progress",
    q: "quiet",
    r: "rate-limit",
    S: "sparse-size",
    t: "target-cache",
    T: "source-cache",
    U: "force-share",
    W: "oob-writes",
  },
  create: {
    b: "backing",
    f: "format",
    F: "backing-format",
    o: "options",
    q: "quiet",
    u: "backing-unsafe",
  },
  dd: { f: "format", O: "output-format", U: "force-share" },
  info: { f: "format", t: "cache", U: "force-share" },
  map: {
    f: "format",
    l: "max-length",
    s: "start-offset",
    U: "force-share",
  },
  measure: {
    f: "format",
    l: "snapshot",
    o: "options",
    O: "target-format",
    s: "size",
    U: "force-share",
  },
  rebase: {
    b: "backing",
    c: "compress",
    f: "format",
    F: "backing-format",
    p: "progress",
    q: "quiet",
    t: "cache",
    T: "backing-cache",
    u: "backing-unsafe",
    U: "force-share",
  },
  resize: { f: "format", q: "quiet" },
  snapshot: {
    a: "apply",
    c: "create",
    d: "delete",
    f: "format",
    l: "list",
    q: "quiet",
    U: "force-share",
  },
};

for (const [name, { load }] of commandsOf(new Program("qemu-img"))) {
  Deno.test(`the long options of ${name} are those of newer QEMU`, async () => {
    const { command } = await load();
    const names = Object.fromEntries(
      command.options.filter(({ short }) => short && short !== "h")
        .map(({ short, long }) => [short, long]),
    );
    assertEquals(names, NAMES[name]);
  });
}

/** Calls of newer QEMU, and the same calls of 7.2. */
const CALLS: readonly [later: string, before: string][] = [
  [
    "create --quiet --format qcow2 --options=cluster_size=4k a.qcow2 4M",
    "create -q -f qcow2 -o cluster_size=4k a.qcow2 4M",
  ],
  [
    "create -f qcow2 --backing a.qcow2 -B qcow2 b.qcow2",
    "create -f qcow2 -b a.qcow2 -F qcow2 b.qcow2",
  ],
  [
    "create -f qcow2 --backing-unsafe -b none --backing-format=raw c.qcow2 1M",
    "create -f qcow2 -u -b none -F raw c.qcow2 1M",
  ],
  ["snapshot --create one a.qcow2", "snapshot -c one a.qcow2"],
  ["snapshot --apply one a.qcow2", "snapshot -a one a.qcow2"],
  ["snapshot --delete one a.qcow2", "snapshot -d one a.qcow2"],
  ["snapshot -f qcow2 --list a.qcow2", "snapshot -l a.qcow2"],
  ["check --cache none --quiet a.qcow2", "check -T none -q a.qcow2"],
  [
    "compare --strict --a-format qcow2 --b-format qcow2 a.qcow2 b.qcow2",
    "compare -s -f qcow2 -F qcow2 a.qcow2 b.qcow2",
  ],
  ["resize a.qcow2 --shrink -1M", "resize --shrink a.qcow2 -1M"],
  ["resize -1M --shrink a.qcow2", "resize --shrink a.qcow2 -1M"],
  ["resize a.qcow2 +1M --quiet", "resize -q a.qcow2 +1M"],
  ["resize a.qcow2 9M --preallocation off", "resize a.qcow2 9M"],
];

qemuTest("newer calls do what their older forms do in qemu-img", async () => {
  await using ours = new TempDir();
  await using theirs = new TempDir();
  for (const [later, before] of CALLS) {
    if (isBeyond(later)) continue;
    const [actual, expected] = await Promise.all([
      run([...BDRV, "qemu-img", ...later.split(" ")], { cwd: ours.path }),
      run(["qemu-img", ...before.split(" ")], { cwd: theirs.path }),
    ]);
    assertEquals(actual, expected, later);
  }
  const size = async ({ path }: TempDir) =>
    JSON.parse(
      await runOk(["qemu-img", "info", "--output=json", `${path}/a.qcow2`]),
    )["virtual-size"];
  assertEquals(await size(ours), await size(theirs));
});

Deno.test("snapshot lists by default under our own name", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  const bdrv = (call: string) => runOk([...BDRV, ...call.split(" ")], { cwd });
  await bdrv("create -q -f qcow2 a 1M");
  await bdrv("snapshot -c one a");
  const list = await bdrv("snapshot -l a");
  assertEquals(list.split("\n").length, 4);
  assertEquals(await bdrv("snapshot a"), list);
  assertEquals(await bdrv("qemu-img snapshot a"), "");
});
