import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../core/errors.ts";
import { filterNode } from "../../core/filter.ts";
import { type Image, openImage } from "../../core/image.ts";
import { openNode } from "../../core/open.ts";
import { registerDriver } from "../../core/registry.ts";
import { MemoryStore } from "../../core/memory_store.ts";
import { memoryDriver } from "../../drivers/memory.ts";
import { rawDriver } from "../../drivers/raw.ts";
import {
  bytesOf,
  fileOf,
  HEADERS,
  type Piece,
  RAW_DISKS,
  WRAPPED,
} from "./headers.ts";

registerDriver(memoryDriver);
registerDriver(rawDriver);

const SIZE = 65536;

/** What a guest may try to plant in a disk of `size` bytes. */
function plants(size: number): readonly [what: string, ...pieces: Piece[]][] {
  const end = size - 512;
  return [
    ...HEADERS,
    ["dmg", [end, "koly\0\0\0\x04"]],
    ["vpc", [end, "conectix"]],
  ];
}

/** A writable disk whose format was probed as raw. */
async function onDisk(
  run: (image: Image, store: MemoryStore) => Promise<void>,
  content: Uint8Array = new Uint8Array(SIZE),
): Promise<void> {
  const store = new MemoryStore(content.length);
  store.write(0, content);
  await using image = await openImage({ file: { driver: "memory", store } });
  await run(image, store);
}

/** The format when the file is probed again, with any warnings. */
async function probed(store: MemoryStore): Promise<string> {
  const said: string[] = [];
  try {
    const file = { driver: "memory", store };
    await using image = await openImage({ file }, {
      readOnly: true,
      warn: (message) => said.push(message),
    });
    return [image.format, ...said].join(", ");
  } catch (error) {
    return (error as BlockError).message;
  }
}

/** Make attempts, and return how many were refused; nothing else may fail. */
async function refusals(attempts: readonly Promise<void>[]): Promise<number> {
  let refused = 0;
  for (const outcome of await Promise.allSettled(attempts)) {
    if (outcome.status === "fulfilled") continue;
    assertEquals(outcome.reason.code, "EPERM", outcome.reason.message);
    refused++;
  }
  return refused;
}

type Write = (image: Image, offset: number, bytes: Uint8Array) => Promise<void>;

/** Ways to write a few bytes. */
const WAYS: readonly [way: string, write: Write][] = [
  ["at once", (image, offset, bytes) => image.write(offset, bytes)],
  [
    "in a vector",
    (image, offset, bytes) =>
      image.writev(offset, [...bytes].map((byte) => new Uint8Array([byte]))),
  ],
  ["among others", async (image, offset, bytes) => {
    const start = Math.max(0, offset - 1000);
    const end = Math.min(image.size, offset + bytes.length + 5000);
    const whole = await image.read(start, end - start);
    whole.set(bytes, offset - start);
    await image.write(start, whole);
  }],
  ["byte by byte", async (image, offset, bytes) => {
    for (const [i, byte] of bytes.entries()) {
      await image.write(offset + i, new Uint8Array([byte]));
    }
  }],
  ["byte by byte, from its end", async (image, offset, bytes) => {
    for (const [i, byte] of [...bytes.entries()].reverse()) {
      await image.write(offset + i, new Uint8Array([byte]));
    }
  }],
  ["all bytes at the same time", async (image, offset, bytes) => {
    const writes = [...bytes].map((byte, i) =>
      image.write(offset + i, new Uint8Array([byte]))
    );
    const outcomes = await Promise.allSettled(writes);
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") throw outcome.reason;
    }
  }],
  ["changed meanwhile", async (image, offset, bytes) => {
    const buffer = new Uint8Array(bytes.length);
    const writing = image.write(offset, buffer);
    buffer.set(bytes);
    await writing;
    await image.write(offset, bytes);
  }],
  ["around zeroes", async (image, offset, bytes) => {
    await image.write(offset, bytes.map((byte) => byte || 0xaa));
    for (const [i, byte] of bytes.entries()) {
      if (byte === 0) await image.writeZeroes(offset + i, 1);
    }
  }],
  ["around discards", async (image, offset, bytes) => {
    await image.write(offset, bytes.map((byte) => byte || 0xaa));
    for (const [i, byte] of bytes.entries()) {
      if (byte === 0) await image.discard(offset + i, 1);
    }
  }],
  ["as a stream", async (image, offset, bytes) => {
    const stream = ReadableStream.from([bytes.slice(0, 3), bytes.slice(3)]);
    await stream.pipeTo(image.writable({ offset }));
  }],
  [
    "through the node",
    (image, offset, bytes) =>
      image.node.writev!(offset, [bytes.slice(0, 1), bytes.slice(1)]),
  ],
];

