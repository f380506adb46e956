/**
 * `commit` and `rebase`, compared with qemu-img's: the same calls on the same
 * files must print the same, exit with the same code, and leave the same disks,
 * as seen by QEMU.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { BDRV, FFI, qemuTest, run, runOk, TempDir } from "../qemu.ts";

interface Case {
  /** Makes the files: lines for a shell. */
  setup: string[];
  /** Calls of the program, in order. */
  calls: string[];
  /** Images whose maps, as QEMU shows them, must be equal. */
  images: string[];
}

/** Makes a qcow2 image with qemu-img, and writes to it with qemu-io. */
function image(name: string, options: string, ...requests: string[]): string[] {
  const made = `qemu-img create -q -f qcow2 ${options} ${name}`;
  const [size] = options.match(/\S+$/) ?? [];
  const command = size && /^\d+[kMG]?$/.test(size)
    ? `qemu-img create -q -f qcow2 ${
      options.slice(0, -size.length)
    } ${name} ${size}`
    : made;
  if (requests.length === 0) return [command];
  const words = requests.map((request) => `-c "${request}"`).join(" ");
  return [command, `qemu-io -f qcow2 ${words} ${name} >/dev/null`];
}

const BASE = [
  "write -P 1 0 1M",
  "write -P 2 2M 64k",
  "write -z 3M 64k",
];
const OVERLAY = [
  "write -P 3 512k 1M",
  "write -z 2M 64k",
  "write -P 9 3M 512",
];
const PAIR = [
  ...image("base", "4M", ...BASE),
  ...image("over", "-b base -F qcow2 4M", ...OVERLAY),
];
const THREE = [
  ...image("new", "4M", "write -P 1 0 512k", "write -P 5 1M 2M"),
  ...PAIR,
];
const PAIR_IMAGES = ["base", "over"];
const LONG = "n".repeat(1100);

