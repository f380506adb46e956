/** `amend`, compared with qemu-img's. @module */
import { assertEquals } from "@std/assert";
import { qemuIoIn, runOk } from "../qemu.ts";
import { besideQemu, type Folders, words } from "./beside.ts";

async function prepare(cwd: string): Promise<void> {
  const img = (call: string) => runOk(["qemu-img", ...words(call)], { cwd });
  const io = qemuIoIn(cwd);
  await img("create -q -f raw base.raw 3M");
  await io("base.raw", "write -P 7 0 3M");
  await img("create -q -f qcow2 -o cluster_size=4k new.qcow2 16M");
  await img("create -q -f qcow2 -o compat=0.10,cluster_size=4k old.qcow2 16M");
  await io("old.qcow2", "write -P 1 1M 300k");
  await img("snapshot -c one old.qcow2");
  await img(
    "create -q -f qcow2 -o refcount_bits=1,cluster_size=2k narrow.qcow2 16M",
  );
  await io("narrow.qcow2", "write -P 1 1M 300k", "write -z 2M 1M");
  await img("create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 64M");
  await img("create -q -f qcow2 -o compression_type=zstd zstd.qcow2 1M");
  await img("create -q -f qcow2 -o compression_type=zstd packed.qcow2 1M");
  await io("packed.qcow2", "write -c -P 9 0 64k");
  await img(
    "create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw over.qcow2 4M",
  );
  await io(
    "over.qcow2",
    "write -P 2 0 1M",
    "write -z 300k 40k",
    "write -z -u 500k 40k",
    "write -z 2M 100k",
  );
  await img("snapshot -c one over.qcow2");
  await io("over.qcow2", "write -P 3 310k 4k", "write -z -u 2200k 100k");
  await img("snapshot -c two over.qcow2");
  await Deno.copyFile(`${cwd}/over.qcow2`, `${cwd}/shared.qcow2`);
  // Zeroes that hide data which the snapshots still have.
  await io("shared.qcow2", "write -z 0 64k");
}

/**
 * The disk and its snapshots are unchanged, and the image's options equal
 * QEMU's.
 */
async function inspect(call: string, { pristine, ours, theirs }: Folders) {
  const file = /\w+\.qcow2$/.exec(call)?.[0];
  if (file === undefined || /help|\?/.test(call)) return;
  const check = await runOk(["qemu-img", "check", file], { cwd: ours });
  assertEquals(check.split("\n")[0], "No errors were found on the image.");
  await runOk([
    "qemu-img",
    "compare",
    `${pristine}/${file}`,
    `${ours}/${file}`,
  ]);
  for (const snapshot of await snapshotsOf(`${pristine}/${file}`)) {
    for (const folder of [pristine, ours]) {
      await runOk([
        ...["qemu-img", "convert", "-l", snapshot, "-O", "raw"],
        ...[`${folder}/${file}`, `${folder}/${snapshot}.raw`],
      ]);
    }
    await runOk([
      ...["qemu-img", "compare", "-f", "raw", "-F", "raw"],
      ...[`${pristine}/${snapshot}.raw`, `${ours}/${snapshot}.raw`],
    ]);
  }
  // Expanding zero clusters, QEMU overwrites data that snapshots still use.
  if (file === "shared.qcow2") return;
  const [actual, expected] = await Promise.all([
    describe(`${ours}/${file}`),
    describe(`${theirs}/${file}`),
  ]);
  assertEquals(actual, expected);
}

async function snapshotsOf(path: string): Promise<string[]> {
  const info = await runOk(["qemu-img", "info", "--output=json", path]);
  const { snapshots = [] } = JSON.parse(info);
  return snapshots.map(({ name }: { name: string }) => name);
}

/** The image's options, and what is allocated in it. */
async function describe(path: string) {
  // Where many blocks of a file are holes, QEMU's map shows those, too.
  await runOk(["cp", "--sparse=never", path, `${path}.solid`]);
  await Deno.rename(`${path}.solid`, path);
  const info = await runOk(["qemu-img", "info", "--output=json", path]);
  const facts = JSON.parse(info);
  for (const name of ["actual-size", "filename", "full-backing-filename"]) {
    delete facts[name];
  }
  const map = await runOk(["qemu-img", "map", "--output=json", path]);
  return { facts, runs: runsOf(JSON.parse(map)) };
}

/** A map without host offsets, which are the writer's choice. */
function runsOf(map: { start: number; length: number; offset?: number }[]) {
  const runs = new Map<number, string>();
  let last = "";
  for (const { start, length: _, offset: __, ...kind } of map) {
    if (JSON.stringify(kind) === last) continue;
    last = JSON.stringify(kind);
    runs.set(start, last);
  }
  return runs;
}

