/**
 * The protocol: client and server against each other, and against peers that
 * violate it.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  COMMAND,
  COMMAND_FLAG,
  encodeText,
  joined,
  lengthAndText,
  message,
  OPTION,
  REPLY,
  u16Bytes,
  u32Bytes,
} from "../../../drivers/nbd/wire.ts";
import { openNode } from "../../../core/open.ts";
import { BlockError, listExports, openImage, serveNbd } from "../../../mod.ts";
import type { ByteStream } from "../../../core/platform/sockets.ts";
import { usePlatform } from "../../../core/platform/mod.ts";
import { webPlatform } from "../../../core/platform/web.ts";
import { entered, memoryImage, RawClient, served } from "./peers.ts";
import { streamPair } from "./streams.ts";
import { VolatileDisk } from "./volatile_disk.ts";

const MIB = 1 << 20;

for (const replies of ["extended", "structured", "simple"] as const) {
  Deno.test(`a client with ${replies} replies reads, writes and queries`, async () => {
    await using image = await memoryImage();
    const [stream, server] = await served(image);
    const client = await entered(stream, { replies });
    assertEquals(client.extended, replies === "extended");
    const data = new Uint8Array(300_000).map((_, i) => i * 7);
    await client.write(12_345, [data.subarray(0, 5), data.subarray(5)], true);
    await client.command(COMMAND.WRITE_ZEROES, 100_000, 50_000, 0);
    await client.command(COMMAND.TRIM, 3 * MIB, 65536, COMMAND_FLAG.FUA);
    await client.command(COMMAND.CACHE, 0, 4 * MIB, 0);
    await client.command(COMMAND.FLUSH, 0, 0, 0);
    data.fill(0, 100_000 - 12_345, 150_000 - 12_345);
    const back = new Uint8Array(400_000);
    await client.read(0, [back.subarray(0, 9), back.subarray(9)]);
    assertEquals(back.subarray(12_345, 312_345), data);
    assert(back.subarray(312_345).every((byte) => byte === 0));
    const empty = new Uint8Array(0);
    await client.read(5, [empty]);
    if (replies !== "simple") {
      const [{ length, flags }] = await client.status(2 * MIB, MIB, true);
      assertEquals([length, flags], [MIB, 3]);
    }
    // Errors leave the connection usable.
    for (
      const wrong of [
        () => client.read(4 * MIB - 1, [new Uint8Array(2)]),
        () => client.command(COMMAND.READ + 40, 0, 1, 0),
        () => client.command(COMMAND.FLUSH, 0, 0, COMMAND_FLAG.DF),
      ]
    ) {
      const error = await assertRejects(wrong, BlockError);
      assertEquals(error.code, "EINVAL");
    }
    const past = await assertRejects(
      () => client.write(4 * MIB, [new Uint8Array(512)], false),
      BlockError,
    );
    assertEquals(past.code, "ENOSPC");
    await client.read(0, [back]);
    await client.close();
    await server.ended;
  });
}

Deno.test("64 requests at once, the largest possible among them, each get their own reply", async () => {
  await using image = await memoryImage(64 * MIB);
  await image.write(0, new Uint8Array(32 * MIB).fill(5));
  const [stream, server] = await served(image);
  const client = await entered(stream);
  await Promise.all(Array.from({ length: 100 }, async (_, i) => {
    if (i % 20 === 0) {
      const large = new Uint8Array(32 * MIB);
      await client.read(0, [large]);
      assertEquals([large[0], large[32 * MIB - 1]], [5, 5]);
      return;
    }
    const offset = 32 * MIB + i * 4096;
    await client.write(offset, [new Uint8Array(4096).fill(i)], false);
    const back = new Uint8Array(4096);
    await client.read(offset, [back]);
    assert(back.every((byte) => byte === i));
  }));
  await client.close();
  await server.ended;
});

Deno.test("few large reads are in flight at once, unless they are slow", async () => {
  await using image = await memoryImage(8 * MIB);
  const readv = image.readv.bind(image);
  const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));
  const waiting: (() => void)[] = [];
  image.readv = async (...request) => {
    await new Promise<void>((resolve) => waiting.push(resolve));
    await readv(...request);
  };
  await image.write(0, new Uint8Array(8 * MIB).fill(3));
  const [stream, server] = await served(image);
  const client = await entered(stream);
  const reads = Array.from({ length: 32 }, async (_, i) => {
    const bytes = new Uint8Array(MIB / 4);
    await client.read(i * bytes.length, [bytes]);
    assert(bytes.every((byte) => byte === 3));
  });
  while (waiting.length < 4) await pause(1);
  await pause(10);
  assertEquals(waiting.length, 4);
  for (const resolve of waiting) resolve();
  // Those took long enough: the others are sent together.
  while (waiting.length < 32) await pause(1);
  for (const resolve of waiting) resolve();
  await Promise.all(reads);
  await client.close();
  await server.ended;
});

Deno.test("a server lists its export, and only a client that names it gets in", async () => {
  await using image = await memoryImage();
  const options = {
    name: "disk",
    description: "a disk",
    allocationDepth: true,
    blockSize: 512,
    bitmaps: [{
      name: "b0",
      async *dirty(offset: number, length: number) {
        if (offset < 65536 && offset + length > 0) {
          yield { offset: 0, length: 65536 };
        }
      },
    }],
  };
  const [listing] = await served(image, options);
  assertEquals(await listExports(listing), [{
    name: "disk",
    description: "a disk",
    size: 4 * MIB,
    flags: 0xded,
    blockSizes: { minimum: 512, preferred: 4096, maximum: 32 * MIB },
    contexts: [
      "base:allocation",
      "qemu:allocation-depth",
      "qemu:dirty-bitmap:b0",
    ],
  }]);
  const [other] = await served(image, options);
  const error = await assertRejects(() => entered(other), BlockError);
  assertEquals(error.message, "Requested export not available");
  assertEquals(error.hint, "server reported: export '' not present");
  const [stream] = await served(image, options);
  const client = await entered(stream, {
    exportName: "disk",
    context: "qemu:dirty-bitmap:b0",
  });
  assertEquals(await client.status(0, MIB, true), [{
    length: 65536,
    flags: 1,
  }]);
  assertEquals(await client.status(65536, MIB, true), [
    { length: MIB, flags: 0 },
  ]);
  await client.close();
});

Deno.test("a read-only server refuses writes", async () => {
  await using image = await memoryImage();
  const [stream] = await served(image, { writable: false });
  const client = await entered(stream);
  for (
    const change of [
      () => client.write(0, [new Uint8Array(512)], false),
      () => client.command(COMMAND.WRITE_ZEROES, 0, 512, 0),
      () => client.command(COMMAND.TRIM, 0, 512, 0),
    ]
  ) {
    const error = await assertRejects(change, BlockError);
    assertEquals(error.code, "EPERM");
  }
  await client.close();
  const connect = async () => (await served(image, { writable: false }))[0];
  await assertRejects(
    () => openImage({ driver: "nbd", connect }),
    BlockError,
    "Permission denied",
  );
  await using disk = await openImage({
    driver: "raw",
    file: { driver: "nbd", connect },
  }, { readOnly: true });
  assertEquals(disk.size, 4 * MIB);
});

Deno.test("options that make no sense are refused, and negotiation goes on", async () => {
  await using image = await memoryImage();
  const [stream] = await served(image);
  const client = new RawClient(stream);
  await client.greet();
  const infoOf = (name: string, ...rest: Uint8Array[]) =>
    joined(lengthAndText(name), ...rest);
  const queries = (count: number, ...rest: Uint8Array[]) =>
    joined(lengthAndText(""), u32Bytes(count), ...rest);
  const junk = encodeText("IHAVEOPT\0\0\0\x03\0\0\0\0");
  const { ERROR_INVALID, ERROR_UNSUPPORTED, ERROR_UNKNOWN } = REPLY;
  const cases: [number, Uint8Array, number, string][] = [
    [77, junk, ERROR_UNSUPPORTED, "Unsupported option 77 (<unknown>)"],
    [OPTION.LIST, junk, ERROR_INVALID, "option 'list' has unexpected length"],
    [OPTION.STARTTLS, junk, REPLY.ERROR_POLICY, "TLS not configured"],
    [OPTION.INFO, junk, ERROR_INVALID, "Invalid name length: 1229472086"],
    [
      OPTION.GO,
      u16Bytes(1),
      ERROR_INVALID,
      "Inconsistent lengths in option go",
    ],
    [
      OPTION.GO,
      infoOf("", u16Bytes(0), junk),
      ERROR_INVALID,
      "option 'go' has unexpected length",
    ],
    [
      OPTION.INFO,
      infoOf("x", u16Bytes(0)),
      ERROR_UNKNOWN,
      "export 'x' not present",
    ],
    [
      OPTION.GO,
      infoOf("y".repeat(100), u16Bytes(0)),
      ERROR_UNKNOWN,
      `export '${"y".repeat(80)}...' not present`,
    ],
    [
      OPTION.INFO,
      infoOf("a\0b", u16Bytes(0)),
      ERROR_INVALID,
      "Unexpected embedded NUL in option info",
    ],
    [
      OPTION.SET_META_CONTEXT,
      queries(0),
      ERROR_INVALID,
      "request option 'set meta context' when structured reply is not negotiated",
    ],
    // QEMU's server dies of this one.
    [
      OPTION.LIST_META_CONTEXT,
      queries(0, junk),
      ERROR_INVALID,
      "option 'list meta context' has unexpected length",
    ],
    [
      OPTION.LIST_META_CONTEXT,
      queries(1000, lengthAndText("base:allocation")),
      ERROR_INVALID,
      "Inconsistent lengths in option list meta context",
    ],
  ];
  for (const [option, data, type, text] of cases) {
    await client.option(option, data);
    const reply = await client.reply();
    assertEquals([reply.type, reply.text], [type, text]);
  }
  await client.option(OPTION.STRUCTURED_REPLY);
  assertEquals((await client.reply()).type, REPLY.ACK);
  await client.option(OPTION.STRUCTURED_REPLY);
  assertEquals((await client.reply()).type, ERROR_INVALID);
  // Too long a query selects nothing, but is no error.
  await client.option(
    OPTION.SET_META_CONTEXT,
    queries(2, lengthAndText("base:".repeat(2000)), lengthAndText("no colon")),
  );
  assertEquals((await client.reply()).type, REPLY.ACK);
  await client.option(OPTION.ABORT);
  assertEquals((await client.reply()).type, REPLY.ACK);
  assert(await client.isAtEnd());
});

Deno.test("what cannot be parsed costs the connection", async (t) => {
  await using image = await memoryImage();
  const trials: Record<string, (client: RawClient) => Promise<void>> = {
    "unknown flags": (client) => client.greet(0x80),
    "an option without a fixed handshake": async (client) => {
      await client.greet(0);
      await client.option(OPTION.LIST);
    },
    "magic of an option": async (client) => {
      await client.greet();
      await client.send(new Uint8Array(16));
    },
    "too large an option": async (client) => {
      await client.greet();
      await client.option(OPTION.LIST, undefined, 0xffffffff);
    },
    "an unknown name": async (client) => {
      await client.greet();
      await client.option(OPTION.EXPORT_NAME, encodeText("nobody"));
    },
    "magic of a request": async (client) => {
      await client.greet();
      await client.option(OPTION.EXPORT_NAME);
      await client.read(10);
      await client.send(new Uint8Array(28));
    },
    "too large a write": async (client) => {
      await client.greet();
      await client.option(OPTION.EXPORT_NAME);
      await client.read(10);
      await client.request(COMMAND.WRITE, 0, 33 * MIB);
      assertEquals(await client.simpleReply(), [22, 1]);
    },
  };
  for (const [name, run] of Object.entries(trials)) {
    await t.step(name, async () => {
      const [stream, server] = await served(image);
      const client = new RawClient(stream);
      await run(client);
      assert(await client.isAtEnd());
      await server.ended;
    });
  }
});

Deno.test("requests that make no sense get errors, and others still work", async () => {
  await using image = await memoryImage();
  const [stream] = await served(image);
  const client = new RawClient(stream);
  await client.greet();
  await client.option(OPTION.EXPORT_NAME);
  const answer = await client.read(10);
  assertEquals([answer.u64(0), answer.u16(8)], [4 * MIB, 0xd6d]);
  const cases: [type: number, offset: number, length: number, flags: number][] =
    [
      [COMMAND.READ, 4 * MIB, 1, 0],
      [COMMAND.READ, 2 ** 60, 512, 0],
      [COMMAND.READ, 0, 33 * MIB, 0],
      [COMMAND.READ, 0, 512, COMMAND_FLAG.DF],
      [COMMAND.BLOCK_STATUS, 0, 512, 0],
      [99, 0, 0, 0],
      [COMMAND.TRIM, 0, 512, COMMAND_FLAG.NO_HOLE],
    ];
  for (const [index, [type, offset, length, flags]] of cases.entries()) {
    await client.request(type, offset, length, { flags, cookie: index });
    assertEquals(await client.simpleReply(), [22, index], `case ${index}`);
  }
  // The data of a refused write is not taken for requests.
  const data = new Uint8Array(512);
  await client.request(COMMAND.WRITE, 4 * MIB, 512, { data });
  assertEquals(await client.simpleReply(), [28, 1]);
  await client.request(COMMAND.WRITE, 0, 512, { data: data.fill(3) });
  assertEquals(await client.simpleReply(), [0, 1]);
  await client.request(COMMAND.DISCONNECT, 0, 0);
  assert(await client.isAtEnd());
  assertEquals(await image.read(0, 512), data);
});

Deno.test("a client that takes too long to choose an export is disconnected", async () => {
  await using image = await memoryImage();
  const [stream, server] = await served(image, { handshakeLimit: 0.05 });
  const client = new RawClient(stream);
  await client.greet();
  assert(await client.isAtEnd());
  await server.ended;
});

Deno.test("a client above the limit waits for its turn", async () => {
  await using image = await memoryImage();
  const waiting = [streamPair(), streamPair()];
  const ends = waiting.map(([_, theirs]) => theirs);
  const listener = {
    address: { path: "/nowhere" },
    accept: () => Promise.resolve(ends.shift() ?? null),
    close: () => {},
  };
  await using server = await serveNbd(image, listener, { maxClients: 1 });
  const first = await entered(waiting[0][0]);
  const second = entered(waiting[1][0]);
  await first.read(0, [new Uint8Array(512)]);
  assertEquals([server.clients, ends.length], [1, 1]);
  await first.close();
  await (await second).close();
});

Deno.test("requests of a client that has gone are over before the next one's begin", async () => {
  const disk = new VolatileDisk(4096);
  let release = () => {};
  const held = new Promise<void>((resolve) => release = resolve);
  const order: number[] = [];
  const image = await disk.image({
    async writev(_offset, [bytes]) {
      if (bytes[0] === 1) await held;
      order.push(bytes[0]);
    },
  });
  const connections: ByteStream[] = [];
  let arrived = () => {};
  const server = await serveNbd(image, {
    address: { path: "" },
    async accept() {
      if (connections.length === 0) {
        await new Promise<void>((resolve) => arrived = resolve);
      }
      return connections.shift() ?? null;
    },
    close: () => arrived(),
  }, { writable: true });
  const connected = async () => {
    const [ours, theirs] = streamPair();
    connections.push(theirs);
    arrived();
    return [ours, await entered(ours)] as const;
  };
  const [stream, first] = await connected();
  const lost = first.write(0, [new Uint8Array(512).fill(1)], false);
  await new Promise((resolve) => setTimeout(resolve, 10));
  stream.close();
  await assertRejects(() => lost);
  const [, second] = await connected();
  const repeated = second.write(0, [new Uint8Array(512).fill(2)], false);
  await new Promise((resolve) => setTimeout(resolve, 10));
  release();
  await repeated;
  assertEquals(order, [1, 2]);
  await second.close();
  await server.close();
});

Deno.test("a closing server finishes requests in flight", async () => {
  await using image = await memoryImage();
  const [stream, server] = await served(image);
  const client = await entered(stream);
  const writes = Array.from(
    { length: 20 },
    (_, i) => client.write(i * 65536, [new Uint8Array(65536).fill(1)], true),
  );
  const results = Promise.allSettled(writes);
  await writes[0];
  await server.close();
  const kept = await image.read(0, 20 * 65536);
  for (const [i, { status }] of (await results).entries()) {
    if (status === "fulfilled") assertEquals(kept[i * 65536], 1);
  }
});

Deno.test("a closing server does not wait for a client that reads no replies", async () => {
  await using image = await memoryImage();
  const [ours, theirs] = streamPair();
  let isStuck = false;
  let cut = () => {};
  const stuck = new Promise<never>((_, reject) => {
    cut = () => reject(new Error("closed"));
  });
  stuck.catch(() => {});
  const server = await serveNbd(image, {
    read: (into) => theirs.read(into),
    write: (bytes) => isStuck ? stuck : theirs.write(bytes),
    close() {
      cut();
      theirs.close();
    },
  });
  const client = await entered(ours);
  isStuck = true;
  const answers = Array.from(
    { length: 100 },
    () => client.read(0, [new Uint8Array(65536)]),
  );
  const results = Promise.allSettled(answers);
  await new Promise((resolve) => setTimeout(resolve, 10));
  await server.close();
  assertEquals(
    (await results).every(({ status }) => status === "rejected"),
    true,
  );
});

Deno.test("a peer that announces much data and sends none gives its memory back", async () => {
  await using image = await memoryImage(64 * MIB);
  const pairs = Array.from({ length: 12 }, () => streamPair());
  const ends = pairs.map(([_, theirs]) => theirs);
  const listener = {
    address: { path: "/nowhere" },
    accept: () => Promise.resolve(ends.shift() ?? null),
    close: () => {},
  };
  await using _server = await serveNbd(image, listener, {
    writable: true,
    maxMemory: 70 * MIB,
  });
  // Two of these take the whole budget.
  for (const [stream] of pairs.slice(0, 2)) {
    const client = new RawClient(stream);
    await client.greet();
    await client.option(OPTION.EXPORT_NAME);
    await client.read(10);
    await client.request(COMMAND.WRITE, 0, 32 * MIB);
  }
  const client = await entered(pairs[2][0]);
  const data = new Uint8Array(16 * MIB);
  await client.write(0, [data], false);
  await client.close();
});

Deno.test("bad servers are reported in QEMU's words", async (t) => {
  const greeting = message(18);
  greeting.bytes.set(encodeText("NBDMAGICIHAVEOPT"));
  greeting.setU16(16, 3);
  const cases: [what: string, bytes: Uint8Array, message: string][] = [
    [
      "nothing",
      new Uint8Array(0),
      "Failed to read initial magic: Unexpected end-of-file before all data were read",
    ],
    [
      "other magic",
      encodeText("HTTP/1.1 400 Bad"),
      "Bad initial magic received: 0x485454502f312e31",
    ],
    [
      "other second magic",
      encodeText("NBDMAGICnonsense"),
      "Bad server magic received: 0x6e6f6e73656e7365",
    ],
    [
      "other reply",
      joined(greeting.bytes, new Uint8Array(20)),
      "Unexpected option reply magic",
    ],
  ];
  for (const [what, bytes, text] of cases) {
    await t.step(what, async () => {
      const [ours, theirs] = streamPair();
      await theirs.write(bytes);
      theirs.close();
      await assertRejects(() => entered(ours), BlockError, text);
    });
  }
});

Deno.test("a connection's web streams are not used if it can read and write itself", async () => {
  await using image = await memoryImage();
  const both = (stream: ByteStream) => ({
    ...stream,
    get readable(): never {
      throw new Error("slow");
    },
  });
  const connect = async () => {
    const [ours, theirs] = streamPair();
    await serveNbd(image, both(theirs), { writable: true });
    return both(ours);
  };
  const node = await openNode({ driver: "nbd", connect });
  await node.readv(0, [new Uint8Array(512)]);
  await node.close();
});

Deno.test("a runtime without sockets gives a clear error", async () => {
  usePlatform(webPlatform());
  try {
    const error = await assertRejects(
      () => openImage("nbd://localhost/disk"),
      BlockError,
      "This runtime has no sockets",
    );
    assertEquals(error.code, "ENOTSUP");
  } finally {
    usePlatform();
  }
});
