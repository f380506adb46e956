/**
 * Tables that outgrow their space: refcount tables and L1 tables of images with
 * the smallest clusters, and preallocated metadata.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { createImage, openImage } from "../../mod.ts";
import { Random } from "../model.ts";
import { qemuTest, run, runOk, TempDir } from "../qemu.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

async function assertSound(filename: string): Promise<void> {
  const { code, stdout, stderr } = await run(["qemu-img", "check", filename]);
  assertEquals(code, 0, stdout + stderr);
}

/** Bytes of the disk that have a host offset. */
async function mapped(filename: string): Promise<number> {
  const map = await runOk(["qemu-img", "map", "--output=json", filename]);
  const extents: { length: number; offset?: number }[] = JSON.parse(map);
  return extents.filter(({ offset }) => offset !== undefined)
    .reduce((sum, { length }) => sum + length, 0);
}

for (const bits of [1, 2, 4, 8, 16, 32, 64]) {
  qemuTest(`refcount and L1 tables grow, ${bits}-bit refcounts`, async () => {
    await using folder = new TempDir();
    const filename = folder.file("disk.qcow2");
    const options = { size: 64 * KIB, cluster_size: 512, refcount_bits: bits };
    await createImage("qcow2", filename, options);
    const random = new Random(bits);
    // Filled, and doubled several times, by requests that overtake each other.
    let size = 64 * KIB;
    const patterns: string[] = [];
    {
      await using image = await openImage(filename);
      for (let round = 1; size <= 4 * MIB; round++, size *= 2) {
        await image.resize(size);
        const pieces = random.shuffle([0, 1, 2, 3, 4, 5, 6, 7]);
        const length = size / 8;
        await Promise.all(pieces.map((piece) =>
          image.write(
            piece * length,
            new Uint8Array(length).fill(16 * round + piece),
          )
        ));
        pieces.forEach((piece) => {
          patterns[piece] = `read -P ${16 * round + piece} ${
            piece * length
          } ${length}`;
        });
      }
    }
    await assertSound(filename);
    const commands = patterns.flatMap((line) => ["-c", line]);
    const output = await runOk(["qemu-io", "-r", ...commands, filename]);
    assertEquals(output.includes("verification failed"), false, output);
    // The header can give a refcount table more than one cluster.
    const clusters = new DataView((await Deno.readFile(filename)).buffer)
      .getUint32(56);
    if (bits === 64) assertEquals(clusters > 1, true, `${clusters}`);
  }, ["qemu-img", "qemu-io"]);
}

for (const clusterSize of [512, 65536]) {
  for (const preallocation of ["metadata", "falloc", "full"] as const) {
    const name = `preallocation=${preallocation}, clusters of ${clusterSize}`;
    qemuTest(`${name}: as in QEMU`, async () => {
      await using folder = new TempDir();
      const [ours, theirs] = ["ours", "theirs"].map((name) =>
        folder.file(`${name}.qcow2`)
      );
      const size = 3 * MIB + 512;
      const options = { size, cluster_size: clusterSize, preallocation };
      await createImage("qcow2", ours, options);
      const list = `cluster_size=${clusterSize},preallocation=${preallocation}`;
      await runOk(
        ["qemu-img", "create", "-f", "qcow2", "-o", list, theirs, `${size}`],
      );
      await assertSound(ours);
      assertEquals(await mapped(ours), size);
      assertEquals(await mapped(theirs), size);
      // All of this writes in place.
      {
        await using image = await openImage(ours);
        await image.write(0, new Uint8Array(size).fill(0x5a));
      }
      await assertSound(ours);
      const output = await runOk(
        ["qemu-io", "-r", "-c", `read -P 0x5a 0 ${size}`, ours],
      );
      assertEquals(output.includes("verification failed"), false);
      const before = Deno.statSync(ours).size;
      const theirSize = Deno.statSync(theirs).size;
      assertEquals(before <= theirSize + 4 * clusterSize, true);
    }, ["qemu-img", "qemu-io"]);
  }
}

qemuTest("an image grown with preallocated metadata is sound", async () => {
  await using folder = new TempDir();
  const filename = folder.file("disk.qcow2");
  await createImage("qcow2", filename, { size: 100 * KIB, cluster_size: 512 });
  {
    await using image = await openImage(filename);
    await image.write(99 * KIB, new Uint8Array(KIB).fill(1));
    await image.resize(5 * MIB, { preallocation: "metadata" });
    await image.write(4 * MIB, new Uint8Array(KIB).fill(2));
  }
  await assertSound(filename);
  const output = await runOk([
    ...["qemu-io", "-r", "-c", "read -P 1 99k 1k", "-c", "read -P 0 100k 1M"],
    ...["-c", "read -P 2 4M 1k", filename],
  ]);
  assertEquals(output.includes("verification failed"), false, output);
}, ["qemu-img", "qemu-io"]);
