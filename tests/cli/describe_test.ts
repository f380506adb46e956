/**
 * What `info`, `map` and `check` say about images and stacks of every kind,
 * compared with qemu-img: human output character by character, JSON key by key.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BDRV, isBeyond, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const SECRET = "secret,id=key,data=letmein";

/** Commands that make images, in order, one a line. */
const IMAGES = `
qemu-img create -f raw disk.raw 1M
qemu-img create -f qcow2 base.qcow2 1M
qemu-io -f qcow2 -c write_64k_100k base.qcow2
qemu-img create -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 3M
qemu-io -f qcow2 -c write_1_9k -c write_1M_5k v2.qcow2
qemu-img create -f qcow2 -o refcount_bits=1,cluster_size=512 tiny.qcow2 1M
qemu-io -f qcow2 -c write_700_3000 tiny.qcow2
qemu-img create -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2
qemu-io -f qcow2 -c write_-z_64k_64k middle.qcow2
qemu-img create -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 2M
qemu-io -f qcow2 -c write_0_1k -c discard_64k_64k top.qcow2
qemu-img create -f qcow2 -u -b json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}} -F qcow2 onjson.qcow2 1M
qemu-img create -f qcow2 -u -b json:{"driver":"qcow2","file":{"driver":"blkdebug","align":512,"image":{"driver":"file","filename":"top.qcow2"}}} -F qcow2 onlimits.qcow2 1M
qemu-img create -f qcow2 -u -b file:base.qcow2 -F qcow2 onfile.qcow2 1M
qemu-img create -f qcow2 -b base.qcow2 -F raw onraw.qcow2
qemu-img create -f qcow2 -o lazy_refcounts=on,compression_type=zstd lazy.qcow2 1M
qemu-img create -f qcow2 -o preallocation=metadata meta.qcow2 1M
qemu-img create -f qcow2 -o preallocation=falloc full.qcow2 1M
qemu-img convert -c -O qcow2 base.qcow2 packed.qcow2
qemu-img create -f qcow2 taken.qcow2 1M
qemu-io -f qcow2 -c write_0_64k taken.qcow2
qemu-img snapshot -c one taken.qcow2
qemu-io -f qcow2 -c write_64k_64k -c write_-b_0_1k taken.qcow2
qemu-img snapshot -c two taken.qcow2
qemu-img create -f qcow2 --object ${SECRET} -o encryption=on,encrypt.key-secret=key aes.qcow2 1M
qemu-img create -f qcow2 marked.qcow2 1M
qemu-img bitmap --add marked.qcow2 b0
qemu-img bitmap --add --disable -g 32k marked.qcow2 b1
cp lazy.qcow2 dirty.qcow2
cp base.qcow2 corrupt.qcow2
cp base.qcow2 unknown.qcow2
cp base.qcow2 leaking.qcow2
`;

/** Bytes patched into images where no command can produce them. */
const PATCHES: [name: string, offset: number, bytes: number[]][] = [
  // Incompatible features: dirty, then corrupt, then an unknown one.
  ["dirty.qcow2", 79, [1 | 8]],
  ["corrupt.qcow2", 79, [2]],
  ["unknown.qcow2", 78, [0x80]],
  // The refcount of a cluster that nothing refers to.
  ["leaking.qcow2", 0x20000 + 2 * 20, [0, 1]],
];

const PLAIN = ("disk.raw base.qcow2 v2.qcow2 tiny.qcow2 middle.qcow2 " +
  "top.qcow2 onjson.qcow2 onlimits.qcow2 onfile.qcow2 onraw.qcow2 " +
  "lazy.qcow2 meta.qcow2 full.qcow2 packed.qcow2 taken.qcow2 aes.qcow2 " +
  "marked.qcow2 dirty.qcow2 corrupt.qcow2 unknown.qcow2 leaking.qcow2 " +
  "file:base.qcow2 nothing.qcow2").split(" ");

