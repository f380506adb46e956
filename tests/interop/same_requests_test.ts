/**
 * The same random requests, to one image by us and to another by QEMU: the L2
 * entries, `map`'s output and the data files must be equal.
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import { assert, assertEquals } from "@std/assert";
import { entryOffset } from "../../drivers/qcow2/format.ts";
import { Random, seedsToRun } from "../model.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const CLUSTER = 16384;
const SIZE = 40 * CLUSTER;

/**
 * The entries of the active L2 tables: whether they are allocated, and which
 * parts count. The host offset does not matter.
 */
function entriesOf(bytes: Uint8Array): string[] {
  const view = viewOf(bytes);
  const clusterSize = 2 ** view.getUint32(20);
  const isExtended = (view.getUint32(76) & 16) !== 0;
  const l1 = Number(view.getBigUint64(40));
  const lines: string[] = [];
  for (let i = 0; i < view.getUint32(36); i++) {
    const at = l1 + 8 * i;
    const l2 = entryOffset(view.getUint32(at), view.getUint32(at + 4));
    const step = isExtended ? 16 : 8;
    for (let at = l2; l2 > 0 && at < l2 + clusterSize; at += step) {
      const entry = view.getBigUint64(at);
      const bits = isExtended ? view.getBigUint64(at + 8) : entry & 1n;
      if (entry === 0n && bits === 0n) continue;
      lines.push(`${i}.${(at - l2) / step}: ${entry >> 62n} ${bits}`);
    }
  }
  return lines;
}

/** A command of `qemu-io` that writes, zeroes or discards somewhere. */
function someCommand(random: Random): string {
  const unit = random.pick([512, 512, CLUSTER]);
  let offset = random.below(SIZE / unit) * unit;
  const most = random.pick([1024, CLUSTER, 4 * CLUSTER]);
  let length = 512 * (1 + random.below(most / 512));
  if (random.oneIn(4)) {
    [offset, length] = [random.below(SIZE), 1 + random.below(3000)];
  }
  length = Math.min(length, SIZE - offset);
  const pattern = 1 + random.below(255);
  switch (random.below(7)) {
    case 0:
      return `write -z ${offset} ${length}`;
    case 1:
      return `write -z -u ${offset} ${length}`;
    case 2:
      return `discard ${offset} ${length}`;
    case 3: {
      offset -= offset % CLUSTER;
      return `write -c -P ${pattern} ${offset} ${CLUSTER}`;
    }
    default:
      return `write -P ${pattern} ${offset} ${length}`;
  }
}

/** Creation options of the images; a data file's name gets appended. */
const VARIANTS = [
  "extended_l2=on",
  "extended_l2=on,preallocation=metadata",
  "extended_l2=on,data_file=",
  "data_file=",
  "data_file_raw=on,data_file=",
  "extended_l2=on,data_file_raw=on,data_file=",
];

async function compare(options: string, random: Random): Promise<void> {
  await using dir = new TempDir();
  const base = dir.file("base");
  Deno.writeFileSync(base, random.bytes(SIZE * 3 / 4));
  const hasBacking = !options.includes("raw") && random.oneIn(2);
  const backing = hasBacking ? ["-b", base, "-F", "raw"] : [];
  const images = ["theirs", "ours"].map((name) => dir.file(name));
  const hasData = options.endsWith("=");
  const both = async (tool: string, argsOf: (image: string) => string[]) => {
    for (const [i, prefix] of [[], BDRV].entries()) {
      await run([...prefix, tool, ...argsOf(images[i])]);
    }
  };
  await both("qemu-img", (image) => {
    const all = `cluster_size=16k,${options}${hasData ? `${image}.data` : ""}`;
    const what = ["-f", "qcow2", ...backing, "-o", all];
    return ["create", "-q", ...what, image, `${SIZE}`];
  });
  for (let round = 0; round < 3; round++) {
    const commands = Array.from({ length: 12 }, () => someCommand(random));
    const requests = commands.flatMap((command) => ["-c", command]);
    await both("qemu-io", (image) => ["-d", "unmap", ...requests, image]);
    const said = `${options}\n${commands.join("\n")}`;
    const [theirs, ours] = images.map((image) => Deno.readFileSync(image));
    assert(entriesOf(theirs).length > 0);
    assertEquals(entriesOf(ours), entriesOf(theirs), said);
    const map = ["qemu-img", "map", "--output=json", images[1]];
    const expected = await runOk(map);
    assertEquals(await runOk([...BDRV, ...map]), expected, said);
    await runOk(["qemu-img", "check", images[1]]);
    await runOk(["qemu-img", "compare", ...images]);
    await runOk([...BDRV, "compare", ...images]);
    if (options.includes("raw")) {
      const raw = [images[1], `${images[1]}.data`];
      await runOk(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", ...raw]);
    }
    if (hasData) continue;
    if (round === 0) await both("qemu-img", (i) => ["snapshot", "-c", "s", i]);
    if (round === 1 && random.oneIn(2)) {
      await both("qemu-img", (i) => ["snapshot", "-a", "s", i]);
    }
  }
}

for (const seed of seedsToRun(VARIANTS.length)) {
  const options = VARIANTS[(seed - 1) % VARIANTS.length];
  qemuTest(
    `the same requests have the same effect as in QEMU (${options}, seed ${seed})`,
    () => compare(options, new Random(seed)),
  );
}
