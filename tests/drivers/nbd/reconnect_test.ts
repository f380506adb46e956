/**
 * Connections that break, and servers that die, in particular situations.
 * `breaks_test.ts` has those at every message.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { Image } from "../../../core/image.ts";
import { openNode } from "../../../core/open.ts";
import { BlockError, type BlockNode, serveNbd } from "../../../mod.ts";
import { streamPair } from "./streams.ts";
import { VolatileDisk } from "./volatile_disk.ts";

const UNIT = 4096;
const SIZE = 64 * UNIT;

Deno.test("a flush does not vouch for what a lost server may have lost", async () => {
  const disk = new VolatileDisk(SIZE);
  const image = await disk.image();
  let lose = () => Promise.resolve();
  const connect = async () => {
    const [ours, theirs] = streamPair();
    const server = await serveNbd(image, theirs, { writable: true });
    lose = async () => {
      theirs.close();
      await server.ended;
      disk.lose();
    };
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect });
  const bytes = new Uint8Array(UNIT).fill(1);
  await node.writev!(0, [bytes]);
  await lose();
  // A request sent before the loss is noticed may fail.
  await node.readv(0, [new Uint8Array(UNIT)]).catch(() => {});
  await node.readv(0, [new Uint8Array(UNIT)]);
  const error = await assertRejects(() => node.flush!(), BlockError);
  assertEquals(error.code, "EIO");
  await node.flush!();
  await node.writev!(0, [bytes]);
  await node.flush!();
  await lose();
  await node.readv(0, [new Uint8Array(UNIT)]).catch(() => {});
  await node.flush!();
  assertEquals(disk.durable[0], 1);
  await node.close();
});

Deno.test("what is written during a flush is not taken for flushed", async () => {
  const disk = new VolatileDisk(SIZE);
  const { node: below } = await disk.image();
  const held: (() => void)[] = [];
  const image = new Image({
    ...below,
    size: SIZE,
    async flush() {
      await below.flush!();
      // The flush is done, but its reply is late.
      await new Promise<void>((resolve) => held.push(resolve));
    },
  } as BlockNode);
  let end = () => Promise.resolve();
  const connect = async () => {
    const [ours, theirs] = streamPair();
    const server = await serveNbd(image, theirs, { writable: true });
    end = async () => {
      theirs.close();
      await server.ended;
      disk.lose();
    };
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect, "reconnect-delay": 9 });
  const write = (unit: number, value: number) =>
    node.writev!(unit * UNIT, [new Uint8Array(UNIT).fill(value)]);
  await write(0, 1);
  const first = node.flush!();
  while (held.length < 1) await node.readv(0, [new Uint8Array(UNIT)]);
  await write(1, 2);
  const second = node.flush!();
  while (held.length < 2) await node.readv(0, [new Uint8Array(UNIT)]);
  await write(2, 3);
  held[1]();
  await second;
  held[0]();
  await first;
  const ended = end();
  const back = new Uint8Array(UNIT);
  await ended;
  await node.readv(2 * UNIT, [back]);
  assertEquals(back[0], 3);
  const closing = node.close();
  while (held.length < 3) await new Promise((done) => setTimeout(done, 1));
  held[2]();
  await closing;
  assertEquals([...disk.durable].filter((_, i) => i % UNIT === 0).slice(0, 3), [
    1,
    2,
    3,
  ]);
});

Deno.test("requests that wait for a server fail if it does not come back", async () => {
  const image = await new VolatileDisk(SIZE).image();
  let end = () => {};
  let count = 0;
  const connect = async () => {
    if (count++ > 0) throw new BlockError("ECONNREFUSED");
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, { writable: true });
    end = () => theirs.close();
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect, "reconnect-delay": 1 });
  await node.readv(0, [new Uint8Array(UNIT)]);
  end();
  const start = performance.now();
  const error = await assertRejects(
    () => node.readv(0, [new Uint8Array(UNIT)]),
    BlockError,
  );
  assertEquals(error.code, "EIO");
  assert(performance.now() - start > 900, "it waits for the server");
  await node.close().catch(() => {});
});

Deno.test("a changed export is not taken for the old one", async () => {
  const image = await new VolatileDisk(SIZE).image();
  let end = () => {};
  let size = SIZE;
  const connect = async () => {
    const [ours, theirs] = streamPair();
    const { node } = image;
    const shown = new Image({ ...node, size } as BlockNode);
    await serveNbd(shown, theirs, { writable: true });
    end = () => theirs.close();
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect });
  end();
  size /= 2;
  for (let i = 0; i < 2; i++) {
    await assertRejects(
      () => node.readv(0, [new Uint8Array(UNIT)]),
      BlockError,
    );
  }
  size *= 2;
  await node.readv(0, [new Uint8Array(UNIT)]);
  await node.close();
});

Deno.test("several connections, where both server and user permit them", async () => {
  const image = await new VolatileDisk(SIZE).image();
  let count = 0;
  const connect = async () => {
    count++;
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, { writable: true });
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect, "multi-conn": 3 });
  for (let round = 0; round < 5; round++) {
    await Promise.all(
      Array.from({ length: 60 }, async (_, i) => {
        const bytes = new Uint8Array(UNIT).fill(i + round);
        await node.writev!(i * UNIT, [bytes]);
        const back = new Uint8Array(UNIT);
        await node.readv(i * UNIT, [back]);
        assertEquals(back, bytes);
      }),
    );
  }
  await node.close();
  assertEquals(count, 3);
});

Deno.test("waiting for a silent server ends after the given time", async () => {
  for (const connect of [() => streamPair()[0], () => new Promise(() => {})]) {
    const options = { driver: "nbd", connect, "open-timeout": 1 };
    const error = await assertRejects(() => openNode(options), BlockError);
    assertEquals(error.message, "Connection attempt cancelled by timeout");
  }
});

Deno.test("requests that wait for a lost server can be aborted", async () => {
  const image = await new VolatileDisk(SIZE).image();
  let end = () => {};
  let isBack = true;
  const connect = async () => {
    if (!isBack) throw new BlockError("ECONNREFUSED");
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, { writable: true });
    end = () => theirs.close();
    return ours;
  };
  const node = await openNode({
    driver: "nbd",
    connect,
    "reconnect-delay": 600,
  });
  isBack = false;
  end();
  const bytes = new Uint8Array(UNIT);
  const requests: ((signal: AbortSignal) => Promise<unknown>)[] = [
    (signal) => node.readv(0, [bytes], { signal }),
    (signal) => node.writev!(0, [bytes], { signal }),
    (signal) => node.writeZeroes!(0, UNIT, { signal }),
    (signal) => node.discard!(0, UNIT, { signal }),
    (signal) => node.flush!({ signal }),
    (signal) => node.status(0, UNIT, { signal }),
  ];
  for (const request of requests) {
    const controller = new AbortController();
    const made = request(controller.signal);
    controller.abort(new Error("enough"));
    const error = await assertRejects(() => made, BlockError);
    assertEquals(error.code, "ECANCELED");
  }
  isBack = true;
  await node.readv(0, [bytes]);
  await node.close();
});

Deno.test("an unanswered read can be aborted, and its buffer is left alone", async () => {
  const image = await new VolatileDisk(SIZE).image();
  await image.write(0, new Uint8Array(SIZE).fill(7));
  const waiting: (() => void)[] = [];
  const { readv } = image;
  image.readv = async (...request) => {
    await new Promise<void>((resolve) => waiting.push(resolve));
    await readv.apply(image, request);
  };
  const connect = async () => {
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, { writable: true });
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect });
  const given = new Uint8Array(UNIT);
  const controller = new AbortController();
  const read = node.readv(0, [given], { signal: controller.signal });
  const others = Array.from({ length: 99 }, () => new Uint8Array(UNIT));
  const rest = Promise.all(others.map((bytes) => node.readv(0, [bytes])));
  // This one is not even sent.
  const { signal } = controller;
  const last = node.readv(0, [new Uint8Array(UNIT)], { signal });
  const pause = () => new Promise((done) => setTimeout(done, 1));
  while (waiting.length < 64) await pause();
  controller.abort(new Error("enough"));
  for (const aborted of [read, last]) {
    const error = await assertRejects(() => aborted, BlockError);
    assertEquals(error.code, "ECANCELED");
  }
  const answering = setInterval(() => {
    for (const resolve of waiting.splice(0)) resolve();
  }, 1);
  await rest;
  clearInterval(answering);
  assert(given.every((byte) => byte === 0));
  assert(others.every((bytes) => bytes.every((byte) => byte === 7)));
  await node.close();
});

Deno.test("what is in flight on the other connections is not sent again before it is answered", async () => {
  const disk = new VolatileDisk(SIZE);
  const held: (() => void)[] = [];
  const written: number[] = [];
  const below = (await disk.image()).node;
  const image = await disk.image({
    async writev(offset, [bytes]) {
      written.push(bytes[0]);
      if (bytes[0] === 1) await new Promise<void>((done) => held.push(done));
      await below.writev!(offset, [bytes]);
    },
  });
  const ends: (() => void)[] = [];
  const connect = async () => {
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, { writable: true });
    ends.push(() => theirs.close());
    return ours;
  };
  const node = await openNode({
    driver: "nbd",
    connect,
    "reconnect-delay": 60,
    "multi-conn": 2,
  });
  const fill = (unit: number, value: number) =>
    node.writev!(unit * UNIT, [new Uint8Array(UNIT).fill(value)]);
  const pause = () => new Promise((done) => setTimeout(done, 1));
  // Enough of them for a second connection, which then has the fewest.
  const slow = Array.from({ length: 9 }, (_, i) => fill(i + 1, 1));
  while (ends.length < 2 || held.length < 9) await pause();
  for (let i = 0; i < 9; i++) await pause();
  const first = fill(0, 1);
  while (held.length < 10) await pause();
  ends[0]();
  await pause();
  const second = first.then(() => fill(0, 2));
  const other = fill(20, 3);
  for (let i = 0; i < 9; i++) await pause();
  assertEquals(written.length, 10, "nothing is sent meanwhile");
  const answering = setInterval(() => {
    for (const resolve of held.splice(0)) resolve();
  }, 1);
  await Promise.all([...slow, second, other]);
  await node.flush!();
  clearInterval(answering);
  assertEquals(disk.durable[0], 2);
  await node.close();
});

Deno.test("an export that accepts less than before is not taken for the old one", async () => {
  const disk = new VolatileDisk(SIZE);
  let end = () => {};
  let blockSize = 1;
  const connect = async () => {
    const [ours, theirs] = streamPair();
    const image = await disk.image();
    await serveNbd(image, theirs, { writable: true, blockSize });
    end = () => theirs.close();
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect });
  blockSize = 512;
  end();
  for (let i = 0; i < 2; i++) {
    await assertRejects(
      () => node.readv(0, [new Uint8Array(UNIT)]),
      BlockError,
    );
  }
  blockSize = 1;
  await node.readv(0, [new Uint8Array(UNIT)]);
  await node.close();
});

Deno.test("a request that breaks each connection is not repeated for ever", async () => {
  const disk = new VolatileDisk(SIZE);
  let connections = 0;
  const connect = async () => {
    connections++;
    const [ours, theirs] = streamPair();
    const image = await disk.image({
      readv() {
        theirs.close();
        return Promise.resolve();
      },
    });
    await serveNbd(image, theirs, { writable: true });
    return ours;
  };
  const node = await openNode({ driver: "nbd", connect, "reconnect-delay": 1 });
  const error = await assertRejects(
    () => node.readv(0, [new Uint8Array(UNIT)]),
    BlockError,
  );
  assertEquals(error.code, "EIO");
  assert(connections > 1);
  await node.close();
});
