/**
 * Our command line beside qemu-img: the same calls in two folders with the same
 * files must print the same and exit with the same code.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BDRV, qemuIoIn, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** Calls that make the files used by the others. */
const SETUP = [
  "create -f raw small.raw 1000",
  "create -f raw disk.raw 4M",
  "create -f qcow2 empty.qcow2 64M",
  "create -f qcow2 -o compat=0.10,cluster_size=4k old.qcow2 3M",
  "create -f qcow2 -o refcount_bits=1,cluster_size=512 tiny.qcow2 1M",
  "convert -O qcow2 pattern.raw base.qcow2",
  "convert -c -O qcow2 pattern.raw packed.qcow2",
  "convert -c -O qcow2 -o compression_type=zstd pattern.raw zstd.qcow2",
  "create -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2",
  "create -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 12M",
  "create -f qcow2 -o preallocation=metadata prealloc.qcow2 2M",
  "create -f qcow2 -u -b missing.qcow2 -F qcow2 orphan.qcow2 1M",
  "create -f qcow2 -o lazy_refcounts=on lazy.qcow2 1M",
];

/** Calls by command; each has its own pair of folders. */
const CALLS: { [command: string]: string[] } = {
  create: [
    "create a 1M",
    "create -f raw a 1000",
    "create -f qcow2 a 1M",
    "create -fqcow2 a 1.5G",
    "create -f qcow2 a 0x100000",
    "create -q -f qcow2 a 1M",
    "create -f qcow2 -o compat=v2,cluster_size=4096 a 1M",
    "create -f qcow2 -o compat=0.10 -o cluster_size=512 a 1M",
    "create -f qcow2 -o size=1M a",
    "create -f qcow2 -o lazy_refcounts=on,refcount_bits=64 a 1M",
    "create -f qcow2 -o preallocation=metadata a 1M",
    "create -f qcow2 -o compression_type=zstd a 1M",
    "create -f qcow2 -b base.qcow2 -F qcow2 a",
    "create -f qcow2 -b base.qcow2 -F qcow2 a 20M",
    "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 a",
    "create -f qcow2 -u -b nothing -F qcow2 a 1M",
    "create -f qcow2 -u -b nothing -F qcow2 a",
    "create -f qcow2 -b disk.raw -F raw a,b",
    "create -f raw -o preallocation=full a 64k",
    "create -f raw -o preallocation=off a 64k",
    // Invalid calls.
    "create",
    "create a",
    "create -f qcow2 a",
    "create -f qcow2 a 1M b",
    "create -f nothing a 1M",
    "create a x",
    "create a 1.5",
    "create a -1",
    "create a 8E",
    "create -f qcow2 a 7E",
    "create -f qcow2 -o nothing=1 a 1M",
    "create -f qcow2 -o cluster_size=3x a 1M",
    "create -f qcow2 -o cluster_size=3000 a 1M",
    "create -f qcow2 -o cluster_size=4M a 1M",
    "create -f qcow2 -o compat=5 a 1M",
    "create -f qcow2 -o preallocation=5 a 1M",
    "create -f qcow2 -o lazy_refcounts=5 a 1M",
    "create -f qcow2 -o compat=0.10,lazy_refcounts=on a 1M",
    "create -f qcow2 -o compat=0.10,refcount_bits=8 a 1M",
    "create -f qcow2 -o refcount_bits=x a 1M",
    "create -f qcow2 -o refcount_bits=13 a 1M",
    "create -f qcow2 -o refcount_bits=128 a 1M",
    "create -f qcow2 -o compression_type=x a 1M",
    "create -f qcow2 -o size=1M a 2M",
    "create -f qcow2 -o ,size=1M a",
    "create -f qcow2 -o size=1M, a",
    "create -f qcow2 -b nothing -F qcow2 a",
    "create -f qcow2 -b base.qcow2 a",
    "create -f qcow2 -b base.qcow2 -F raw a 1M",
    "create -f qcow2 -b a -F qcow2 a",
    "create -f qcow2 -F qcow2 a 1M",
    "create -f qcow2 -u -b nothing a 1M",
    "create -f raw -b base.qcow2 -F qcow2 a",
    "create -f raw -F qcow2 a 1M",
    "create nothing:a 1M",
    "create nothing/a 1M",
    "create -f qcow2 nothing/a 1M",
    "create -Z",
    "create -Zq a 1M",
    "create -f",
    "create --nothing",
  ],
  info: [
    "info json:{}",
    "info --image-opts driver=qcow2",
    "info small.raw",
    "info --output=json small.raw",
    "info base.qcow2",
    "info --output=json base.qcow2",
    "info old.qcow2",
    "info --output json tiny.qcow2",
    "info lazy.qcow2",
    "info --output json zstd.qcow2",
    "info -f raw base.qcow2",
    "info --format=raw --output=json base.qcow2",
    "info -U top.qcow2",
    "info --backing-chain top.qcow2",
    "info --backing-chain --output=json top.qcow2",
    "info --output=json --backing-chain base.qcow2",
    "info orphan.qcow2",
    "info --output=json orphan.qcow2",
    "info sub/over.qcow2",
    "info --backing-chain --output=json sub/over.qcow2",
    "info --image-opts driver=qcow2,file.filename=base.qcow2",
    'info json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}',
    "info file:base.qcow2",
    // Invalid calls.
    "info",
    "info a b",
    "info nothing",
    "info sub",
    "info --output=xml base.qcow2",
    "info -f qcow2 disk.raw",
    "info -f nothing disk.raw",
    "info --backing-chain orphan.qcow2",
    "info --backing-chain loop.qcow2",
    "info --image-opts -f raw file.filename=base.qcow2",
    "info --image-opts driver=qcow2,file.filename=nothing",
    // Strings in place of children are node names.
    "info --image-opts base.qcow2",
    "info --image-opts base.qcow2,driver=qcow2",
    "info --image-opts driver=raw,file.driver=raw,file.file=base.qcow2",
    "info --image-opts driver=qcow2,filename=base.qcow2",
    "info --image-opts filename=base.qcow2",
    "info --image-opts driver=qcow2,file.filename=base.qcow2,backing=",
    "info nothing:a",
    "info -s base.qcow2",
    "info --out",
  ],
  map: [
    "map disk.raw",
    "map --output=json disk.raw",
    "map -f raw pattern.raw",
    "map --output=json -f raw pattern.raw",
    "map base.qcow2",
    "map --output=json base.qcow2",
    "map --output=json packed.qcow2",
    "map --output=json empty.qcow2",
    "map --output=json top.qcow2",
    "map top.qcow2",
    "map --output=json prealloc.qcow2",
    "map prealloc.qcow2",
    "map --output=json old.qcow2",
    "map -s 1M -l 2M --output=json base.qcow2",
    "map --start-offset=65536 --max-length=70000 base.qcow2",
    "map -s 100M --output=json base.qcow2",
    "map -l 0 --output=json base.qcow2",
    "map -l 0 base.qcow2",
    // Invalid calls.
    "map",
    "map packed.qcow2",
    "map nothing",
    "map orphan.qcow2",
    "map -s x base.qcow2",
    "map --output=x base.qcow2",
  ],
  check: [
    "check base.qcow2",
    "check --output=json base.qcow2",
    "check empty.qcow2",
    "check --output=json empty.qcow2",
    "check packed.qcow2",
    "check old.qcow2",
    "check -q tiny.qcow2",
    "check top.qcow2",
    "check -U prealloc.qcow2",
    "check orphan.qcow2",
    "check leak.qcow2",
    "check --output=json leak.qcow2",
    "check -q leak.qcow2",
    "check broken.qcow2",
    "check --output=json broken.qcow2",
    // Invalid calls.
    "check",
    "check disk.raw",
    "check -f raw base.qcow2",
    "check nothing",
    "check -r some base.qcow2",
    "check -T nothing base.qcow2",
    "check --output=x base.qcow2",
  ],
  compare: [
    "compare base.qcow2 packed.qcow2",
    "compare -f raw pattern.raw base.qcow2",
    "compare -f raw -F qcow2 pattern.raw zstd.qcow2",
    "compare -q base.qcow2 pattern.raw",
    "compare base.qcow2 top.qcow2",
    "compare top.qcow2 base.qcow2",
    "compare base.qcow2 changed.qcow2",
    "compare -q base.qcow2 changed.qcow2",
    "compare empty.qcow2 disk.raw",
    "compare base.qcow2 disk.raw",
    "compare disk.raw base.qcow2",
    "compare -s base.qcow2 top.qcow2",
    "compare -s base.qcow2 packed.qcow2",
    "compare -s base.qcow2 base.qcow2",
    "compare -s pattern.raw base.qcow2",
    // Invalid calls.
    "compare",
    "compare base.qcow2",
    "compare base.qcow2 nothing",
    "compare nothing base.qcow2",
    "compare -f nothing base.qcow2 base.qcow2",
    "compare -T nothing base.qcow2 base.qcow2",
  ],
  convert: [
    "convert -l snapshot.foo=bar base.qcow2 a",
    "convert -l snapshot.name=a,snapshot.foo=b missing a",
    "convert -O raw base.qcow2 a",
    "convert base.qcow2 a",
    "convert -f raw -O qcow2 pattern.raw a",
    "convert -O qcow2 top.qcow2 a",
    "convert -O raw packed.qcow2 a",
    "convert -O raw zstd.qcow2 a",
    "convert -O qcow2 -o compat=0.10,cluster_size=4k base.qcow2 a",
    "convert -O qcow2 -S 64k pattern.raw a",
    "convert -O qcow2 -S 0 pattern.raw a",
    "convert -O raw -S 0 base.qcow2 a",
    "convert -O qcow2 -S 12k -m 1 -W pattern.raw a",
    "convert -O qcow2 small.raw old.qcow2 base.qcow2 a",
    "convert -O raw small.raw base.qcow2 a",
    "convert -O qcow2 -B middle.qcow2 -F qcow2 top.qcow2 a",
    "convert -O qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 changed.qcow2 a",
    "convert -O qcow2 -B middle.qcow2 -F qcow2 base.qcow2 a",
    "convert -n -O qcow2 base.qcow2 empty.qcow2",
    "convert -n -O raw base.qcow2 full.raw",
    "convert -n --target-is-zero -O qcow2 base.qcow2 empty.qcow2",
    "convert -n --target-image-opts base.qcow2 driver=qcow2,file.filename=empty.qcow2",
    "convert --image-opts -O raw driver=qcow2,file.filename=base.qcow2 a",
    "convert -t writethrough -T none -O qcow2 disk.raw a",
    "convert -q -p -O raw base.qcow2 a",
    "convert -p -O qcow2 -f raw pattern.raw a",
    "convert -p -S 0 -O qcow2 disk.raw a",
    "convert -p -O raw small.raw a",
    "convert -C -O raw pattern.raw a",
    "convert -C -O raw base.qcow2 a",
    "convert -C -O qcow2 base.qcow2 a",
    "convert -C -O raw packed.qcow2 a",
    "convert -r 1G -O qcow2 base.qcow2 a",
    "convert -m 16 -W -S 512 -O qcow2 -f raw pattern.raw a",
    "convert -m 0x10 -S 0x1000 -O qcow2 -f raw pattern.raw a",
    "convert --salvage -O qcow2 base.qcow2 a",
    "convert -q --salvage -U -O raw base.qcow2 a",
    "convert --bitmaps -O qcow2 base.qcow2 a",
    "convert --bitmaps --skip-broken-bitmaps -O qcow2 base.qcow2 a",
    "convert -l one -O raw snap.qcow2 a",
    "convert -l 2 -O raw snap.qcow2 a",
    "convert -l snapshot.id=1 -O raw snap.qcow2 a",
    "convert -l snapshot.name=two -O raw snap.qcow2 a",
    "convert -l snapshot.id=1,snapshot.name=one -O raw snap.qcow2 a",
    "convert -l snapshot.name=one -O raw snap.qcow2 small.raw a",
    // Invalid calls.
    "convert",
    "convert base.qcow2",
    "convert nothing a",
    "convert -O nothing base.qcow2 a",
    "convert -f nothing base.qcow2 a",
    "convert -O qcow2 -o nothing=1 base.qcow2 a",
    "convert -O qcow2 -o cluster_size=3000 base.qcow2 a",
    "convert -c -O raw base.qcow2 a",
    "convert -S 1000 base.qcow2 a",
    "convert -S x base.qcow2 a",
    "convert -S 32M base.qcow2 a",
    "convert -m 17 base.qcow2 a",
    "convert -m x base.qcow2 a",
    "convert -n -o size=1M base.qcow2 empty.qcow2",
    "convert -n base.qcow2 nothing",
    "convert -n -O qcow2 base.qcow2 tiny.qcow2",
    "convert --target-is-zero base.qcow2 a",
    "convert --target-image-opts base.qcow2 a",
    "convert -O qcow2 -B base.qcow2 base.qcow2 a",
    "convert -O raw -B base.qcow2 -F qcow2 base.qcow2 a",
    "convert -O qcow2 -B base.qcow2 -F qcow2 base.qcow2 base.qcow2 a",
    "convert -t nothing base.qcow2 a",
    "convert -T nothing base.qcow2 a",
    "convert -O raw base.qcow2 nothing/a",
    "convert -O raw base.qcow2 nothing:a",
    "convert --image-opts -f raw file.filename=base.qcow2 a",
    "convert -c -C -O qcow2 base.qcow2 a",
    "convert -C -S 4k -O qcow2 base.qcow2 a",
    "convert -C --salvage -O qcow2 base.qcow2 a",
    "convert --skip-broken-bitmaps -O qcow2 base.qcow2 a",
    "convert --bitmaps -O qcow2 base.qcow2 base.qcow2 a",
    "convert --bitmaps -O qcow2 disk.raw a",
    "convert --bitmaps -f qcow2 -O raw base.qcow2 a",
    "convert -r x -O qcow2 base.qcow2 a",
    "convert -r 8E -O qcow2 base.qcow2 a",
    "convert -m 0 base.qcow2 a",
    "convert -m 1.5 base.qcow2 a",
    "convert -m -1 base.qcow2 a",
    "convert -S -1 base.qcow2 a",
    "convert -S 511 base.qcow2 a",
    "convert -l three -O raw snap.qcow2 a",
    "convert -l snapshot.name=three -O raw snap.qcow2 a",
    "convert -l snapshot.id=1,snapshot.name=two -O raw snap.qcow2 a",
    "convert -l one -O raw snap.qcow2 snap.qcow2 a",
    "convert -l one -O qcow2 disk.raw a",
    "convert -c -O qcow2 -o preallocation=metadata base.qcow2 a",
    "convert -c -O qcow2 -o encryption=on base.qcow2 a",
    "convert -n -c -O raw base.qcow2 full.raw",
    "convert -n --target-image-opts -O qcow2 base.qcow2 driver=qcow2,file.filename=empty.qcow2",
    "convert -n --target-image-opts -o help base.qcow2 a",
    "convert -O qcow2 -o , base.qcow2 a",
    "convert -O null-co base.qcow2 a",
    "convert --nothing base.qcow2 a",
    "convert -O",
  ],
  resize: [
    "resize -f raw disk.raw 9E",
    "resize -f raw disk.raw 8191P",
    "resize -f raw --preallocation=falloc disk.raw 8191P",
    "resize -f raw --preallocation=full disk.raw 8191P",
    "resize base.qcow2 +1M",
    "resize -f raw disk.raw 8M",
    "resize disk.raw 8M",
    "resize -q base.qcow2 20M",
    "resize --preallocation=metadata base.qcow2 20M",
    "resize --preallocation=falloc -f raw disk.raw 5M",
    "resize --shrink -f raw disk.raw 1M",
    "resize -f raw --shrink disk.raw -1M",
    "resize --image-opts driver=qcow2,file.filename=old.qcow2 +512",
    "resize base.qcow2 9M",
    // Invalid calls.
    "resize",
    "resize base.qcow2",
    "resize a b c",
    "resize nothing 1M",
    "resize base.qcow2 x",
    "resize base.qcow2 0",
    "resize -f raw disk.raw -10M",
    "resize -f raw disk.raw 1M",
    "resize --preallocation=x base.qcow2 20M",
    "resize --preallocation=full --shrink -f raw disk.raw 1M",
    "resize --preallocation=metadata -f raw disk.raw 10M",
    "resize top.qcow2 -f",
  ],
  "the program itself": [
    "",
    "nothing",
    "-Z",
  ],
};

