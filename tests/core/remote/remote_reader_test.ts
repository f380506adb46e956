import { assert, assertEquals, assertRejects } from "@std/assert";
import { RemoteReader } from "../../../core/remote/remote_reader.ts";

const KIB = 1024;

/** A source that answers in a later turn, and counts. */
class Source {
  readonly requests: [offset: number, length: number][] = [];
  failures = 0;
  hangs = false;
  constructor(readonly content: Uint8Array) {}
  get size() {
    return this.content.length;
  }
  get bytes() {
    return this.requests.reduce((sum, [, length]) => sum + length, 0);
  }
  read = async (
    offset: number,
    parts: readonly Uint8Array[],
    signal: AbortSignal,
    filled: (part: number) => void,
  ) => {
    this.requests.push([offset, parts.reduce((sum, p) => sum + p.length, 0)]);
    await new Promise<void>((resolve, reject) => {
      if (!this.hangs) setTimeout(resolve, Math.random() * 3);
      signal.addEventListener("abort", () => reject(new Error("stopped")));
    });
    if (this.failures > 0) {
      this.failures--;
      throw new Error("broken");
    }
    for (const [at, part] of parts.entries()) {
      part.set(this.content.subarray(offset, offset + part.length));
      offset += part.length;
      filled(at);
    }
  };
}

function numbered(length: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4)).map((_, i) => i * 7919);
  return new Uint8Array(words.buffer, 0, length);
}

Deno.test("RemoteReader returns the right bytes for any concurrent reads", async () => {
  const source = new Source(numbered(3 * 1024 * KIB + 77));
  const reader = new RemoteReader(source, source.content.slice(0, 65_536));
  const read = async (offset: number, length: number) => {
    const iov = [
      new Uint8Array(length >> 1),
      new Uint8Array(length - (length >> 1)),
    ];
    await reader.readv(offset, iov);
    const all = new Uint8Array([...iov[0], ...iov[1]]);
    assertEquals(all, source.content.slice(offset, offset + length));
  };
  for (let round = 0; round < 20; round++) {
    await Promise.all(Array.from({ length: 8 }, () => {
      const offset = Math.floor(Math.random() * source.size);
      const most = Math.min(source.size - offset, 300 * KIB);
      return read(offset, Math.floor(Math.random() * most));
    }));
  }
  await read(source.size - 1, 1);
  await reader.close();
});

Deno.test("RemoteReader merges neighbouring reads, and caches blocks", async () => {
  const source = new Source(numbered(4096 * KIB));
  const reader = new RemoteReader(source);
  const small = (at: number) => reader.readv(at, [new Uint8Array(512)]);
  await Promise.all([0, 1, 2, 3, 4, 5].map((at) => small(at * 40_000)));
  assertEquals(source.requests, [[0, 256 * KIB]]);
  await small(1000);
  assertEquals(source.requests.length, 1);
  await reader.close();
});

Deno.test("RemoteReader prefetches sequential reads, no more than was read", async () => {
  const source = new Source(numbered(16 * 1024 * KIB));
  const reader = new RemoteReader(source);
  for (let at = 0; at < source.size; at += 128 * KIB) {
    await reader.readv(at, [new Uint8Array(128 * KIB)]);
    assert(source.bytes <= 2 * at + 384 * KIB, `${source.bytes} at ${at}`);
  }
  assertEquals(source.bytes, source.size);
  assert(source.requests.length < 40, `${source.requests.length}`);
  await reader.close();
});

Deno.test("RemoteReader prefetches nothing for scattered reads", async () => {
  const source = new Source(numbered(16 * 1024 * KIB));
  const reader = new RemoteReader(source);
  for (let at = 0; at < 12; at++) {
    await reader.readv(at * 1_200_000, [new Uint8Array(4 * KIB)]);
  }
  assert(source.bytes <= 24 * 64 * KIB, `${source.bytes}`);
  await reader.close();
});

Deno.test("RemoteReader: a failed block is requested again; an abort ends the wait", async () => {
  const source = new Source(numbered(1024 * KIB));
  const reader = new RemoteReader(source);
  source.failures = 1;
  const part = new Uint8Array(10);
  await assertRejects(() => reader.readv(0, [part]), Error, "broken");
  await reader.readv(0, [part]);
  assertEquals(part, source.content.slice(0, 10));
  source.hangs = true;
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 5);
  await assertRejects(() => reader.readv(512 * KIB, [part], controller.signal));
  const waiting = assertRejects(() => reader.readv(900 * KIB, [part]));
  await reader.close();
  await waiting;
});

Deno.test("RemoteReader stays within its memory", async () => {
  const source = new Source(numbered(48 * 1024 * KIB));
  const readers = [new RemoteReader(source), new RemoteReader(source)];
  for (const reader of readers) {
    for (let at = 0; at < source.size; at += 2048 * KIB) {
      await reader.readv(at, [new Uint8Array(2048 * KIB)]);
    }
  }
  source.requests.length = 0;
  // Recently used blocks are still cached; the oldest are not.
  await readers[1].readv(source.size - 4096, [new Uint8Array(4096)]);
  assertEquals(source.requests.length, 0);
  await readers[0].readv(0, [new Uint8Array(4096)]);
  assertEquals(source.requests.length, 1);
  for (const reader of readers) await reader.close();
});
