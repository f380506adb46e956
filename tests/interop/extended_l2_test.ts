/**
 * L2 entries with subclusters, as QEMU writes them and as we do: what they say,
 * and what a check finds wrong with them.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { openProtocol } from "../../core/open.ts";
import { checkImage } from "../../drivers/qcow2/check.ts";
import { entryOffset, viewOf } from "../../drivers/qcow2/format.ts";
import { Geometry } from "../../drivers/qcow2/geometry.ts";
import { readHeader } from "../../drivers/qcow2/header.ts";
import { put64, storeOf } from "../drivers/qcow2/bytes.ts";
import { Random, seedsToRun } from "../model.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const COPIED = 1n << 63n;

/** What a check needs of an image that consists of the bytes. */
async function targetOf(bytes: Uint8Array) {
  const file = await openProtocol({ driver: "memory", store: storeOf(bytes) });
  const header = await readHeader(file, {
    readOnly: true,
    forCheck: true,
    infoOnly: true,
    warn: () => {},
  });
  return {
    file,
    header,
    geometry: Geometry.of(header),
    writeHeader: () => Promise.resolve(),
    prepareChange: () => {},
  };
}

/** An image that QEMU made and wrote to; where its first L2 table is. */
async function imageOf(dir: TempDir, ...requests: string[]) {
  const name = dir.file("image");
  const options = "extended_l2=on,cluster_size=64k";
  await runOk(["qemu-img", "create", "-f", "qcow2", "-o", options, name, "1G"]);
  const commands = requests.flatMap((request) => ["-c", request]);
  await runOk(["qemu-io", ...commands, name]);
  const bytes = await Deno.readFile(name);
  const view = viewOf(bytes);
  const l1 = Number(view.getBigUint64(40));
  const l2 = entryOffset(view.getUint32(l1), view.getUint32(l1 + 4));
  return { name, bytes, l2 };
}

qemuTest("subclusters are what QEMU made of them", async () => {
  await using dir = new TempDir();
  const { bytes, l2 } = await imageOf(
    dir,
    "write 3k 1k",
    "write -z 64k 64k",
    "write 128k 64k",
    "write -z 130k 2k",
    "write -c 192k 64k",
  );
  const { geometry: { l2: layout, clusterSize } } = await targetOf(bytes);
  const table = viewOf(bytes.subarray(l2, l2 + clusterSize));
  const kinds = [0, 1, 2, 3, 4].map((index) =>
    [0, 1, 2, 31].map((i) => layout.subclusterKind(table, index, i))
  );
  const all = <T>(kind: T) => Array(4).fill(kind);
  const placed = "unallocatedPlaced";
  assertEquals(kinds, [
    [placed, "normal", placed, placed],
    all("zero"),
    ["normal", "zeroAllocated", "normal", "normal"],
    all("compressed"),
    all("unallocated"),
  ]);
});

/** Entries that are damaged, in place of the first one. */
const DAMAGED: Record<string, (entry: bigint, bitmap: bigint) => bigint[]> = {
  "none": (entry, bitmap) => [entry, bitmap],
  "allocated and zero": (entry) => [entry, 1n << 33n | 0b10n],
  "allocated without a cluster": () => [0n, 0b10n],
  "zero without a cluster": () => [0n, 1n << 33n],
  "compressed with a bitmap": () => [1n << 62n | 0x60000n, 0b1n],
  "reserved bits": (entry, bitmap) => [entry | 2n, bitmap],
  "the flag for a whole cluster": (entry, bitmap) => [entry | 1n, bitmap],
  "misaligned with data": (entry, bitmap) => [entry + 512n, bitmap],
  "misaligned without data": (entry) => [entry + 512n, 1n << 32n],
  "not flagged": (entry, bitmap) => [entry & ~COPIED, bitmap],
};

for (const [what, damage] of Object.entries(DAMAGED)) {
  qemuTest(`a check finds what QEMU does in subclusters: ${what}`, async () => {
    await using dir = new TempDir();
    const { name, bytes, l2 } = await imageOf(dir, "write 3k 100k");
    const view = viewOf(bytes);
    const [entry, bitmap] = [l2, l2 + 8].map((at) => view.getBigUint64(at));
    put64(bytes, l2, ...damage(entry, bitmap));
    await Deno.writeFile(name, bytes);
    const theirs = await run(["qemu-img", "check", name]);
    const lines: string[] = [];
    const { corruptions, leaks } = await checkImage(await targetOf(bytes), {
      report: (line) => lines.push(line),
    });
    const text = theirs.stdout + theirs.stderr;
    const found = (pattern: RegExp) => Number(pattern.exec(text)?.[1] ?? 0);
    assertEquals(corruptions, found(/(\d+) errors were found/), text);
    assertEquals(leaks, found(/(\d+) leaked clusters/), text);
    const isFinding = /^(ERROR|OFLAG|Leaked)/;
    assertEquals(
      lines.filter((line) => isFinding.test(line)).sort(),
      text.split("\n").filter((line) => isFinding.test(line)).sort(),
    );
  });
}

