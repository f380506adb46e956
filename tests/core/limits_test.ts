/** Requests beyond the limits of a node. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { applyLimits } from "../../core/limits.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  replaceChild,
} from "../../mod.ts";

/** A caller's own node of 64 KiB with limits, and the requests it gets. */
class LimitedNode implements BlockNode {
  readonly driver = { name: "limited", role: "protocol" } as const;
  readonly filename = "limited";
  readonly size = 65536;
  readonly readOnly = false;
  readonly children = {};
  readonly limits = { requestAlignment: 512, maxTransfer: 4096 };
  readonly store = new MemoryStore(65536);
  readonly requests: [offset: number, length: number][] = [];

  #move(
    offset: number,
    iov: readonly Uint8Array[],
    move: (offset: number, part: Uint8Array) => void,
  ): Promise<void> {
    let at = offset;
    for (const part of iov) {
      move(at, part);
      at += part.length;
    }
    this.requests.push([offset, at - offset]);
    return Promise.resolve();
  }

  readv(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    return this.#move(offset, iov, (at, part) => this.store.read(at, part));
  }

  writev(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    return this.#move(offset, iov, (at, part) => this.store.write(at, part));
  }

  status(_offset: number, length: number) {
    return Promise.resolve({ length, allocated: true, zero: false });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  /** Check that all requests kept to the limits. */
  check(): void {
    assert(this.requests.length > 0);
    for (const [offset, length] of this.requests) {
      assertEquals([offset % 512, length % 512], [0, 0]);
      assert(length <= 4096);
    }
  }
}

for (const place of ["on top", "below raw", "as a replacement"]) {
  Deno.test(`a caller's node ${place} gets only requests within its limits`, async () => {
    const node = new LimitedNode();
    const file = { driver: "memory", store: new MemoryStore(65536) };
    await using disk = await openImage(
      place === "on top"
        ? node
        : { driver: "raw", file: place === "below raw" ? node : file },
    );
    if (place === "as a replacement") await replaceChild(disk, "file", node);
    await disk.write(1000, new Uint8Array(20_000).fill(7));
    assertEquals(
      await disk.read(999, 3),
      new Uint8Array([0, 7, 7]),
    );
    await disk.writeZeroes(5000, 10);
    assertEquals(await disk.read(4999, 2), new Uint8Array([7, 0]));
    await disk.flush();
    node.check();
  });
}

Deno.test("users of a caller's node with limits know of each other", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 4096, cluster_size: 512 });
  const node = new LimitedNode();
  const image = new Uint8Array(file.store.size);
  file.store.read(0, image);
  node.store.write(0, image);
  await using disk = await openImage({ driver: "qcow2", file: node });
  await disk.write(100, new Uint8Array(1000).fill(1));
  await assertRejects(
    () => openImage({ driver: "qcow2", file: node }),
    BlockError,
    "Permission conflict on node 'limited'",
  );
  await disk.flush();
  node.check();
});

Deno.test("zeroes written as data do not wait behind a request that waits for them", async () => {
  const file = { driver: "memory", store: new MemoryStore(8192) };
  const below = await openNode({ driver: "raw", file });
  const begun = Promise.withResolvers<void>();
  const resume = Promise.withResolvers<void>();
  const node: BlockNode = {
    driver: below.driver,
    filename: "disk",
    size: 8192,
    readOnly: false,
    children: {},
    limits: { requestAlignment: 512, writeZeroesAlignment: 4096 },
    readv: (offset, iov) => below.readv(offset, iov),
    writev: (offset, iov) => below.writev!(offset, iov),
    async writeZeroes() {
      begun.resolve();
      await resume.promise;
      throw new BlockError("ENOTSUP");
    },
    status: (offset, length) => below.status(offset, length),
    close: () => below.close(),
  };
  const limited = await applyLimits(node);
  await limited.writev!(0, [new Uint8Array(8192).fill(1)]);
  const zeroing = limited.writeZeroes!(512, 2048);
  await begun.promise;
  // It covers only part of a unit, so it needs the unit exclusively.
  const writing = limited.writev!(1000, [new Uint8Array(100).fill(2)]);
  resume.resolve();
  await Promise.all([zeroing, writing]);
  const bytes = new Uint8Array(8192);
  await limited.readv(0, [bytes]);
  const at = (offset: number) => bytes[offset];
  assertEquals([511, 512, 1000, 1099, 1100, 2560].map(at), [1, 0, 2, 2, 0, 1]);
  await limited.close();
});
