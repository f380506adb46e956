import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { fileDriver } from "../../../drivers/file/driver.ts";
import type { HostFile } from "../../../core/platform/files.ts";
import { FileNode } from "../../../drivers/file/node.ts";
import { kindOf } from "../../extents.ts";

/** Does at once what others use threads for. */
abstract class Unthreaded {
  readonly descriptor = 3;

  abstract preadv(offset: number, iov: readonly Uint8Array[]): void;
  abstract pwritev(offset: number, iov: readonly Uint8Array[]): void;
  abstract sync(): void;

  // deno-lint-ignore require-await
  async preadvLater(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    this.preadv(offset, iov);
  }

  // deno-lint-ignore require-await
  async pwritevLater(
    offset: number,
    iov: readonly Uint8Array[],
  ): Promise<void> {
    this.pwritev(offset, iov);
  }

  // deno-lint-ignore require-await
  async syncLater(): Promise<void> {
    this.sync();
  }
}

/** A file on a disk that is full after `room` bytes. */
class FullDisk extends Unthreaded implements HostFile {
  #size = 0;

  constructor(readonly room: number) {
    super();
  }

  preadv(): void {}

  pwritev(offset: number, iov: readonly Uint8Array[]): void {
    const end = offset + iov[0].length;
    this.#size = Math.max(this.#size, Math.min(end, this.room));
    if (end > this.room) throw new BlockError("ENOSPC");
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
  Deno.test(`a file ends where a write failed, made ${way}`, async () => {
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
    // Part of it was written: whoever allocates that space must not take it for
    // a hole.
    assertEquals(node.size, 100_000);
    await node.close();
  });
}

/** A file on a system that does as little as it may. */
class PoorFile extends Unthreaded implements HostFile {
  constructor(readonly refusal: BlockError) {
    super();
  }

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
  Deno.test(`holes that cannot be queried (${code}) are data`, async () => {
    const node = nodeOf(new PoorFile(new BlockError(code)));
    const extent = await node.status(1000, 5000);
    assertEquals([kindOf(extent), extent.length], ["data", 5000]);
    assertEquals((await node.status(0, 10_000)).length, 10_000);
  });
}

Deno.test("data that becomes a hole during the search is still an extent", async () => {
  const host = new PoorFile(new BlockError("EIO"));
  host.seekData = () => 100;
  host.seekHole = () => 100;
  const extent = await nodeOf(host).status(100, 5000);
  assertEquals([kindOf(extent), extent.length], ["data", 5000]);
});

Deno.test("a file that has been moved has no known size on disk", async () => {
  const node = nodeOf(new PoorFile(new BlockError("EIO")));
  assertEquals((await node.info()).actualSize, undefined);
});

/** Records its requests. */
class NotingFile extends Unthreaded implements HostFile {
  readonly calls: string[] = [];

  preadv(): void {
    this.calls.push("read");
  }

  pwritev(): void {
    this.calls.push("write");
  }

  sync(): void {
    this.calls.push("sync");
  }

  override preadvLater(): Promise<void> {
    return this.#note("read later");
  }

  override pwritevLater(): Promise<void> {
    return this.#note("write later");
  }

  override syncLater(): Promise<void> {
    return this.#note("sync later");
  }

  size(): number {
    return 10_000;
  }

  truncate(): void {}

  close(): void {
    this.calls.push("close");
  }

  async #note(call: string): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, 1));
    this.calls.push(call);
  }
}

for (const aio of [undefined, "threads", "native", "io_uring"] as const) {
  Deno.test(`with aio=${aio}, requests of all sizes use it`, async () => {
    const host = new NotingFile();
    const node = new FileNode(host, {
      driver: fileDriver,
      filename: "file",
      readOnly: false,
      noFlush: false,
      fixedSize: false,
      aio,
      locking: "off",
      unlocked: () => {},
      reopen: () => host,
    });
    const part = [new Uint8Array(1)];
    await node.readv(0, part);
    await node.writev(0, part);
    await node.writev(0, part, { fua: true });
    await node.flush();
    const last = node.readv(0, part);
    // Requests in flight still have the file.
    await Promise.all([node.close(), last]);
    const way = aio ? " later" : "";
    const calls = ["read", "write", "write", "sync", "sync", "read"]
      .map((call) => call + way);
    assertEquals(host.calls, [...calls, "close"]);
  });
}
