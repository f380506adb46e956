/**
 * The types of the options of new images. Lines that must not compile are
 * marked, and `deno check` fails if one does.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  commit,
  compare,
  convert,
  createImage,
  drain,
  type Image,
  measure,
  MemoryStore,
  openImage,
  rebase,
  streamImage,
} from "../../mod.ts";

const memory = () => ({ driver: "memory", store: new MemoryStore() });
const MIB = 1024 * 1024;

/** Type-checked, never called. */
async function _types(format: string, known: "qcow2" | "raw"): Promise<void> {
  const file = memory();
  await createImage("qcow2", file, { size: "1G", compression_type: "zstd" });
  await createImage("qcow2", file, { size: 1, extended_l2: "on", nocow: true });
  await createImage("qcow2", file, { "encrypt.format": "luks" });
  await createImage("vmdk", file, { size: 1, preallocation: "falloc" });
  await createImage("raw", file);
  // @ts-expect-error: no such option.
  await createImage("qcow2", file, { size: 1, clustersize: 4096 });
  // @ts-expect-error: no such value.
  await createImage("qcow2", file, { size: 1, compression_type: "lz4" });
  // @ts-expect-error: no such kind of value.
  await createImage("qcow2", file, { size: true });
  // @ts-expect-error: an option of another format.
  await createImage("vdi", file, { size: 1, backing_file: "a" });
  // @ts-expect-error: that cipher is not there.
  await createImage("luks", file, { size: 1, "cipher-alg": "des" });
  // @ts-expect-error: raw files have no metadata.
  await createImage("raw", file, { size: 1, preallocation: "metadata" });
  // Any name and any options, where the compiler cannot know the driver.
  await createImage("mine", file, { size: 1, colour: "red" });
  await createImage(format, file, { size: 1, colour: "red" });
  await createImage(known, file, { size: 1 });
  await measure("qcow2", { size: 1, cluster_size: "2M" });
  // @ts-expect-error: no such option.
  await measure("qcow2", { size: 1, clustersize: "2M" });
}

/** An image of a new disk, of 1 MiB. */
async function newDisk(
  format: "qcow2" | "raw",
  backing?: Image,
): Promise<Image> {
  const file = memory();
  await createImage(format, file, { size: MIB });
  return await openImage({
    driver: format,
    file,
    ...(backing && { backing: backing.node }),
  });
}

Deno.test("jobs take images as well as nodes", async () => {
  await using source = await newDisk("raw");
  await source.write(5000, new TextEncoder().encode("hello"));
  await using target = await newDisk("qcow2");
  await convert(source, target);
  assertEquals((await compare(source, target.node)).outcome, "identical");
  await convert([source.node], target.node);
  await using base = await newDisk("qcow2");
  await using overlay = await newDisk("qcow2", base);
  await convert(target, overlay);
  await commit(overlay, { base });
  assertEquals((await compare(base, target)).outcome, "identical");
  await rebase(overlay, undefined);
  const { required } = await measure("raw", {}, overlay);
  assertEquals(required, MIB);
  const bytes = await new Response(streamImage("raw", [overlay])).bytes();
  assertEquals(new TextDecoder().decode(bytes.subarray(5000, 5005)), "hello");
  using _ = await drain(overlay);
});

Deno.test("jobs on anything else are refused", async () => {
  await using disk = await newDisk("raw");
  for (const wrong of [undefined, null, 5, {}, { node: {} }, []]) {
    // deno-lint-ignore no-explicit-any
    const image = wrong as any;
    if (!Array.isArray(wrong)) {
      await assertRejects(() => convert(image, disk), BlockError);
    }
    await assertRejects(() => convert(disk, image), BlockError);
    await assertRejects(() => compare(disk, image), BlockError);
    await assertRejects(() => commit(image), BlockError);
  }
});