/** A disk with random data, text, explicit zeroes and holes in it. */
function writePattern(path: string): void {
  const size = 9 * 1024 * 1024;
  using file = Deno.openSync(path, { create: true, write: true });
  file.truncateSync(size);
  const put = (offset: number, length: number, byte: (i: number) => number) => {
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(Uint8Array.from({ length }, (_, i) => byte(i)));
  };
  let random = 12345;
  put(0, 300_000, () => (random = (random * 1103515245 + 12345) >>> 0) >> 16);
  put(1 << 20, 70_000, (i) => 32 + i % 90);
  put(2 << 20, 1 << 20, () => 0);
  put((2 << 20) + 5000, 1000, () => 7);
  put((2 << 20) + 200_000, 9000, (i) => i % 4096 < 700 ? 1 : 0);
  put(5_000_000, 1, () => 255);
  put(size - 1, 1, () => 1);
}

async function prepare(folder: string): Promise<void> {
  writePattern(`${folder}/pattern.raw`);
  for (const call of SETUP) {
    await runOk(["qemu-img", ...words(call)], { cwd: folder });
  }
  const io = qemuIoIn(folder);
  await io("middle.qcow2", "write -P 1 1M 64k", "write -z 3M 128k");
  await io("top.qcow2", "write -P 2 10M 100k", "write -P 3 1000 5000");
  await io("old.qcow2", "write -P 4 4k 20k", "discard 8k 4k");
  await io("tiny.qcow2", "write -P 5 0 100k");
  Deno.mkdirSync(`${folder}/sub`);
  await runOk([
    ..."qemu-img create -q -f qcow2 -b ../base.qcow2 -F qcow2 sub/over.qcow2"
      .split(" "),
  ], { cwd: folder });
  const copy = (from: string, to: string) =>
    Deno.copyFileSync(`${folder}/${from}`, `${folder}/${to}`);
  copy("base.qcow2", "changed.qcow2");
  await io("changed.qcow2", "write -P 9 2500k 1k");
  copy("pattern.raw", "full.raw");
  copy("orphan.qcow2", "loop.qcow2");
  await runOk(
    words("qemu-img rebase -u -b loop.qcow2 -F qcow2 loop.qcow2"),
    { cwd: folder },
  );
  copy("base.qcow2", "snap.qcow2");
  await runOk(words("qemu-img snapshot -c one snap.qcow2"), { cwd: folder });
  await io("snap.qcow2", "write -P 9 2500k 1k");
  await runOk(words("qemu-img snapshot -c two snap.qcow2"), { cwd: folder });
  await io("snap.qcow2", "write -P 8 1M 100k");
  copy("base.qcow2", "leak.qcow2");
  patch(`${folder}/leak.qcow2`, 2 * 65536 + 2 * 40, [0, 1]);
  copy("base.qcow2", "broken.qcow2");
  patch(`${folder}/broken.qcow2`, 2 * 65536 + 2 * 5, [0, 0]);
}

