/**
 * What we print about images of every kind, compared with QEMU's tools: the
 * installed ones, and the newest.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import {
  BDRV,
  installedTools,
  newestQemuTest,
  OUR_TOOLS,
  type Outcome,
  qemuTest,
  run,
  runOk,
  TempDir,
  type Tools,
} from "../qemu.ts";
import {
  imageArguments,
  KINDS,
  makeKind,
  makeSource,
} from "../interop/kinds.ts";

/** Read-only calls on the images of all kinds. */
const READING = [
  "info --output=json",
  "map --output=json",
  "check --output=json",
  "measure --output=json -O qcow2",
];

/** Further calls; those that create an image call it `made`. */
const CALLS = [
  "info plain.qcow2",
  "info old.qcow2",
  "info outside-raw.qcow2",
  "info luks.qcow2",
  "info flat.vmdk",
  "info plain.raw",
  "info snapshots.qcow2",
  "info --output=json snapshots.qcow2",
  "info --backing-chain over.qcow2",
  "info --backing-chain --output=json over.qcow2",
  "info blkdebug::plain.qcow2",
  "info --output=json blkdebug::plain.qcow2",
  "info -f file plain.raw",
  "info --output=json -f file odd",
  "info --output=json null-co://",
  "info null-co://",
  "info --image-opts driver=qcow2,file.driver=copy-on-read,file.file.filename=plain.qcow2",
  "info odd",
  "map packed.qcow2",
  "map over.qcow2",
  "map --output=json over.qcow2",
  "map -s 100M --output=json plain.qcow2",
  "check over.qcow2",
  "measure -O qcow2 plain.qcow2",
  "measure --size 1G",
  "measure -O luks -o key-secret=a,detached-header=on --size 1G",
  "snapshot -l snapshots.qcow2",
  "snapshot -l old-snapshots.qcow2",
  "snapshot snapshots.qcow2",
  "snapshot -l plain.raw",
  "create -f qcow2 made 1M",
  "create -f qcow2 -o cluster_size=2M,extended_l2=on made 1M",
  "create -f qcow2 -b plain.qcow2 -F qcow2 made",
  "create -f qcow2 -b plain.qcow2 made",
  "create -f luks -o help",
  "create -f luks -o help made",
  "create -f nbd -o help",
  // A protocol where a format is expected.
  "create -f qcow2 -b file:plain.raw -F file made",
  "create -f qcow2 -b null-co:// -F null-co made",
  "create -f qcow2 -b plain.raw -F null-co made",
  "create -f qcow2 -b nbd:unix:/nothing -F nbd made",
  "info -f file file:plain.raw",
  "info -f null-co null-co://",
  "info -f null-co plain.raw",
  "map --output=json -f file file:plain.raw",
  "check -f file file:plain.raw",
  "measure -f file -O qcow2 file:plain.raw",
  // Numbers at the ends of their range.
  "create -f luks -o key-secret=a,iter-time=-1 made 1M",
  "create -f luks -o key-secret=a,iter-time=99999999999999999999 made 1M",
  "create -f luks -o key-secret=a,iter-time=0x10 made 1M",
  "create -f luks -o key-secret=a,iter-time=9007199254740993 made 1M",
  "create -f luks -o key-secret=a,iter-time=9223372036854775807 made 1M",
  "create -f luks -o key-secret=a,iter-time=9223372036854775808 made 1M",
  "create -f luks -o key-secret=a,iter-time=18446744073709551615 made 1M",
  "create -f luks -o key-secret=a,iter-time=08 made 1M",
  "create -f qcow2 -o refcount_bits=010 made 1M",
  "create -f qcow2 -o refcount_bits=+8 made 1M",
  "create -f qcow2 -o refcount_bits=8~ made 1M",
  "create -f qcow2 -o refcount_bits=-1 made 1M",
  "create -f qcow2 -o cluster_size=8E made 1M",
  "create -f qcow2 -o cluster_size=16E made 1M",
  "create -f qcow2 -o cluster_size=-1 made 1M",
  "create -f qcow2 -o size=-1k made",
  "create -f qcow2 -o size=-1 made",
  // In descriptions, a name in place of a child is that of a node.
  ...[
    '{"driver":"qcow2","file":"plain.qcow2"}',
    '{"file":"plain.qcow2"}',
    '{"filename":"plain.qcow2"}',
    '{"driver":"qcow2","filename":"plain.qcow2"}',
    '{"driver":"qcow2","file":5}',
    '{"driver":"qcow2","file":{"driver":"raw","file":"plain.qcow2"}}',
    '{"driver":"qcow2","file.filename":"over.qcow2","backing":"plain.qcow2"}',
    '{"driver":"qcow2","file.filename":"over.qcow2","backing":""}',
    '{"driver":"quorum","vote-threshold":1,"children":["plain.qcow2"]}',
    '{"driver":"blkdebug","image":"plain.qcow2"}',
    // A protocol has no children: an image is something else to it.
    '{"driver":"null-co","image":"plain.qcow2"}',
    '{"driver":"raw","file.filename":"plain.raw","offset":9223372036854775807}',
    '{"driver":"raw","file.filename":"plain.raw","size":9007199254740993}',
  ].flatMap((json) => [
    `info json:${json}`,
    `map json:${json}`,
    `compare json:${json} plain.qcow2`,
  ]),
  'info -f raw json:{"driver":"qcow2","file.filename":"plain.qcow2"}',
  'map -f qcow2 json:{"driver":"raw","file.filename":"plain.qcow2"}',
  "map --image-opts driver=qcow2,file.filename=over.qcow2,backing=plain.qcow2",
  // Writing to what an option makes read-only.
  ...["plain", "snapshots", "luks"].flatMap((name) => {
    const image = `--image-opts driver=qcow2,read-only=on,` +
      `file.filename=${name}.qcow2`;
    return [
      `resize ${image} 5M`,
      `amend -o lazy_refcounts=on ${image}`,
      `bitmap --add ${image} b`,
      `bitmap --merge b -b plain.qcow2 ${image} b`,
      `check ${image}`,
      `check -r all ${image}`,
      `commit ${image}`,
      `rebase -b  ${image}`,
      `snapshot -l ${image}`,
      `snapshot -c x ${image}`,
      `snapshot -a one ${image}`,
      `convert -n plain.raw --target-${image.slice(2)}`,
    ];
  }),
  // Invalid calls.
  "",
  "nothing",
  "-Z",
  "create",
  "create -Z",
  "create -Zq made 1M",
  "create -f",
  "create --nothing",
  "create made 1M more",
  "create made x",
  "create made 1.5",
  "create -f qcow2 made 7E",
  "create -f qcow2 made +5",
  "create -f qcow2 -o nothing=1 made 1M",
  "create -f nothing made 1M",
  "create nbd:unix:/nothing 1M",
  "create host_device:/nothing 1M",
  "create nothing/made 1M",
  "info",
  "info a b",
  "info --output=xml",
  "info --quiet=1",
  "info --image-opts=1 a",
  "info nothing",
  "info -f qcow2 plain.raw",
  "map --output=x plain.qcow2",
  "map -s x plain.qcow2",
  "map -l -1 plain.qcow2",
  "map -f nothing plain.qcow2",
  "check -r some plain.qcow2",
  "check plain.raw",
  "check nothing",
  "measure -O nothing plain.qcow2",
  "measure --size x",
  "measure --size 1G plain.qcow2",
  "snapshot -l -c x snapshots.qcow2",
  "snapshot -c x plain.raw",
  "snapshot -a nothing snapshots.qcow2",
  "snapshot -d nothing snapshots.qcow2",
  "snapshot",
  "amend plain.qcow2",
  "bench -c 0 plain.qcow2",
  "bench -c x plain.qcow2",
  "bench -s 4G plain.qcow2",
  "bench -S 4G plain.qcow2",
  "bench -w --pattern 256 plain.qcow2",
  "bitmap plain.qcow2 b",
  "bitmap --add -g x plain.qcow2 b",
  "commit -r x over.qcow2",
  "compare plain.qcow2",
  "convert -m 99 plain.qcow2 made",
  "convert -m x plain.qcow2 made",
  "convert -S -1 plain.qcow2 made",
  "convert -S x plain.qcow2 made",
  "convert -r x plain.qcow2 made",
  "dd if=plain.qcow2 of=made bs=x",
  "dd if=plain.qcow2 of=made count=-1",
  "rebase over.qcow2",
  "resize",
  "resize plain.qcow2",
  "resize -f qcow2 plain.qcow2",
  "resize --nothing plain.qcow2 1M",
  "resize --preallocation=x plain.qcow2 1M",
];

