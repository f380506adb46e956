/** Images with an external data file, compared with qemu-img's. @module */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  BDRV,
  installedRelease,
  mustSkip,
  qemuIoIn,
  qemuTest,
  run,
  runOk,
  TempDir,
} from "../qemu.ts";
import { besideQemu, type Folders, words } from "./beside.ts";

async function prepare(cwd: string): Promise<void> {
  const img = (call: string) => runOk(["qemu-img", ...words(call)], { cwd });
  const io = qemuIoIn(cwd);
  await img("create -q -f raw base.raw 3M");
  await io("base.raw", "write -P 7 0 3M");
  await img("create -q -f qcow2 -o data_file=plain.data plain 1M");
  const requests = ["write -P 1 0 1k", "write -P 2 100k 200k"];
  await io("plain", ...requests, "write -z 64k 64k", "discard 192k 64k");
  await img(
    "create -q -f qcow2 -o data_file=raw.data,data_file_raw=on raw 1M",
  );
  await io("raw", ...requests, "write -z 64k 64k", "discard 192k 64k");
  await img(
    "create -q -f qcow2 -o data_file=over.data -b base.raw -F raw over",
  );
  await io("over", ...requests);
  await img("create -q -f qcow2 -o data_file=gone.data gone 1M");
  await Deno.remove(`${cwd}/gone.data`);
  await img("create -q -f qcow2 none 1M");
  await img("create -q -f qcow2 -o data_file=x.data nameless 1M");
  await img("amend -o data_file= nameless");
  await img("create -q -f qcow2 -o data_file=marked.data marked 1M");
  await img("bitmap --add marked b");
  await Deno.mkdir(`${cwd}/folder`);
}

/** What a call left behind: the disk's content, and the data file's. */
async function inspect(call: string, { ours, theirs }: Folders) {
  const name = /(plain|raw|over|new)$/.exec(call)?.[0];
  if (name === undefined || call.includes("other.data")) return;
  const commands = ["check", "info --output=json"];
  // Where data was copied, holes depend on the file system.
  if (/^(create|resize)/.test(call)) commands.push("map --output=json");
  for (const command of commands) {
    const [first, second] = await Promise.all(
      [ours, theirs].map((cwd) =>
        runOk(["qemu-img", ...words(command), name], { cwd })
      ),
    );
    assertEquals(comparable(first), comparable(second));
  }
  const disks = [`${ours}/${name}`, `${theirs}/${name}`];
  for (const [i, cwd] of [ours, theirs].entries()) {
    await runOk(["qemu-img", "convert", "-O", "raw", name, "read.raw"], {
      cwd,
    });
    disks[i] = `${cwd}/read.raw`;
  }
  await runOk(["cmp", ...disks]);
}

/** Drop what depends on the file system, or on the layout of tables. */
function comparable(text: string): string {
  return text.replaceAll(/"actual-size": \d+/g, "")
    .replaceAll(/disk size: .*/g, "").replaceAll(/Image end offset: .*/g, "");
}

const BY_OPTION = "driver=qcow2,file.filename=nameless,data-file.filename";

besideQemu("images with an external data file are treated as by qemu-img", {
  prepare,
  inspect,
  normalize: comparable,
  needsHoles: (call) => /^map .*(plain|raw)$/.test(call),
  calls: [
    "create -f qcow2 -o data_file=new.data new 1M",
    "create -f qcow2 -o data_file=new.data,data_file_raw=on new 1M",
    "create -f qcow2 -o data_file=new.data,extended_l2=on new 1000k",
    "create -f qcow2 -o data_file=new.data,preallocation=metadata new 1M",
    "create -f qcow2 -o data_file=new.data,preallocation=full new 1M",
    "create -f qcow2 -o data_file=new.data,data_file_raw=on,extended_l2=on new 1M",
    "create -f qcow2 -o data_file=new.data -b base.raw -F raw new 1M",
    "create -f qcow2 -o data_file=file:new.data new 1M",
    "create -f qcow2 -o data_file=folder/new.data new 1M",
    "create -f qcow2 -o data_file=over.data new 1M",
    "info plain",
    "info --output=json raw",
    "info gone",
    "map plain",
    "map --output=json raw",
    "map --output=json over",
    "check plain",
    "check raw",
    "check -r all over",
    "compare plain plain.data",
    "compare -f raw -F qcow2 raw.data raw",
    "resize plain 2M",
    "resize --shrink plain 500k",
    "resize raw 1200k",
    "resize --shrink raw 100k",
    "resize over +2M",
    "convert -f raw -O qcow2 base.raw -o data_file=new.data new",
    "convert -n -f raw -O qcow2 raw.data plain",
    "convert -O qcow2 plain new",
    "commit over",
    "rebase -u -b base.raw -F raw plain",
    "amend -o refcount_bits=8 plain",
    "amend -o lazy_refcounts=on raw",
    "amend -o data_file=other.data plain",
    "amend -o data_file_raw=off raw",
    "amend -o data_file_raw=on raw",
    "amend -o data_file_raw=off plain",
    `map --image-opts ${BY_OPTION}=plain.data`,
    `map --output=json --image-opts ${BY_OPTION}=plain.data,data-file.driver=file`,
    `info --image-opts ${BY_OPTION}=nothing`,
    "measure -O qcow2 plain",
    "measure -O qcow2 -o data_file=x --size 1G",
    "snapshot -l plain",
    // Refused calls.
    "create -f qcow2 -o data_file_raw=on new 1M",
    "create -f qcow2 -o data_file=new.data,compat=0.10 new 1M",
    "create -f qcow2 -o data_file=new.data,data_file_raw=on -b base.raw -F raw new 1M",
    "create -f qcow2 -o data_file= new 1M",
    "create -f qcow2 -o data_file=no/such new 1M",
    "create -f qcow2 -o data_file=folder new 1M",
    "create -f qcow2 -o data_file=json:{} new 1M",
    "create -f qcow2 -o data_file=zzz:x new 1M",
    "snapshot -c one plain",
    "snapshot -a one plain",
    "snapshot -a one marked",
    "snapshot -d one plain",
    "convert -c -O qcow2 -o data_file=new.data plain new",
    "convert -n -c -f raw -O qcow2 base.raw over",
    "rebase -u -b base.raw -F raw raw",
    "rebase -b base.raw -F raw raw",
    "amend -o compat=0.10 plain",
    "amend -o compat=0.10 raw",
    "amend -o data_file_raw=on plain",
    "amend -o data_file=x none",
    "map gone",
    "check gone",
    "amend -o data_file=plain.data gone",
    "map nameless",
    `map --image-opts ${BY_OPTION}=nothing`,
    "map --image-opts driver=qcow2,file.filename=none,data-file.filename=plain.data",
    "info --image-opts driver=qcow2,file.filename=none,data-file.filename=plain.data",
  ],
});