for (const [way, write] of WAYS) {
  Deno.test(`a probed disk refuses what looks like a format, written ${way}`, async () => {
    for (const [what, ...pieces] of plants(SIZE)) {
      await onDisk(async (image, store) => {
        let refused = 0;
        for (const [offset, text] of pieces) {
          refused += await refusals([write(image, offset, bytesOf(text))]);
        }
        assert(refused > 0, `${what} was written`);
        assertEquals(await probed(store), "raw", what);
      });
    }
  });
}

Deno.test("moving the end of a probed disk does not expose a footer", async () => {
  for (const footer of ["koly\0\0\0\x04", "conectix"]) {
    const content = fileOf([[8192, footer], [20000, footer]], SIZE);
    await onDisk(async (image, store) => {
      for (const size of [8704, 20512]) {
        assertEquals(await refusals([image.resize(size)]), 1);
        assertEquals(store.size, SIZE);
      }
      // Both requests are harmless alone.
      await refusals([
        image.write(SIZE / 2, bytesOf(footer)),
        image.resize(SIZE / 2 + 512),
      ]);
      assertEquals(await probed(store), "raw");
      await refusals([
        image.resize(8192 + 1024),
        image.write(8704, bytesOf(footer)),
      ]);
      assertEquals(await probed(store), "raw");
      await image.resize(8192 + 1536);
      await image.resize(2 * SIZE);
      await image.write(SIZE, bytesOf(footer));
      assertEquals(await probed(store), "raw");
    }, content);
  }
  // The file ends within the disk's last sector.
  await onDisk(async (image, store) => {
    assertEquals(image.size, 4096);
    assertEquals(await refusals([image.write(3584, bytesOf("conectix"))]), 1);
    assertEquals(await refusals([image.write(3584, bytesOf("con"))]), 0);
    assertEquals(await refusals([image.write(4095, new Uint8Array(1))]), 0);
    assertEquals(await refusals([image.write(3587, bytesOf("ectix"))]), 1);
    assertEquals(await probed(store), "raw");
  }, new Uint8Array(4000));
});

Deno.test("a probed disk takes raw content, and files to unpack", async () => {
  for (const [what, ...pieces] of [...RAW_DISKS, ...WRAPPED]) {
    await onDisk(async (image) => {
      for (const [offset, text] of pieces) {
        await image.write(offset, bytesOf(text));
        const read = await image.read(offset, text.length);
        assertEquals(read, bytesOf(text), what);
      }
    });
  }
  await onDisk(async (image) => {
    const all = new Uint8Array(SIZE).fill(0x5a);
    await image.write(0, all);
    assertEquals(await image.read(0, SIZE), all);
  });
});

Deno.test("a disk declared as raw takes everything", async () => {
  for (const [what, ...pieces] of plants(SIZE)) {
    const store = new MemoryStore(SIZE);
    const file = { driver: "memory", store };
    await using image = await openImage({ driver: "raw", file });
    for (const [offset, text] of pieces) {
      await image.write(offset, bytesOf(text));
    }
    assert(await probed(store) !== "raw", what);
  }
});

Deno.test("a probed disk may keep a VHD footer that it already has", async () => {
  const end = SIZE - 512;
  await onDisk(async (image, store) => {
    await image.write(end + 100, bytesOf("more"));
    await image.write(end, bytesOf("conectix"));
    assertEquals(await refusals([image.write(end, bytesOf("koly"))]), 1);
    assert((await probed(store)).includes("VHD"));
    await image.writeZeroes(end, 8);
    assertEquals(await probed(store), "raw");
    assertEquals(await refusals([image.write(end, bytesOf("conectix"))]), 1);
  }, fileOf([[end, "conectix"]], SIZE));
});