const CASES: { [name: string]: Case } = {
  "commit, the simple calls": {
    setup: PAIR,
    calls: ["commit over"],
    images: PAIR_IMAGES,
  },
  "commit -d, and -q": {
    setup: PAIR,
    calls: ["commit -d over", "commit -q over"],
    images: PAIR_IMAGES,
  },
  "commit with a limit on the rate, and a cache mode": {
    setup: PAIR,
    calls: ["commit -r 1G -t none over"],
    images: PAIR_IMAGES,
  },
  "commit of version 2": {
    setup: [
      ...image("base", "-o compat=0.10 4M", ...BASE.slice(0, 2)),
      ...image("over", "-o compat=0.10 -b base -F qcow2 4M", ...OVERLAY),
    ],
    calls: ["commit over"],
    images: PAIR_IMAGES,
  },
  "commit with snapshots": {
    setup: [
      ...PAIR,
      "qemu-img snapshot -c s over",
      "qemu-img snapshot -c s base",
    ],
    calls: ["commit over"],
    images: [],
  },
  "commit to a raw base, which grows": {
    setup: [
      "qemu-img create -q -f raw base 1M",
      ...image("over", "-b base -F raw 3M", ...OVERLAY.slice(0, 1)),
    ],
    calls: ["commit over"],
    images: ["over"],
  },
  "commit down a chain": {
    setup: [
      ...PAIR,
      ...image("top", "-b over -F qcow2", "write -P 7 1M 1M"),
    ],
    calls: [
      "commit -b nothing top",
      "commit -p -b top top",
      "commit -b base top",
      "commit -b ./base top",
      "commit -b over top",
      "commit top",
    ],
    images: [...PAIR_IMAGES, "top"],
  },
  "commit below a folder": {
    setup: ["mkdir d", "cd d", ...PAIR, "cd .."],
    calls: [
      "commit -b d/base d/over",
      "commit -b base d/over",
      "commit d/over",
    ],
    images: [],
  },
  "commit across a shorter intermediate image": {
    setup: [
      ...image("base", "4M", "write -P 1 0 4M"),
      ...image("middle", "-b base -F qcow2 1M"),
      ...image("over", "-b middle -F qcow2 4M", "write -P 3 512k 64k"),
    ],
    calls: ["commit -b base over"],
    images: ["base", "middle", "over"],
  },
  "commit with --image-opts": {
    setup: PAIR,
    calls: [
      "commit --image-opts -f qcow2 driver=qcow2,file.filename=over",
      "commit -b base --image-opts driver=qcow2,file.filename=over," +
      "backing.driver=qcow2,backing.file.filename=base",
    ],
    images: PAIR_IMAGES,
  },
  "commit, mistakes": {
    setup: PAIR,
    calls: [
      "commit",
      "commit base over",
      "commit base",
      "commit nothing",
      "commit -f raw over",
      "commit -f nothing over",
      "commit -t x over",
      "commit -r x over",
      "commit -r -1 over",
      "commit -r",
      "commit -Z over",
    ],
    images: PAIR_IMAGES,
  },
  "rebase to another image": {
    setup: THREE,
    calls: ["rebase -b new -F qcow2 over"],
    images: ["over"],
  },
  "rebase to no backing file": {
    setup: THREE,
    calls: ["rebase -b '' over"],
    images: ["over"],
  },
  "rebase to the same": {
    setup: THREE,
    calls: ["rebase -b base -F qcow2 over"],
    images: ["over"],
  },
  "rebase, unsafely": {
    setup: THREE,
    calls: [
      "rebase -u -b new -F qcow2 over",
      "info over",
      "rebase -u over",
      "info over",
      "rebase -u -b nothing -F raw over",
      "info over",
      "rebase -b new -F qcow2 over",
      "rebase -u -b '' over",
    ],
    images: ["over"],
  },
  "rebase within the chain": {
    setup: [
      ...PAIR,
      ...image("top", "-b over -F qcow2", "write -P 8 1M 64k"),
    ],
    calls: ["rebase -b base -F qcow2 top"],
    images: ["top"],
  },
  "rebase within a chain with a shorter image in the middle": {
    setup: [
      ...image("base", "4M", "write -P 1 0 4M"),
      ...image("middle", "-b base -F qcow2 1M", "write -P 4 0 64k"),
      ...image("over", "-b middle -F qcow2 4M", "write -P 2 2M 64k"),
    ],
    calls: ["rebase -b base -F qcow2 over"],
    images: ["over"],
  },
  "rebase from a shorter to a longer backing file": {
    setup: [
      "yes | head -c 1000000 >old",
      ...image("new", "4M", "write -P 7 0 4M"),
      ...image("over", "-b old -F raw 3M", "write -P 3 512k 64k"),
    ],
    calls: ["rebase -b new -F qcow2 over"],
    images: ["over"],
  },
  "rebase from a longer to a shorter backing file": {
    setup: [
      "yes | head -c 1000000 >new",
      ...image("old", "4M", "write -P 7 0 4M"),
      ...image("over", "-b old -F qcow2 3M", "write -P 3 512k 64k"),
    ],
    calls: ["rebase -b new -F raw over"],
    images: ["over"],
  },
  "rebase from no backing file": {
    setup: [
      ...image("new", "4M", "write -P 7 0 1M"),
      ...image("over", "3M", "write -P 3 512k 64k"),
    ],
    calls: ["rebase -b new -F qcow2 over"],
    images: ["over"],
  },
  "rebase with other cluster sizes": {
    setup: [
      ...image("new", "-o cluster_size=4k 4M", "write -P 1 0 512k"),
      ...image("base", "4M", ...BASE),
      ...image("over", "-o cluster_size=2M -b base -F qcow2 4M"),
    ],
    calls: ["rebase -b new -F qcow2 over"],
    images: ["over"],
  },
  "rebase below a folder": {
    setup: ["mkdir d", "cd d", ...THREE, "cd .."],
    calls: ["rebase -b new -F qcow2 d/over", "info d/over"],
    images: ["d/over"],
  },
  "rebase, mistakes": {
    setup: THREE,
    calls: [
      "rebase",
      "rebase over",
      "rebase -b",
      "rebase -b new -F qcow2 base over",
      "rebase -b new over",
      "rebase -u -b new over",
      "rebase -b nothing -F qcow2 over",
      "rebase -b new -F nothing over",
      "rebase -t x -b new -F qcow2 over",
      "rebase -p -T x -b new -F qcow2 over",
      "rebase -b over -F qcow2 over",
      `rebase -u -b ${LONG} -F raw over`,
      "rebase -f raw -u over",
      "rebase -f raw -u -b x -F raw over",
      "rebase -Z over",
    ],
    // QEMU notices the missing format only after it has copied everything.
    images: [],
  },
};

/** The outcome of a case with one of the programs. */
async function outcome(
  { setup, calls, images }: Case,
  program: readonly string[],
): Promise<string> {
  await using folder = new TempDir();
  const cwd = folder.path;
  await runOk(["sh", "-ec", setup.join("\n")], { cwd });
  const lines: string[] = [];
  for (const call of calls) {
    const words = call.split(" ").map((word) => word === "''" ? "" : word);
    const { code, stdout, stderr } = await run([...program, ...words], { cwd });
    // A file's disk usage depends on the order of writes as well.
    const shown = stdout.replace(/disk size: .*/, "disk size: …");
    lines.push(`$ ${call}`, shown, stderr, `= ${code}`);
  }
  for (const image of images) {
    const map = ["qemu-img", "map", "--output=json", image];
    // Each program may place things in the file as it likes.
    lines.push(joined(JSON.parse(await runOk(map, { cwd }))));
    await runOk(["qemu-img", "check", "-q", image], { cwd });
  }
  return lines.join("\n");
}