besideQemu("images with extended L2 entries are treated as by qemu-img", {
  async prepare(cwd) {
    const img = (call: string) => runOk(["qemu-img", ...words(call)], { cwd });
    await img("create -q -f raw base.raw 3M");
    await runOk(["qemu-io", "-c", "write -P 7 0 3M", "base.raw"], { cwd });
    await img(
      "create -q -f qcow2 -o extended_l2=on -b base.raw -F raw over 1M",
    );
    const requests = ["write -P 1 3k 1k", "write -z 70k 2k"];
    const commands = requests.flatMap((request) => ["-c", request]);
    await runOk(["qemu-io", ...commands, "over"], { cwd });
  },
  normalize: comparable,
  inspect,
  calls: [
    "create -f qcow2 -o extended_l2=on new 1M",
    "create -f qcow2 -o extended_l2=on,cluster_size=16k new 1000k",
    "create -f qcow2 -o extended_l2=on,preallocation=metadata new 1M",
    "create -f qcow2 -o extended_l2=on,preallocation=full new 1M",
    "create -f qcow2 -o extended_l2=on,preallocation=metadata -b base.raw -F raw new",
    "info over",
    "map over",
    "map --output=json over",
    "check over",
    "resize over +100k",
    "resize --preallocation=metadata over +100k",
    "resize --shrink over 100k",
    "commit over",
    "rebase -b  over",
    "convert -O qcow2 -o extended_l2=on over new",
    "convert -c -O qcow2 -o extended_l2=on,cluster_size=16k over new",
    "amend -o refcount_bits=8 over",
    "measure -O qcow2 -o extended_l2=on --size 1G",
    "measure -O qcow2 -o extended_l2=on over",
    // Refused calls.
    "create -f qcow2 -o extended_l2=on,cluster_size=8k new 1M",
    "create -f qcow2 -o extended_l2=on,compat=0.10 new 1M",
    "create -f qcow2 -o extended_l2=on,compat=v2,cluster_size=8k new 1M",
    "create -f qcow2 -o extended_l2=off,preallocation=full -b base.raw -F raw new",
    "create -f qcow2 -o extended_l2=on new 2P",
    "amend -o extended_l2=off over",
    "amend -o compat=0.10 over",
  ],
});

/** Without the permission to call the system, no lock protects a file. */
const WITHOUT_LOCKS = BDRV.flatMap((word) =>
  word === "--allow-all" || word === "-A"
    ? ["--no-prompt", "--allow-read", "--allow-write"]
    : word
);