/** What each entry of the active L2 tables says: place or not, and its bits. */
function entriesOf(bytes: Uint8Array): string[] {
  const view = viewOf(bytes);
  const clusterSize = 2 ** view.getUint32(20);
  const l1 = Number(view.getBigUint64(40));
  const lines: string[] = [];
  for (let i = 0; i < view.getUint32(36); i++) {
    const at = l1 + 8 * i;
    const l2 = entryOffset(view.getUint32(at), view.getUint32(at + 4));
    for (let at = l2; l2 > 0 && at < l2 + clusterSize; at += 16) {
      const entry = view.getBigUint64(at);
      const bits = view.getBigUint64(at + 8).toString(16);
      if (entry === 0n && bits === "0") continue;
      lines.push(`${i}.${(at - l2) / 16}: ${entry >> 62n} ${bits}`);
    }
  }
  return lines;
}

/** A command of `qemu-io` that writes, zeroes or discards somewhere. */
function someCommand(random: Random, size: number): string {
  const cluster = 16384;
  const unit = random.pick([512, 512, cluster]);
  let offset = random.below(size / unit) * unit;
  const most = random.pick([1024, cluster, 4 * cluster]);
  let length = 512 * (1 + random.below(most / 512));
  if (random.oneIn(4)) {
    [offset, length] = [random.below(size), 1 + random.below(3000)];
  }
  length = Math.min(length, size - offset);
  const pattern = 1 + random.below(255);
  switch (random.below(7)) {
    case 0:
      return `write -z ${offset} ${length}`;
    case 1:
      return `write -z -u ${offset} ${length}`;
    case 2:
      return `discard ${offset} ${length}`;
    case 3: {
      offset -= offset % cluster;
      return `write -c -P ${pattern} ${offset} ${cluster}`;
    }
    default:
      return `write -P ${pattern} ${offset} ${length}`;
  }
}

for (const seed of seedsToRun(3)) {
  qemuTest(
    `the same requests make the same entries as QEMU's (seed ${seed})`,
    async () => {
      await using dir = new TempDir();
      const random = new Random(seed);
      const size = 40 * 16384;
      const options = ["-o", "extended_l2=on,cluster_size=16k"];
      if (random.oneIn(3)) options[1] += ",preallocation=metadata";
      const base = dir.file("base");
      Deno.writeFileSync(base, random.bytes(size * 3 / 4));
      const backing = random.oneIn(2) ? ["-b", base, "-F", "raw"] : [];
      const files = [dir.file("theirs"), dir.file("ours")];
      const tools = (name: string) => [[name], [...BDRV, name]];
      const both = async (tool: string, ...args: string[]) => {
        for (const [i, command] of tools(tool).entries()) {
          const all = args.map((arg) => arg === "FILE" ? files[i] : arg);
          await run([...command, ...all]);
        }
      };
      const create = ["create", "-q", "-f", "qcow2", ...options, ...backing];
      await both("qemu-img", ...create, "FILE", `${size}`);
      for (let round = 0; round < 3; round++) {
        const commands = Array.from(
          { length: 12 },
          () => ["-c", someCommand(random, size)],
        );
        await both("qemu-io", "-d", "unmap", ...commands.flat(), "FILE");
        const said = commands.map(([, command]) => command).join("\n");
        const [theirs, ours] = files.map((file) => Deno.readFileSync(file));
        assertEquals(entriesOf(ours), entriesOf(theirs), said);
        const command = ["map", "--output=json"];
        const map = await runOk(["qemu-img", ...command, files[1]]);
        assertEquals(
          await runOk([...BDRV, "qemu-img", ...command, files[1]]),
          map,
        );
        await runOk(["qemu-img", "check", files[1]]);
        await runOk(["qemu-img", "compare", ...files]);
        await runOk([...BDRV, "compare", ...files]);
        if (round === 0) {
          await both("qemu-img", "snapshot", "-c", "one", "FILE");
        }
        if (round === 1 && random.oneIn(2)) {
          await both("qemu-img", "snapshot", "-a", "one", "FILE");
        }
      }
    },
  );
}