/** Calls that old releases answer differently. */
const OLD_CALLS = [
  "info plain.raw",
  "info luks.qcow2",
  "info snapshots.qcow2",
  "snapshot -l snapshots.qcow2",
  "snapshot snapshots.qcow2",
  "snapshot -c x plain.raw",
  "map -l -1 plain.qcow2",
  "bench -c -1 plain.qcow2",
  "bench -S 4G plain.qcow2",
  "convert -m x plain.qcow2 made",
  "create nbd:unix:/nothing 1M",
  "create -f luks -o help",
  "create -f luks -o key-secret=a,iter-time=-1 made 1M",
  "create -f qcow2 -o cluster_size=16E made 1M",
  "create -f qcow2 -o cluster_size=-1 made 1M",
  "create -f qcow2 -o size=-1k made",
  "create -f qcow2 -o size=-1 made",
  "create -f qcow2 -b null-co:// -F null-co made",
  "info -f file file:plain.raw",
  "map --output=json -f file file:plain.raw",
  "resize -f qcow2 plain.qcow2",
];

/** Calls with options that old releases do not have. */
const LATER = [
  "create --fo",
  "info --limits snapshots.qcow2",
  "snapshot --list -f qcow2 snapshots.qcow2",
  "measure -s 1G",
  "measure --nothing",
  "measure",
  "resize plain.qcow2 a b",
  "resize plain.qcow2 5M --nothing",
  "bench -d 0 plain.qcow2",
];