function patch(path: string, offset: number, bytes: number[]): void {
  using file = Deno.openSync(path, { write: true });
  file.seekSync(offset, Deno.SeekMode.Start);
  file.writeSync(Uint8Array.from(bytes));
}

function words(call: string): string[] {
  return call === "" ? [] : call.split(" ");
}

/** What a call left behind: its output, and the content of what it made. */
async function outcome(command: readonly string[], cwd: string) {
  const { code, stdout, stderr } = await run(command, { cwd });
  return { code, stdout, stderr };
}

/** Fill the holes of a qcow2 file. */
async function solidify(path: string): Promise<void> {
  using file = Deno.openSync(path);
  const magic = new Uint8Array(4);
  file.readSync(magic);
  if (magic[0] !== 0x51 || magic[3] !== 0xfb) return;
  await runOk(["cp", "--sparse=never", path, `${path}.solid`]);
  await Deno.rename(`${path}.solid`, path);
}

/** The files that calls create or change. */
const MADE = ["a", "a,b", "empty.qcow2", "full.raw"];

/** Both calls must have made the same disk, allocated in the same places. */
async function assertSameDisks(
  call: string,
  ours: string,
  theirs: string,
): Promise<void> {
  const targets = MADE.filter((name) =>
    words(call).some((word) => word === name || word.endsWith(`=${name}`))
  );
  // A missing backing file keeps QEMU from opening the image.
  if (words(call).includes("-u")) return;
  for (const name of targets) {
    const maps: string[] = [];
    for (const folder of [ours, theirs]) {
      // QEMU's map also shows the holes of a file with many; how many there are
      // is the writer's choice.
      await solidify(`${folder}/${name}`);
      const map = await runOk(
        ["qemu-img", "map", "--output=json", `${folder}/${name}`],
      );
      // Where a cluster lies is the writer's choice; its content is not.
      maps.push(map.replace(/, "offset": \d+/g, ""));
    }
    assertEquals(maps[0], maps[1]);
    await runOk(
      ["qemu-img", "compare", `${ours}/${name}`, `${theirs}/${name}`],
    );
  }
}

for (const [command, calls] of Object.entries(CALLS)) {
  qemuTest(`${command} behaves as qemu-img does`, async (t) => {
    await using dir = await new TempDir();
    const pristine = dir.file("pristine");
    Deno.mkdirSync(pristine);
    await prepare(pristine);
    for (const [index, call] of calls.entries()) {
      await t.step(`${call}`, async () => {
        const theirs = dir.file(`theirs-${index}`);
        const ours = dir.file(`ours-${index}`);
        for (const folder of [theirs, ours]) {
          await runOk(["cp", "-r", pristine, folder]);
        }
        const [expected, actual] = await Promise.all([
          outcome(["qemu-img", ...words(call)], theirs),
          outcome([...BDRV, "qemu-img", ...words(call)], ours),
        ]);
        assertEquals(actual, expected);
        const mayHaveMade = /^(create|convert|resize)/.test(call);
        if (mayHaveMade && expected.code === 0) {
          await assertSameDisks(call, ours, theirs);
        }
        for (const folder of [theirs, ours]) {
          await Deno.remove(folder, { recursive: true });
        }
      });
    }
  }, ["qemu-img", "qemu-io"]);
}