Deno.test("a source is never overwritten as the new data file, with or without locks", async () => {
  const content = new Uint8Array(1 << 20).fill(7);
  const cases: [call: string, why: string][] = [
    ["convert -f raw -O qcow2 -o data_file=disk disk new", "also a source"],
    [
      "convert -f raw -O qcow2 -o data_file=file:./disk disk new",
      "also a source",
    ],
    [
      "qemu-img convert -f raw -O qcow2 -o data_file=disk disk new",
      'Failed to get "write" lock',
    ],
    ["convert -f raw -O qcow2 -o data_file=new disk new", "own data file"],
    ["create -f qcow2 -o data_file=disk disk 1M", "own data file"],
    ["create -f qcow2 -o data_file=./disk disk 1M", "own data file"],
    ["qemu-img create -f qcow2 -o data_file=disk disk 1M", "own data file"],
    ["create -f qcow2 -b disk -F raw -o data_file=disk new", "overwrite"],
  ];
  for (const bdrv of [WITHOUT_LOCKS, BDRV]) {
    for (const [call, why] of cases) {
      await using folder = new TempDir();
      await Deno.writeFile(folder.file("disk"), content);
      const { code, stderr } = await run([...bdrv, ...words(call)], {
        cwd: folder.path,
      });
      assertEquals(code, 1, call);
      assertStringIncludes(stderr, why, call);
      assert(equal(await Deno.readFile(folder.file("disk")), content), call);
      assertEquals([...Deno.readDirSync(folder.path)].length, 1, call);
    }
  }
});

function equal(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((it, i) => it === other[i]);
}

Deno.test({
  name: "a failed convert removes the data file too",
  ignore: mustSkip({ tools: ["bash"] }),
  async fn() {
    const noise = new Uint8Array(4 << 20);
    for (let at = 0; at < noise.length; at += 65536) {
      crypto.getRandomValues(noise.subarray(at, at + 65536));
    }
    for (const options of ["", ",data_file_raw=on", ",preallocation=full"]) {
      await using folder = new TempDir();
      await Deno.writeFile(folder.file("disk"), noise);
      const call = `convert -f raw -O qcow2 -o data_file=data${options} ` +
        "disk new";
      const line = [...BDRV, ...words(call)].map((w) => `'${w}'`).join(" ");
      const { code, stderr } = await run(
        ["bash", "-c", `ulimit -f 2048; ${line}`],
        { cwd: folder.path },
      );
      assertEquals(code, 1, stderr);
      const left = [...Deno.readDirSync(folder.path)].map(({ name }) => name);
      assertEquals(left, ["disk"], options);
    }
  },
});

Deno.test("a new data file is a plain file, as in QEMU since 10.2, whatever its name begins with", async () => {
  const cases: [name: string, newest: string, former: string][] = [
    [
      "nbd:unix:/nowhere/socket",
      "Could not create 'nbd:unix:/nowhere/socket': No such file or directory",
      "Failed to connect to '/nowhere/socket': No such file or directory",
    ],
    [
      "null-co://",
      "Could not create 'null-co://'",
      "Driver 'null-co' does not support image creation",
    ],
    ["raw:data", "Unknown protocol 'raw'", "Unknown protocol 'raw'"],
    ["strange:data", "Unknown protocol 'strange'", "Unknown protocol"],
    ["json:{}", "requires a file name", "Unknown protocol 'json'"],
    ["file:data", "", ""],
    ["./strange:data", "", ""],
  ];
  for (const [name, newest, former] of cases) {
    for (const [release, message] of [["11.1", newest], ["7.2", former]]) {
      await using folder = new TempDir();
      const call = `create -q -f qcow2 -o data_file=${name} disk 1M`;
      const { code, stderr } = await run(
        [...BDRV, "qemu-img", ...words(call)],
        { cwd: folder.path, env: { BDRV_QEMU_VERSION: release } },
      );
      assertStringIncludes(stderr, message, `${release}: ${call}`);
      assertEquals(code, message === "" ? 0 : 1, `${release}: ${call}`);
      const files = [...Deno.readDirSync(folder.path)].length;
      assertEquals(files, message === "" ? 2 : 0, `${release}: ${call}`);
    }
  }
});

Deno.test("an existing data file is opened before other options are checked", async () => {
  await using folder = new TempDir();
  const call = "create -f qcow2 -o data_file=missing,keep_data_file=on disk 1M";
  const { code, stderr } = await run([...BDRV, "qemu-img", ...words(call)], {
    cwd: folder.path,
  });
  assertStringIncludes(stderr, "Could not open 'missing'");
  assertEquals(code, 1);
  assertEquals([...Deno.readDirSync(folder.path)].length, 0);
});

qemuTest(
  "map: a cluster of zeroes at the start of a data file is shown as by QEMU",
  async () => {
    await using folder = new TempDir();
    const cwd = folder.path;
    const env = { BDRV_QEMU_VERSION: installedRelease() };
    for (const isRaw of ["on", "off"]) {
      const options = `data_file=data,data_file_raw=${isRaw}`;
      const call = `qemu-img create -f qcow2 -o ${options} disk 1M`;
      await runOk(words(call), { cwd });
      await qemuIoIn(cwd)(
        "disk",
        "write -P 1 0 192k",
        "write -z 0 128k",
        "write -z 192k 64k",
      );
      for (const output of ["json", "human"]) {
        const call = ["qemu-img", "map", `--output=${output}`, "disk"];
        const ours = await runOk([...BDRV, ...call], { cwd, env });
        assertEquals(ours, await runOk(call, { cwd }));
      }
    }
  },
);