async function prepare({ img, io }: Tools, cwd: string): Promise<void> {
  makeSource(cwd);
  const theirs = { img, io };
  await Promise.all(KINDS.map((kind) => {
    // QEMU cannot measure key derivation everywhere.
    const tools = kind.file.includes("luks") ? OUR_TOOLS : theirs;
    return makeKind(tools, kind, "source.raw", cwd);
  }));
  const call = (line: string) => runOk([...img, ...line.split(" ")], { cwd });
  await call("create -q -f qcow2 -b plain.qcow2 -F qcow2 over.qcow2 5M");
  await runOk([...io, "-c", "write -P 7 70k 1k", "over.qcow2"], { cwd });
  for (
    const [name, compat] of [["snapshots", "1.1"], ["old-snapshots", "0.10"]]
  ) {
    await call(`create -q -f qcow2 -o compat=${compat} ${name}.qcow2 1M`);
    await call(`snapshot -c one ${name}.qcow2`);
    await call(`snapshot -c a-name-of-more-than-16 ${name}.qcow2`);
  }
  Deno.writeFileSync(`${cwd}/odd`, new Uint8Array(1000).fill(1));
}

/**
 * Compare calls with the tools that made the images. Calls in one folder run in
 * sequence, since some lock what they would change.
 */
async function compareCalls(
  tools: Tools,
  calls: readonly (readonly string[])[],
  folders: readonly string[],
): Promise<void> {
  const env = { BDRV_QEMU_VERSION: tools.release };
  const comparable = ({ code, stdout, stderr }: Outcome) => [
    ...[stdout, stderr].map((text) =>
      // The newest tools call themselves by their path.
      text.replaceAll(tools.img[0], "qemu-img")
    ),
    code,
  ];
  const different: string[] = [];
  const rest = [...calls];
  await Promise.all(folders.map(async (cwd) => {
    for (let call; (call = rest.pop());) {
      const expected = await run([...tools.img, ...call], { cwd });
      const actual = await run([...OUR_TOOLS.img, ...call], { cwd, env });
      try {
        assertEquals(comparable(actual), comparable(expected));
      } catch (error) {
        different.push(`${call.join(" ")}: ${(error as Error).message}`);
      }
    }
  }));
  assertEquals(different.join("\n"), "");
}

const words = (call: string) =>
  call === "" ? [] : call.split(" ").map((word) => word.replace("~", " "));

async function compareAll(tools: Tools, isNew: boolean): Promise<void> {
  await using dir = new TempDir();
  const folders = ["one", "other"].map((name) => dir.file(name));
  Deno.mkdirSync(folders[0]);
  await prepare(tools, folders[0]);
  await runOk(["cp", "-r", "--sparse=always", ...folders]);
  const reading = KINDS.flatMap((kind) =>
    READING
      // QEMU does not report where a VHDX has its blocks.
      .filter((call) => !(call.startsWith("map") && kind.format === "vhdx"))
      .map((call) => [
        ...words(call),
        // Without its key, an image can only be described.
        ...call.startsWith("info") ? [kind.file] : imageArguments(kind),
      ])
  );
  const calls = isNew ? [...CALLS, ...LATER] : OLD_CALLS;
  await compareCalls(tools, [...reading, ...calls.map(words)], folders);
}

