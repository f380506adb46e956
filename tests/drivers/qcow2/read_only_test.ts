/** Images opened read-only, without loading what writes. @module */
import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
} from "../../../mod.ts";

/** An image with data, a snapshot and compressed clusters. */
async function makeImage(): Promise<MemoryStore> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size: 1 << 20 });
  await using image = await openImage({ driver: "qcow2", file });
  await image.write(0, new Uint8Array(100_000).fill(1));
  await image.node.snapshots!.create({ name: "one" });
  await image.writeCompressed(1 << 18, new Uint8Array(1 << 17).fill(2));
  return store;
}

function bytesOf(store: MemoryStore): Uint8Array {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}

Deno.test("a read-only node refuses every change, whoever asks", async () => {
  const store = await makeImage();
  const before = bytesOf(store);
  const file = { driver: "memory", store };
  await using image = await openImage({ driver: "qcow2", file }, {
    readOnly: true,
  });
  // The image checks this first; a node above in a stack may not.
  const { node } = image;
  const acts: { readonly [name: string]: () => Promise<unknown> } = {
    writev: () => node.writev!(0, [new Uint8Array(512)]),
    writeZeroes: () => node.writeZeroes!(0, 1 << 16),
    discard: () => node.discard!(0, 1 << 16),
    writeCompressed: () =>
      node.writeCompressed!(1 << 19, [new Uint8Array(1 << 16)]),
    truncate: () => node.truncate!(1 << 21),
    create: () => node.snapshots!.create({ name: "two" }),
    apply: () => node.snapshots!.apply("one"),
    delete: () => node.snapshots!.delete("one"),
    save: () => node.vmState!.save(0, [new Uint8Array(512)]),
    makeEmpty: () => node.image!.makeEmpty!(),
    amend: () => node.image!.amend!({ compat: "0.10" }),
    addBitmap: () => node.image!.bitmaps!.add("b", { granularity: 65536 }),
  };
  for (const [name, act] of Object.entries(acts)) {
    const { code } = await assertRejects(act, BlockError, undefined, name);
    assertEquals(code, "EACCES", name);
  }
  assertEquals(bytesOf(store), before);
});

Deno.test("a read-only image can be read, checked and laid out in full", async () => {
  const file = { driver: "memory", store: await makeImage() };
  await using image = await openImage({ driver: "qcow2", file }, {
    readOnly: true,
  });
  const bytes = await image.read(0, 1 << 19);
  assertEquals(
    [bytes[99_999], bytes[100_000], bytes[1 << 18], bytes[3 << 17]],
    [1, 0, 2, 0],
  );
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
  const layout = await image.node.image!.layout!();
  assertEquals(layout.snapshots.map(({ name }) => name), ["one"]);
  await image.node.snapshots!.loadTemporary("one");
  assertEquals((await image.read(1 << 18, 1))[0], 0);
});
