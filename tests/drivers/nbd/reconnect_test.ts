/**
 * Connections that break, and servers that die, at every message: what was
 * flushed, or written with FUA, must be there in the end, and no write may
 * overtake another.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { Image } from "../../../core/image.ts";
import { openNode } from "../../../core/open.ts";
import type { ByteStream } from "../../../core/platform/sockets.ts";
import {
  BlockError,
  type BlockNode,
  MemoryStore,
  serveNbd,
} from "../../../mod.ts";
import { filterNode } from "../../../core/filter.ts";
import { getDriver } from "../../../core/registry.ts";
import {
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  Fields,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from "../../../drivers/nbd/wire.ts";
import { streamPair } from "./streams.ts";

const UNIT = 4096;
const SIZE = 64 * UNIT;

/** A disk that loses what was not flushed when its server dies. */
class VolatileDisk {
  readonly #durable = new Uint8Array(SIZE);
  readonly #cached = new Uint8Array(SIZE);

  async image(): Promise<Image> {
    const store = new MemoryStore(SIZE);
    const below = await openNode({
      driver: "raw",
      file: { driver: "memory", store },
    });
    const flush = () => {
      this.#durable.set(this.#cached);
      return Promise.resolve();
    };
    const node: BlockNode = filterNode(getDriver("throttle"), below, {
      readv: (offset, iov) => {
        for (const part of iov) {
          part.set(this.#cached.subarray(offset, offset + part.length));
          offset += part.length;
        }
        return Promise.resolve();
      },
      writev: async (offset, iov, flags) => {
        const start = offset;
        for (const part of iov) {
          this.#cached.set(part, offset);
          offset += part.length;
        }
        if (flags?.fua) {
          this.#durable.set(this.#cached.subarray(start, offset), start);
        }
        await undefined;
      },
      writeZeroes: (offset, length) => {
        this.#cached.fill(0, offset, offset + length);
        return Promise.resolve();
      },
      status: (_offset, length) =>
        Promise.resolve({ length, allocated: true, zero: false }),
    });
    return new Image({ ...node, flush, size: SIZE } as BlockNode);
  }

  /** The power fails: what was not flushed is gone. */
  lose(): void {
    this.#cached.set(this.#durable);
  }

  get durable(): Uint8Array {
    return this.#durable;
  }
}

/**
 * A server whose first connection breaks after some bytes, and which comes
 * back.
 */
async function brittle(
  disk: VolatileDisk,
  cuts: { cutThere?: number; cutBack?: number },
): Promise<() => Promise<ByteStream>> {
  const image = await disk.image();
  let dead: Promise<void> | undefined;
  return async () => {
    await dead;
    const [ours, theirs] = streamPair(dead ? {} : cuts);
    const server = await serveNbd(image, theirs, { writable: true });
    dead ??= server.ended.then(() => disk.lose());
    return ours;
  };
}

/** The first byte of each unit: a unit's bytes are all equal. */
function units(bytes: Uint8Array): number[] {
  return Array.from({ length: 6 }, (_, i) => bytes[i * UNIT]);
}

/** What each end sends until all the work below is done. */
async function recordTraffic(): Promise<[there: Uint8Array, back: Uint8Array]> {
  const disk = new VolatileDisk();
  const image = await disk.image();
  const there: number[] = [];
  const back: number[] = [];
  const connect = async () => {
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, { writable: true });
    return {
      async read(into: Uint8Array) {
        const count = await ours.read(into);
        back.push(...into.subarray(0, count ?? 0));
        return count;
      },
      write(bytes: Uint8Array) {
        there.push(...bytes);
        return ours.write(bytes);
      },
      close: () => ours.close(),
    };
  };
  const node = await openNode({ driver: "nbd", connect });
  await work(node, new Uint8Array(SIZE));
  await node.close();
  return [Uint8Array.from(there), Uint8Array.from(back)];
}

/** How messages begin. Written data never looks like that. */
const MAGICS = new Set([
  OPTION_MAGIC[0],
  OPTION_REPLY_MAGIC[0],
  REQUEST_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  EXTENDED_REPLY_MAGIC,
]);

/**
 * Offsets to break off at: before, within the head and at the end of each
 * message.
 */
