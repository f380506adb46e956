import { assertEquals, assertRejects } from "@std/assert";
import { type IoVector, vectorLength } from "../../../core/bytes.ts";
import { BlockError } from "../../../core/errors.ts";
import type { HostFile } from "../../../core/platform/files.ts";
import { WriteQueue } from "../../../drivers/file/write_queue.ts";

const KIB = 1024;

/** A file that records calls, and completes them on command. */
class SlowFile {
  readonly bytes = new Uint8Array(4096 * KIB);
  /** Offsets and lengths of the calls for other threads. */
  readonly calls: [offset: number, length: number][] = [];
  readonly #ends: (() => void)[] = [];
  /** The offset at which writes fail. */
  bad = -1;

  get host(): HostFile {
    return {
      pwritev: (offset: number, iov: IoVector) => this.#write(offset, iov),
      pwritevLater: async (offset: number, iov: IoVector) => {
        this.calls.push([offset, vectorLength(iov)]);
        await new Promise<void>((resolve) => this.#ends.push(resolve));
        this.#write(offset, iov);
      },
    } as HostFile;
  }

  #write(offset: number, iov: IoVector): void {
    for (const part of iov) {
      if (this.bad >= offset && this.bad < offset + part.length) {
        throw new BlockError("ENOSPC");
      }
      this.bytes.set(part, offset);
      offset += part.length;
    }
  }

  async finish(): Promise<void> {
    for (let end; (end = this.#ends.shift());) {
      end();
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
}

function part(byte: number): Uint8Array {
  return new Uint8Array(64 * KIB).fill(byte);
}

Deno.test("queued writes are merged where they are contiguous", async () => {
  const file = new SlowFile();
  const queue = new WriteQueue(2);
  const offsets = [0, 64, 128, 192, 512, 576, 256].map((at) => at * KIB);
  const writes = offsets.map((offset, i) =>
    queue.write(file.host, offset, [part(i + 1)])
  );
  assertEquals(file.calls.length, 2);
  await file.finish();
  await Promise.all(writes);
  assertEquals(
    file.calls.map(([offset, length]) => [offset / KIB, length / KIB]),
    [[0, 64], [64, 64], [128, 128], [512, 128], [256, 64]],
  );
  assertEquals(offsets.map((offset) => file.bytes[offset]), [
    ...[1, 2, 3, 4, 5, 6, 7],
  ]);
});

Deno.test("merged writes stay small enough for a quick call", async () => {
  const file = new SlowFile();
  const queue = new WriteQueue(1);
  const writes = Array.from(
    { length: 40 },
    (_, i) => queue.write(file.host, i * 64 * KIB, [part(i)]),
  );
  await file.finish();
  await Promise.all(writes);
  assertEquals(
    file.calls.map(([, length]) => length / KIB),
    [64, 1024, 1024, 448],
  );
});

Deno.test("of merged writes, only those fail that cannot be done", async () => {
  const file = new SlowFile();
  file.bad = 130 * KIB;
  const queue = new WriteQueue(1);
  const writes = [0, 1, 2, 3].map((i) =>
    queue.write(file.host, i * 64 * KIB, [part(i + 1)])
  );
  const results = Promise.allSettled(writes);
  await file.finish();
  assertEquals(
    (await results).map(({ status }) => status),
    ["fulfilled", "fulfilled", "rejected", "fulfilled"],
  );
  const error = await assertRejects(() => writes[2], BlockError);
  assertEquals(error.code, "ENOSPC");
  assertEquals(file.bytes[192 * KIB], 4);
  // The next write works as usual.
  const last = queue.write(file.host, 0, [part(9)]);
  await file.finish();
  await last;
  assertEquals(file.bytes[0], 9);
});
