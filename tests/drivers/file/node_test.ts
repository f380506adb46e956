import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { fileDriver } from "../../../drivers/file/driver.ts";
import type { HostFile } from "../../../drivers/file/host.ts";
import { FileNode } from "../../../drivers/file/node.ts";
import { kindOf } from "../../extents.ts";

/** A file on a disk that is full after `room` bytes. */
class FullDisk implements HostFile {
  #size = 0;

  constructor(readonly room: number) {}

  preadv(): void {}

  pwritev(offset: number, iov: readonly Uint8Array[]): void {
    const end = offset + iov[0].length;
    this.#size = Math.max(this.#size, Math.min(end, this.room));
    if (end > this.room) throw new BlockError("ENOSPC");
  }

  beginWrite(offset: number, part: Uint8Array) {
    const finish = () => this.pwritev(offset, [part]);
    return { isDone: true, wait: () => {}, finish };
  }

  size(): number {
    return this.#size;
  }

  truncate(size: number): void {
    this.#size = size;
  }

  sync(): void {}

  close(): void {}
}

for (const background of [false, true]) {
  const way = background ? "in the background" : "at once";
  Deno.test(`a file ends where a write made ${way} failed`, async () => {
    const node = new FileNode(new FullDisk(100_000), {
      driver: fileDriver,
      filename: "full",
      readOnly: false,
      noFlush: false,
      fixedSize: false,
      locking: "off",
      reopen: () => {
        throw new Error("not here");
      },
      unlocked: () => {},
    });
    const data = [new Uint8Array(65536)];
    await node.writev(0, data, { background });
    assertEquals(node.size, 65536);
    const error = await assertRejects(
      () => node.writev(65536, data, { background }),
      BlockError,
    );
    assertEquals(error.code, "ENOSPC");
    // A part of it is there: who allocates that must not take it for a hole.
    assertEquals(node.size, 100_000);
    await node.close();
  });
}

/** A file on a system that does as little as it may. */
class PoorFile implements HostFile {
  constructor(readonly refusal: BlockError) {}

  preadv(): void {}

  pwritev(): void {}

  size(): number {
    return 10_000;
  }

  truncate(): void {}

  sync(): void {}

  close(): void {}

  seekData(): number {
    throw this.refusal;
  }

  seekHole(): number {
    throw this.refusal;
  }
}

function nodeOf(host: HostFile): FileNode {
  return new FileNode(host, {
    driver: fileDriver,
    filename: "no longer there",
    readOnly: false,
    noFlush: false,
    fixedSize: false,
    locking: "off",
    reopen: () => {
      throw new Error("not here");
    },
    unlocked: () => {},
  });
}

for (const code of ["EINVAL", "EPERM", "ENOTSUP", "EIO"] as const) {
  Deno.test(`holes that are not told of (${code}) are data`, async () => {
    const node = nodeOf(new PoorFile(new BlockError(code)));
    const extent = await node.status(1000, 5000);
    assertEquals([kindOf(extent), extent.length], ["data", 5000]);
    assertEquals((await node.status(0, 10_000)).length, 10_000);
  });
}

Deno.test("data that becomes a hole while it is looked for is an extent", async () => {
  const host = new PoorFile(new BlockError("EIO"));
  host.seekData = () => 100;
  host.seekHole = () => 100;
  const extent = await nodeOf(host).status(100, 5000);
  assertEquals([kindOf(extent), extent.length], ["data", 5000]);
});

Deno.test("a file that is not where it was has no size on disk", async () => {
  const node = nodeOf(new PoorFile(new BlockError("EIO")));
  assertEquals((await node.info()).actualSize, undefined);
});