const FILE = { driver: "file", filename: "top.qcow2" };
const RULES = [{ event: "read_aio", new_state: 42 }];
const STACKS = [
  { driver: "qcow2", file: FILE },
  { driver: "qcow2", file: { driver: "blkdebug", image: FILE } },
  {
    driver: "qcow2",
    file: { driver: "blkdebug", image: FILE, "set-state": RULES },
  },
  { driver: "qcow2", file: { driver: "blkdebug", image: FILE, align: 4096 } },
  { driver: "blkdebug", config: "rules", image: { driver: "null-co" } },
  { driver: "blkdebug", image: { driver: "qcow2", file: FILE } },
  { driver: "raw", offset: 512, size: 4096, file: FILE },
  { driver: "raw", file: FILE },
  { driver: "raw", file: { driver: "null-co", size: 65536 } },
  { driver: "quorum", "vote-threshold": 2, children: [FILE, FILE] },
  {
    driver: "qcow2",
    file: { driver: "quorum", "vote-threshold": 1, children: [FILE, FILE] },
  },
  { driver: "quorum", "vote-threshold": 3, children: [FILE, FILE] },
  { driver: "quorum", children: [FILE] },
  { driver: "quorum", "vote-threshold": 1 },
  {
    driver: "quorum",
    "vote-threshold": 1,
    "read-pattern": "fifo",
    children: [FILE, { driver: "null-co", size: 512 }],
  },
  { driver: "null-co", size: "64k", "read-zeroes": true },
  { driver: "copy-on-read", file: { driver: "qcow2", file: FILE } },
  { driver: "compress", file: { driver: "qcow2", file: FILE } },
  FILE,
].map((stack) => `json:${JSON.stringify(stack)}`);

const OTHERS = [
  ...["blkdebug:rules:top.qcow2", "blkdebug::top.qcow2", "null-co://"],
  ...["-f raw null-co://", "-f file top.qcow2", "-f raw file:top.qcow2"],
  "--image-opts driver=raw,offset=512,file.filename=top.qcow2",
  "--image-opts driver=file,filename=top.qcow2",
  `--object ${SECRET} --image-opts ` +
  "driver=qcow2,encrypt.key-secret=key,file.filename=aes.qcow2",
].map((call) => call.split(" "));

const SOURCES = [...PLAIN, ...STACKS].map((source) => [source]);

/** Underscores stand for the blanks within one argument. */
function wordsOf(line: string): string[] {
  return line.split(" ").map((word) =>
    /^(write|discard)_/.test(word) ? word.replaceAll("_", " ") : word
  );
}

async function makeImages(folder: string): Promise<void> {
  for (const line of IMAGES.trim().split("\n")) {
    await runOk(wordsOf(line), { cwd: folder });
  }
  Deno.writeTextFileSync(`${folder}/rules`, "");
  for (const [name, offset, bytes] of PATCHES) {
    using file = Deno.openSync(`${folder}/${name}`, { write: true });
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(Uint8Array.from(bytes));
  }
}

/** Sources whose map depends on the holes in a file. */
const WITH_HOLES =
  /disk\.raw|onraw|meta\.|corrupt\.|leaking\.|-f (raw|file)|driver(=|":")(raw|file|quorum)\b/;

for (
  const command of [
    "info --output=human",
    "info --output=json",
    "info --output=json --backing-chain",
    "map --output=human",
    "map --output=json",
    "check --output=human",
    "check --output=json",
  ]
) {
  qemuTest(`${command} says what qemu-img's says`, async (t) => {
    await using dir = await new TempDir();
    const { path: cwd } = dir;
    await makeImages(cwd);
    for (const source of [...SOURCES, ...OTHERS]) {
      // QEMU calls a raw image on null-co empty, although it can be read.
      const isDifferent = command.startsWith("map") &&
        / null-co:|null-co.*}}/.test(` ${source.at(-1)}`);
      if (isDifferent) continue;
      const last = source.join(" ");
      const needsHoles = command.startsWith("map") && WITH_HOLES.test(last);
      if (isBeyond(last, needsHoles)) continue;
      await t.step(source.join(" "), async () => {
        const call = ["qemu-img", ...command.split(" "), ...source];
        const [expected, actual] = await Promise.all([
          run(call, { cwd }),
          run([...BDRV, ...call], { cwd }),
        ]);
        assertEquals(actual, expected);
      });
    }
  }, ["qemu-img", "qemu-io"]);
}