qemuTest(
  "images of all kinds are shown as the installed tools do",
  async () => {
    await compareAll(
      installedTools(),
      Number(installedTools().release) >= 11.1,
    );
  },
  ["qemu-img", "qemu-io"],
);

newestQemuTest(
  "images of all kinds are shown as the newest tools do",
  async (tools) => {
    await compareAll(tools, true);
  },
);

/** The output of a call, with an environment. */
async function shown(
  call: string,
  version: string,
  flags = ["--allow-all"],
): Promise<Outcome> {
  const command = BDRV.flatMap((word) => word === "--allow-all" ? flags : word);
  const env = { BDRV_QEMU_VERSION: version };
  return await run([...command, ...words(call)], { env });
}

Deno.test("BDRV_QEMU_VERSION selects the release whose output is followed", async () => {
  const map = "map --output=json null-co://";
  const compressed = async (version: string, flags?: string[]) =>
    (await shown(map, version, flags)).stdout.includes("compressed");
  assertEquals(await compressed("7.2"), false);
  assertEquals(await compressed("7.2.22"), false);
  assertEquals(await compressed("8.1"), false);
  assertEquals(await compressed("8.2"), true);
  assertEquals(await compressed("11.1"), true);
  assertEquals(await compressed(""), true);
  // Without permission the variable is not read, and nobody is prompted.
  assertEquals(await compressed("7.2", ["--allow-read"]), true);
  assertEquals(await compressed("7.2", ["-A", "--deny-env"]), true);
});

Deno.test("BDRV_QEMU_VERSION must name a release that is known", async () => {
  for (const version of ["6.2", "7", "7.2.x", "11.9", "new\nest"]) {
    for (const call of ["info nothing", "qemu-io --help", "--version"]) {
      const { code, stdout, stderr } = await shown(call, version);
      assertEquals([code, stdout, stderr.split("\n").length], [1, "", 2]);
      assertStringIncludes(stderr, "Invalid BDRV_QEMU_VERSION '");
      assertStringIncludes(stderr, "it must be one of 7.2, 8.0, ");
    }
  }
});

Deno.test("the stand-in has the help of the release that is followed", async () => {
  const help = async (call: string, version: string) =>
    (await shown(`qemu-img ${call}`, version)).stdout;
  const everything = await help("--help", "7.2");
  assertStringIncludes(everything, "Supported formats: ");
  assertEquals(await help("info --help", "7.2"), everything);
  const overview = await help("--help", "11.1");
  assertStringIncludes(overview, "\n  info - ");
  assertStringIncludes(
    overview,
    "Supported image formats:\n\n  asif blkdebug ",
  );
  assertEquals(await help("-h", "10.0"), overview.replace("11.1.3", "10.0.0"));
  const info = await help("info --help", "");
  assertEquals(info.split("\n")[0], "Usage:");
  assertStringIncludes(info, "\n  -f, --format FMT\n     ");
  assertStringIncludes(
    await help("info -h", "10.0"),
    ".  Usage:\n\n  qemu-img",
  );
});

Deno.test("the stand-in words mistakes like the release that is followed", async () => {
  const said: [call: string, version: string, message: string][] = [
    [
      "create made x",
      "10.0",
      "qemu-img: Invalid image size specified: 'x'.\n",
    ],
    [
      "create made x",
      "10.1",
      "qemu-img: Invalid image size specified: 'x'\n",
    ],
    [
      "info --output=x",
      "10.0",
      "qemu-img: --output expects 'human' or 'json' not 'x'\n" +
      "Try 'qemu-img info --help' for more info\n",
    ],
    [
      "info --output=x made",
      "9.2",
      "qemu-img: --output must be used with human or json as argument.\n",
    ],
    [
      "info -Z",
      "10.0",
      "qemu-img info: invalid option -- 'Z'\n" +
      "Try 'qemu-img info --help' for more info\n",
    ],
    [
      "info -Z",
      "8.2",
      "qemu-img: unrecognized option '-Z'\n" +
      "Try 'qemu-img --help' for more information\n",
    ],
    [
      "bitmap made b",
      "10.0",
      "qemu-img: Need at least one of --add, --remove, --clear, --enable, " +
      "--disable, or --merge\n",
    ],
    [
      "resize made",
      "7.2",
      "qemu-img: Not enough arguments\n" +
      "Try 'qemu-img --help' for more information\n",
    ],
  ];
  for (const [call, version, message] of said) {
    const { code, stderr } = await shown(`qemu-img ${call}`, version);
    assertEquals([code, stderr], [1, message], `${call}, ${version}`);
  }
});