besideQemu("amend behaves as qemu-img does", {
  prepare,
  inspect,
  calls: [
    "amend -o compat=0.10 new.qcow2",
    "amend -o compat=v2 new.qcow2",
    "amend -p -o compat=v2 new.qcow2",
    "amend -p -q -o compat=v2 new.qcow2",
    "amend -o compat=1.1 new.qcow2",
    "amend -p -o compat=1.1 old.qcow2",
    "amend -p -o compat=v3,refcount_bits=32 old.qcow2",
    "amend -o compat=v3,lazy_refcounts=on,size=20M old.qcow2",
    "amend -o refcount_bits=1 new.qcow2",
    "amend -p -o refcount_bits=64 new.qcow2",
    "amend -p -o refcount_bits=8 over.qcow2",
    "amend -p -o refcount_bits=64 over.qcow2",
    "amend -o refcount_bits=16,compat=0.10 narrow.qcow2",
    "amend -p -o refcount_bits=16,compat=0.10 narrow.qcow2",
    "amend -o compat=0.10 over.qcow2",
    "amend -p -o compat=0.10 over.qcow2",
    "amend -p -o compat=0.10 shared.qcow2",
    "amend -o compat=0.10,refcount_bits=16,size=5M,lazy_refcounts=off new.qcow2",
    "amend -o compat=0.10 zstd.qcow2",
    "amend -o lazy_refcounts=on new.qcow2",
    "amend -o lazy_refcounts=off lazy.qcow2",
    "amend -o compat=0.10 lazy.qcow2",
    "amend -o size=128M -f qcow2 new.qcow2",
    "amend -o size=32M new.qcow2",
    "amend -o size=1.5k -o lazy_refcounts=on new.qcow2",
    "amend -o data_file_raw=off new.qcow2",
    "amend -o backing_file=base.raw,backing_fmt=raw over.qcow2",
    "amend -t none -o refcount_bits=32 new.qcow2",
    "amend --force -o refcount_bits=32 new.qcow2",
    "amend --object secret,id=a,data=b -o refcount_bits=32 new.qcow2",
    "amend --image-opts -o refcount_bits=32 driver=qcow2,file.filename=new.qcow2",
    "amend -f qcow2 -o help",
    "amend -f qcow2 -o size=1,help",
    "amend -o help new.qcow2",
    "amend -o ? new.qcow2",
    // Invalid calls.
    "amend",
    "amend new.qcow2",
    "amend -o size=1M",
    "amend -o size=1M new.qcow2 old.qcow2",
    "amend -o size=1M nothing.qcow2",
    "amend -o size=1M base.raw",
    "amend -f raw -o help",
    "amend -f nothing -o help",
    "amend -o help base.raw",
    "amend -o , new.qcow2",
    "amend -o nothing=1 new.qcow2",
    "amend -o cluster_size=4k new.qcow2",
    "amend -o compression_type=zstd new.qcow2",
    "amend -o size=x new.qcow2",
    "amend -o size=1000 new.qcow2",
    "amend -o size=128M old.qcow2",
    "amend -o compat=5 new.qcow2",
    "amend -o compat=0.10 narrow.qcow2",
    "amend -o compat=0.10,refcount_bits=8 new.qcow2",
    "amend -o compat=0.10,lazy_refcounts=on new.qcow2",
    "amend -o compat=0.10 packed.qcow2",
    "amend -o lazy_refcounts=on old.qcow2",
    "amend -o lazy_refcounts=maybe new.qcow2",
    "amend -o refcount_bits=8 old.qcow2",
    "amend -o refcount_bits=0 new.qcow2",
    "amend -o refcount_bits=-1 new.qcow2",
    "amend -o refcount_bits=12 new.qcow2",
    "amend -o refcount_bits=128 new.qcow2",
    "amend -o refcount_bits=x new.qcow2",
    "amend -o refcount_bits=1 over.qcow2",
    "amend -o backing_file=new.qcow2 over.qcow2",
    "amend -o backing_file=base.raw over.qcow2",
    "amend -o backing_fmt=qcow2 over.qcow2",
    "amend -o data_file=a new.qcow2",
    "amend -o data_file_raw=on new.qcow2",
    "amend -o encrypt.state=active new.qcow2",
    "amend -o encrypt.keyslot=x new.qcow2",
    "amend -t x -o size=1M new.qcow2",
    "amend -Z",
    "amend -o",
  ],
});
