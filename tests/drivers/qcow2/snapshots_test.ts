/**
 * Snapshots that fail half-way, and requests that must wait for them.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert";
import { Image } from "../../../core/image.ts";
import { openNode } from "../../../core/open.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { newImage, storeOf } from "./bytes.ts";

Deno.test("a snapshot whose clusters cannot be freed is gone; the next writer repairs", async () => {
  const store = storeOf(await newImage());
  const file = { driver: "memory", store };
  {
    await using image = await openImage({ driver: "qcow2", file });
    await image.write(0, new Uint8Array(10_000).fill(1));
    await image.node.snapshots!.create({ name: "s" });
  }
  const said: string[] = [];
  const faulty = await openNode({
    driver: "qcow2",
    file: {
      driver: "blkdebug",
      "inject-error": [{ event: "cluster_free", errno: 5 }],
      image: file,
    },
  }, { report: (line) => said.push(line) });
  const error = await assertRejects(
    () => faulty.snapshots!.delete("s"),
    BlockError,
  );
  assertEquals(
    error.message,
    "Failed to free the cluster and L1 table: Input/output error",
  );
  assertEquals(said, ["qcow2_free_clusters failed: Input/output error"]);
  await faulty.close().catch(() => {});
  {
    const options = { readOnly: true };
    const image = new Image(await openNode({ driver: "qcow2", file }, options));
    assertEquals(await image.node.snapshots!.list(), []);
    const { corruptions, leaks } = await image.check();
    assertEquals([corruptions, leaks > 0], [0, true]);
    await image.close();
  }
  await (await openImage({ driver: "qcow2", file })).check({
    repair: { leaks: true, corruptions: true },
  });
  await using image = await openImage({ driver: "qcow2", file });
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
  assertEquals(await image.read(9_999, 2), new Uint8Array([1, 0]));
});

Deno.test("VM state is read from its new offset once a snapshot is applied", async () => {
  const file = { driver: "memory", store: storeOf(await newImage()) };
  await using image = await openImage({ driver: "qcow2", file });
  const { node } = image;
  const state = new Uint8Array(16).fill(7);
  await node.vmState!.save(0, [state]);
  await node.snapshots!.create({ name: "s", vmStateSize: state.length });
  // VM state lies behind the disk, whose size the snapshot restores.
  await node.truncate!(1 << 30);
  const read = new Uint8Array(state.length);
  await Promise.all([
    node.snapshots!.apply("s"),
    node.vmState!.load(0, [read]),
  ]);
  assertEquals(read, state);
});

Deno.test("a read that waits for the disk to shrink is refused", async () => {
  const file = { driver: "memory", store: storeOf(await newImage()) };
  await using image = await openImage({ driver: "qcow2", file });
  const { node } = image;
  const shrinking = node.truncate!(4096);
  const reading = node.readv(8192, [new Uint8Array(512)]);
  const error = await assertRejects(() => reading, BlockError);
  assertEquals(error.code, "EINVAL");
  await shrinking;
  // The waiting request released its lock: nothing blocks the next change.
  await node.truncate!(1 << 20);
});
