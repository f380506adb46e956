/**
 * Images of all versions, cluster sizes and kinds, made by QEMU and read by us,
 * and vice versa.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { isEqual } from "../../core/runtime.ts";
import { convert, createImage, openImage } from "../../mod.ts";
import { Random } from "../model.ts";
import { qemuTest, run, runOk, TempDir } from "../qemu.ts";

const SIZE = 5 * 1024 * 1024 + 1536;

/** Data of several kinds: compressible, random, and none. */
function content(): Uint8Array<ArrayBuffer> {
  const random = new Random(42);
  const bytes = new Uint8Array(SIZE);
  for (let at = 0; at < SIZE; at += 150_000) {
    const length = Math.min(SIZE - at, 1 + random.below(150_000));
    if (random.oneIn(3)) continue;
    bytes.set(
      random.oneIn(2) ? random.bytes(length) : random.dullBytes(length),
      at,
    );
  }
  return bytes;
}

const CLUSTER_SIZES = [512, 4096, 65536, 2 * 1024 * 1024];
const KINDS = ["plain", "zlib", "zstd"] as const;

for (const compat of ["v2", "v3"]) {
  for (const kind of KINDS) {
    if (compat === "v2" && kind === "zstd") continue;
    qemuTest(
      `${compat}, ${kind}: we read QEMU's images, and vice versa`,
      async () => {
        await using folder = new TempDir();
        const raw = folder.file("content.raw");
        const bytes = content();
        await Deno.writeFile(raw, bytes);
        for (const clusterSize of CLUSTER_SIZES) {
          const options = {
            compat,
            cluster_size: clusterSize,
            ...(kind === "zstd" && { compression_type: kind }),
          };
          await fromQemu(folder, raw, bytes, options, kind !== "plain");
          await toQemu(folder, raw, options, kind !== "plain");
        }
      },
    );
  }
}

async function fromQemu(
  folder: TempDir,
  raw: string,
  bytes: Uint8Array,
  options: Record<string, unknown>,
  compressed: boolean,
): Promise<void> {
  const theirs = folder.file("theirs.qcow2");
  const list = Object.entries(options).map(([key, value]) => `${key}=${value}`);
  await runOk([
    ...["qemu-img", "convert", "-f", "raw", "-O", "qcow2"],
    ...(compressed ? ["-c"] : []),
    ...["-o", list.join(","), raw, theirs],
  ]);
  await using image = await openImage(theirs, { readOnly: true });
  assertEquals(image.size, SIZE);
  assertEquals(isEqual(await image.read(0, SIZE), bytes), true);
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
}

async function toQemu(
  folder: TempDir,
  raw: string,
  options: Record<string, unknown>,
  compressed: boolean,
): Promise<void> {
  const ours = folder.file("ours.qcow2");
  await createImage("qcow2", ours, { size: SIZE, ...options });
  {
    await using source = await openImage(raw, {
      format: "raw",
      readOnly: true,
    });
    await using target = await openImage(ours);
    const converting = { targetIsZero: true, compressed };
    await convert([source.node], target.node, converting);
  }
  const check = await run(["qemu-img", "check", ours]);
  assertEquals(check.code, 0, check.stdout + check.stderr);
  await runOk(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, ours]);
  // At most as large as QEMU's, plus a few clusters for a different order.
  const theirSize = Deno.statSync(folder.file("theirs.qcow2")).size;
  const ourSize = Deno.statSync(ours).size;
  const most = theirSize * 1.05 + 3 * Number(options.cluster_size);
  assertEquals(ourSize <= most, true, `${ourSize} bytes, not ${theirSize}`);
}
