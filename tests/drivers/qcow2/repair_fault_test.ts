/**
 * A repair that fails half-way: from then on its changes in the file count, not
 * what was in memory before.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { openProtocol } from "../../../core/open.ts";
import {
  BlockError,
  type Image,
  type MemoryStore,
  openImage,
} from "../../../mod.ts";
import { faultyNode, type NthFault } from "../../fault_disk.ts";
import { contentOf, newImage, storeOf } from "./bytes.ts";

const CLUSTER = 4096;
const DATA = 20;

/**
 * An image whose first data clusters have no refcount, and one lacks COPIED.
 */
async function damagedImage(): Promise<MemoryStore> {
  const store = storeOf(await newImage({ size: 1 << 20 }));
  {
    const file = { driver: "memory", store };
    await using image = await openImage({ driver: "qcow2", file });
    await image.write(0, new Uint8Array(DATA * CLUSTER).fill(1));
  }
  const bytes = contentOf(store);
  const view = new DataView(bytes.buffer);
  const number = (at: number) =>
    Number(view.getBigUint64(at) & (2n ** 56n - 1n));
  const l2Table = number(number(40));
  const refcountBlock = number(number(48));
  for (let entry = 0; entry < 5; entry++) {
    const cluster = number(l2Table + 8 * entry) / CLUSTER;
    view.setUint16(refcountBlock + 2 * cluster, 0);
  }
  bytes[l2Table] &= 0x7f;
  store.write(0, bytes);
  return store;
}

async function soundness(store: MemoryStore) {
  const file = { driver: "memory", store };
  const options = { readOnly: true };
  await using image = await openImage({ driver: "qcow2", file }, options);
  const { corruptions } = await image.check();
  return { corruptions, data: await image.read(0, DATA * CLUSTER) };
}

/** Write to unallocated clusters. */
async function writeMore(image: Image): Promise<void> {
  for (let i = 100; i < 110; i++) {
    await image.write(i * CLUSTER, new Uint8Array(CLUSTER).fill(9));
  }
  await image.flush();
}

Deno.test("a repair that fails half-way leaves no old tables in use", async () => {
  const mended: number[] = [];
  for (let after = 0;; after++) {
    const store = await damagedImage();
    const file = await openProtocol({ driver: "memory", store });
    const fault: NthFault = {
      after: Infinity,
      kind: "writev",
      once: false,
      code: "EIO",
    };
    const { node, counts } = faultyNode(file, fault);
    const image = await openImage({ driver: "qcow2", file: node });
    // This loads the damaged refcounts into memory.
    await image.discard((DATA - 1) * CLUSTER, CLUSTER);
    await image.flush();
    fault.after = counts.writev + after;
    const repair = { leaks: true, corruptions: true };
    const checking = image.check({ repair });
    const isOver = await checking.then(() => true, () => false);
    if (!isOver) await assertRejects(() => checking, BlockError);
    fault.after = Infinity;
    const { corruptions, data } = await soundness(store);
    if (corruptions === 0) {
      mended.push(after);
      // The image continues to work, or refuses to; nothing gets lost.
      await writeMore(image).catch((error) =>
        assert(error instanceof BlockError)
      );
      assertEquals(await soundness(store), { corruptions: 0, data });
    }
    await image.close().catch(() => {});
    if (isOver) break;
  }
  // Some attempts failed only after everything was mended.
  assert(mended.length > 1, `${mended}`);
});