function breaks(said: Uint8Array): number[] {
  const fields = new Fields(said);
  const found = new Set<number>([said.length - 1]);
  for (let at = 0; at + 4 <= said.length; at++) {
    if (!MAGICS.has(fields.u32(at))) continue;
    for (const here of [at - 1, at, at + 1, at + 30]) found.add(here);
  }
  return [...found].filter((at) => at > 0 && at < said.length);
}

interface Cut {
  cutThere?: number;
  cutBack?: number;
}

/**
 * Try something with connections that break at each message, in each direction.
 */
async function atEveryMessage(act: (cut: Cut) => Promise<void>): Promise<void> {
  const [there, back] = await recordTraffic();
  const cuts: Cut[] = [
    ...breaks(there).map((cutThere) => ({ cutThere })),
    ...breaks(back).map((cutBack) => ({ cutBack })),
  ];
  assert(cuts.length > 100);
  while (cuts.length > 0) await Promise.all(cuts.splice(0, 100).map(act));
}

/** Writes of all kinds; `model` becomes what the disk must hold afterwards. */
async function work(node: BlockNode, model: Uint8Array): Promise<void> {
  const write = async (unit: number, value: number, fua = false) => {
    const bytes = new Uint8Array(UNIT).fill(value);
    await node.writev!(unit * UNIT, [bytes], { fua });
    model.set(bytes, unit * UNIT);
  };
  await write(0, 1);
  await write(1, 2, true);
  await write(1, 3);
  await Promise.all([write(2, 4), write(3, 5), write(4, 6, true)]);
  await node.flush!();
  await write(0, 7);
  // A retried older write must not overwrite this durable one.
  await write(0, 8, true);
  await node.writeZeroes!(3 * UNIT, UNIT);
  model.fill(0, 3 * UNIT, 4 * UNIT);
  await write(2, 9);
  const back = new Uint8Array(UNIT);
  await node.readv(2 * UNIT, [back]);
  assertEquals(back[0], 9);
  await node.flush!();
}

Deno.test("with a reconnect delay, all goes on as if the connection had never broken", async () => {
  await atEveryMessage(async (cut) => {
    const disk = new VolatileDisk();
    const connect = await brittle(disk, cut);
    const node = await openNode({
      driver: "nbd",
      connect,
      "reconnect-delay": 10,
      "open-timeout": 10,
    });
    const model = new Uint8Array(SIZE);
    await work(node, model);
    assertEquals(units(disk.durable), units(model), JSON.stringify(cut));
    await node.close();
  });
});

Deno.test("without one, nothing flushed is lost, and other losses are reported", async () => {
  await atEveryMessage(async (cut) => {
    const disk = new VolatileDisk();
    const connect = await brittle(disk, cut);
    let node: BlockNode;
    try {
      node = await openNode({ driver: "nbd", connect });
    } catch {
      return; // The connection broke during the open.
    }
    /** What units must hold, as far as it was promised. */
    const promised = new Map<number, number>();
    const pending = new Map<number, number>();
    let failures = 0;
    for (let i = 0; i < 24; i++) {
      const unit = i % 6;
      const fua = i % 5 === 0;
      try {
        const bytes = new Uint8Array(UNIT).fill(i + 1);
        promised.delete(unit);
        pending.delete(unit);
        await node.writev!(unit * UNIT, [bytes], { fua });
        (fua ? promised : pending).set(unit, i + 1);
        if (i % 7 === 6) {
          await node.flush!();
          for (const [unit, value] of pending) promised.set(unit, value);
          pending.clear();
        }
      } catch (error) {
        assert(error instanceof BlockError);
        failures++;
        pending.clear();
      }
    }
    disk.lose();
    for (const [unit, value] of promised) {
      const what = `${JSON.stringify(cut)}, unit ${unit}`;
      assertEquals(disk.durable[unit * UNIT], value, what);
    }
    assert(failures <= 2, `${failures} failures`);
    await node.close().catch(() => {});
  });
});

Deno.test("a flush does not vouch for what a lost server may have lost", async () => {
  const disk = new VolatileDisk();
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
  const disk = new VolatileDisk();
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
  const image = await new VolatileDisk().image();
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
  const image = await new VolatileDisk().image();
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
  const image = await new VolatileDisk().image();
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
  const image = await new VolatileDisk().image();
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
  const image = await new VolatileDisk().image();
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
