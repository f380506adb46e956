/**
 * L2 entries with subclusters, as written by QEMU and by us: what they mean,
 * and which errors a check finds in them.
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import { assertEquals } from "@std/assert";
import { openProtocol } from "../../core/open.ts";
import { checkImage } from "../../drivers/qcow2/check.ts";
import { entryOffset } from "../../drivers/qcow2/format.ts";
import { Geometry } from "../../drivers/qcow2/geometry.ts";
import { readHeader } from "../../drivers/qcow2/header.ts";
import { put64, storeOf } from "../drivers/qcow2/bytes.ts";
import { qemuTest, run, runOk, TempDir } from "../qemu.ts";

const COPIED = 1n << 63n;

/** The parts of an image, given as bytes, that a check needs. */
async function targetOf(bytes: Uint8Array) {
  const file = await openProtocol({ driver: "memory", store: storeOf(bytes) });
  const header = await readHeader(file, {
    readOnly: true,
    forCheck: true,
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

/** An image written by QEMU, and the offset of its first L2 table. */
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

qemuTest("subclusters written by QEMU are decoded correctly", async () => {
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

/** Damaged entries, to replace the first one. */
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
  qemuTest(`a check finds what QEMU does: ${what}`, async () => {
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