Deno.test("a window on a probed file is guarded by offsets in the file", async () => {
  const store = new MemoryStore(SIZE);
  const file = { driver: "memory", store };
  await using image = await openImage({ file, offset: 64 });
  const vdi = await assertRejects(
    () => image.write(0, bytesOf("\x7f\x10\xda\xbe")),
    BlockError,
  );
  assertEquals(vdi.code, "EPERM");
  await image.write(64, bytesOf("KDMV"));
  const dmg = await assertRejects(
    () => image.write(SIZE - 512 - 64, bytesOf("koly")),
    BlockError,
  );
  assertEquals(dmg.code, "EPERM");
  // The disk extends past the end of the file, so writing its last sector grows
  // the file.
  assertEquals(image.size, SIZE);
  await image.write(SIZE - 512, bytesOf("koly"));
  const growth = image.write(SIZE - 1, new Uint8Array(1));
  assertEquals(await refusals([growth]), 1);
  assertEquals(await probed(store), "raw");
});

Deno.test("truncating a probed disk waits for writes in flight", async () => {
  const store = new MemoryStore(SIZE);
  const memory = await openNode({ driver: "memory", store });
  const slow = filterNode(memoryDriver, memory, {
    async writev(offset, iov) {
      await delay(5);
      await memory.writev!(offset, iov);
    },
  });
  await using image = await openImage({ file: slow });
  const changes = [
    image.write(8192, bytesOf("conectix")),
    image.resize(8704),
  ];
  assertEquals(await refusals(changes), 1);
  assertEquals(await probed(store), "raw");
  const others = [
    image.resize(16384 + 512),
    image.write(16384, bytesOf("conectix")),
  ];
  assertEquals(await refusals(others), 1);
  assertEquals(await probed(store), "raw");
});

Deno.test("a probed disk writes the bytes that it has checked", async () => {
  const store = new MemoryStore(SIZE);
  const memory = await openNode({ driver: "memory", store });
  const slow = filterNode(memoryDriver, memory, {
    async readv(offset, iov) {
      await delay(5);
      await memory.readv(offset, iov);
    },
  });
  await using image = await openImage({ file: slow });
  for (const [offset, magic] of [[0, "QED\0"], [SIZE - 512, "koly"]] as const) {
    const buffer = new Uint8Array(magic.length);
    const writing = image.write(offset, buffer);
    await delay(1);
    buffer.set(bytesOf(magic));
    await writing;
    assertEquals(await probed(store), "raw");
  }
});

function delay(milliseconds: number): Promise<void> {
  return new Promise((done) => setTimeout(done, milliseconds));
}

/** Pseudo-random numbers, the same each time. */
function* numbers(seed: number): Generator<number> {
  for (;;) {
    seed = (seed * 1103515245 + 12345) % 2 ** 31;
    yield Math.floor(seed / 65536);
  }
}

Deno.test("whatever is done to a probed disk, it stays raw", async () => {
  const random = numbers(1);
  const below = (limit: number) => random.next().value! % limit;
  await onDisk(async (image, store) => {
    let refused = 0;
    for (let step = 0; step < 600; step++) {
      const candidates = plants(image.size);
      const [, ...pieces] = candidates[below(candidates.length)];
      const [at, text] = pieces[below(pieces.length)];
      const start = below(text.length);
      const length = 1 + below(text.length - start);
      const bytes = bytesOf(text.slice(start, start + length));
      const zeroes = [below(image.size), 1 + below(600)] as const;
      const inside = Math.min(zeroes[1], image.size - zeroes[0]);
      const attempts = [
        () => image.write(at + start, bytes),
        () => image.write(at + start, bytes),
        () => image.writeZeroes(zeroes[0], inside),
        () => image.discard(at + start, 1),
        () => image.resize(1024 + 512 * below(20) + below(2) * below(512)),
      ];
      const chosen = [below(5), below(5)].map((which) => attempts[which]());
      for (const outcome of await Promise.allSettled(chosen)) {
        if (outcome.status === "fulfilled") continue;
        // The range may have been cut off by the other request.
        if (outcome.reason.code === "EPERM") refused++;
        else assertEquals(outcome.reason.code, "EIO");
      }
      assertEquals(await probed(store), "raw", `step ${step}`);
    }
    assert(refused > 5, `${refused} refused`);
  });
});