interface MapEntry {
  start: number;
  length: number;
  offset?: number;
}

/** A map without host offsets, with equal neighbours merged. */
function joined(entries: MapEntry[]): string {
  const parts: MapEntry[] = [];
  for (const { offset: _, ...entry } of entries) {
    const last = parts.at(-1);
    const alike = last && JSON.stringify({ ...last, start: 0, length: 0 }) ===
        JSON.stringify({ ...entry, start: 0, length: 0 });
    if (alike) last.length += entry.length;
    else parts.push(entry);
  }
  return parts.map((part) => JSON.stringify(part)).join("\n");
}

/** Cases that bypass the page cache, or run into a lock. */
const NEED_FFI = [
  "commit with a limit on the rate, and a cache mode",
  "rebase, mistakes",
];

for (const [name, example] of Object.entries(CASES)) {
  qemuTest(`as qemu-img: ${name}`, async () => {
    const [theirs, ours] = await Promise.all([
      outcome(example, ["qemu-img"]),
      outcome(example, [...BDRV, "qemu-img"]),
    ]);
    assertEquals(ours, theirs);
  }, {
    tools: ["qemu-img", "qemu-io"],
    privileges: NEED_FFI.includes(name) ? FFI : {},
  });
}

qemuTest("commit says why it failed, under either name", async () => {
  await using folder = new TempDir();
  const cwd = folder.path;
  // The backing file fails at the first write to its data.
  const backing = JSON.stringify({
    driver: "qcow2",
    file: {
      driver: "blkdebug",
      "inject-error": [{ event: "write_aio", errno: 28, once: true }],
      image: { driver: "file", filename: "base" },
    },
  });
  await runOk(["sh", "-ec", image("base", "1M").join("\n")], { cwd });
  const create = ["create", "-q", "-f", "qcow2", "-b", `json:${backing}`];
  await runOk(["qemu-img", ...create, "-F", "qcow2", "over"], { cwd });
  await runOk(["qemu-io", "-c", "write -P 5 0 64k", "over"], { cwd });
  const { stderr: theirs } = await run(["qemu-img", "commit", "over"], { cwd });
  const command = [...BDRV, "qemu-img", "commit", "over"];
  assertEquals((await run(command, { cwd })).stderr, theirs);
  const { code, stderr } = await run([...BDRV, "commit", "over"], { cwd });
  assertEquals(code, 1);
  assertStringIncludes(stderr, "Cannot commit 'over': error while writing at");
  assertStringIncludes(stderr, "Nothing is lost: 'over' holds what it held");
}, ["qemu-img", "qemu-io"]);

qemuTest(
  "rebase of version 2 from none hides the new base's data",
  async () => {
    // qemu-img 7.2 lets it show through: version 2 cannot record zeroes.
    await using folder = new TempDir();
    const cwd = folder.path;
    const setup = [
      ...image("new", "1M", "write -P 7 0 1M"),
      ...image("over", "-o compat=0.10 1M"),
    ];
    await runOk(["sh", "-ec", setup.join("\n")], { cwd });
    await runOk([...BDRV, "rebase", "-b", "new", "over"], { cwd });
    await runOk(["qemu-io", "-r", "-c", "read -P 0 0 1M", "over"], { cwd })
      .then((text) => assert(!text.includes("failed"), text));
  },
  ["qemu-img", "qemu-io"],
);

qemuTest(
  "rebase -c compresses what it copies; long options work",
  async () => {
    await using folder = new TempDir();
    const cwd = folder.path;
    await runOk(["sh", "-ec", THREE.join("\n")], { cwd });
    const convert = ["convert", "-O", "raw", "over", "before"];
    await runOk(["qemu-img", ...convert], { cwd });
    const options = [
      "--compress",
      "--quiet",
      "--backing=new",
      "--format=qcow2",
    ];
    const command = [...BDRV, "qemu-img", "rebase", ...options];
    await runOk([...command, "--backing-format=qcow2", "over"], { cwd });
    const check = await runOk(["qemu-img", "check", "over"], { cwd });
    assert(!check.includes(" 0.00% compressed"), check);
    await runOk(["qemu-img", "compare", "over", "before"], { cwd });
    const commit = [...BDRV, "qemu-img", "commit", "--quiet", "--drop"];
    const rest = ["--rate-limit=1G", "--cache=none", "--base=new", "over"];
    assertEquals(await runOk([...commit, ...rest], { cwd }), "");
    await runOk(["qemu-img", "compare", "new", "before"], { cwd });
  },
  { tools: ["qemu-img", "qemu-io"], privileges: FFI },
);
