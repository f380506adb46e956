import { assertEquals, assertRejects } from "@std/assert";
import { putGuid } from "../../../drivers/vhdx/guid.ts";
import { newEntry } from "../../../drivers/vhdx/log_entry.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  type OptionValues,
} from "../../../mod.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";
import {
  MIB,
  newImage,
  patchHeaders,
  patchRegions,
  PLACE,
  putEntry,
  stackOf,
} from "./bytes.ts";

type Bytes = Uint8Array<ArrayBuffer>;

function view(bytes: Bytes): DataView {
  return new DataView(bytes.buffer);
}

/** A change of an image, and the message about it. */
const DAMAGES: readonly (readonly [
  damage: (bytes: Bytes) => void,
  message: string,
])[] = [
  [(bytes) => bytes[0]++, "Invalid argument"],
  [(bytes) => {
    bytes[PLACE.header + 9]++;
    bytes[PLACE.otherHeader + 9]++;
  }, "No valid VHDX header found"],
  [
    (bytes) => patchHeaders(bytes, (view) => view.setUint16(66, 2, true)),
    "No valid VHDX header found",
  ],
  [
    (bytes) => patchHeaders(bytes, (view) => view.setUint32(8, 7, true)),
    "",
  ],
  [
    (bytes) => patchHeaders(bytes, (view) => view.setUint16(64, 1, true)),
    "Invalid argument",
  ],
  [
    (bytes) => patchHeaders(bytes, (view) => view.setUint32(72, 4096, true)),
    "Invalid argument",
  ],
  [(bytes) => {
    bytes[PLACE.regions]++;
    bytes[PLACE.otherRegions]++;
  }, "Invalid argument"],
  [
    (bytes) => patchRegions(bytes, (view) => view.setUint32(8, 3, true)),
    "Invalid argument",
  ],
  [
    (bytes) => patchRegions(bytes, (view) => view.setUint32(16, 1, true)),
    "Operation not supported",
  ],
  [(bytes) => bytes[PLACE.metadata]++, "Invalid argument"],
  [
    (bytes) => view(bytes).setUint32(PLACE.metadata + 32, 1),
    "Operation not supported",
  ],
  [
    (bytes) => view(bytes).setUint32(PLACE.items, 3 * MIB, true),
    "Invalid argument",
  ],
  [
    (bytes) => view(bytes).setUint32(PLACE.items + 4, 2, true),
    "Invalid argument",
  ],
  [
    (bytes) => view(bytes).setUint32(PLACE.items + 32, 4096, true),
    "Operation not supported",
  ],
  [
    (bytes) => view(bytes).setUint32(PLACE.items + 13, 1, true),
    "Invalid argument",
  ],
];

Deno.test("an image that makes no sense is refused, with QEMU's words first", async () => {
  for (const [damage, message] of DAMAGES) {
    const bytes = await newImage();
    damage(bytes);
    if (message === "") {
      // Equally new, and equal.
      await using image = await openImage(stackOf(bytes));
      assertEquals(image.size, 8 * MIB);
      continue;
    }
    await assertRejects(() => openImage(stackOf(bytes)), BlockError, message);
  }
});

Deno.test("one valid header, and one valid region table, are enough", async () => {
  for (
    const place of [
      PLACE.header,
      PLACE.otherHeader,
      PLACE.regions,
      PLACE.otherRegions,
    ]
  ) {
    const bytes = await newImage();
    bytes.fill(0xff, place, place + 512);
    await using image = await openImage(stackOf(bytes));
    assertEquals(image.size, 8 * MIB);
    await image.write(0, new Uint8Array(10).fill(1));
    await image.flush();
    assertEquals(await image.read(0, 10), new Uint8Array(10).fill(1));
  }
});

Deno.test("check() reports blocks where no block can be", async () => {
  const bytes = await newImage();
  const end = bytes.length;
  putEntry(bytes, 0, 6, 100 * MIB);
  putEntry(bytes, 1, 6, 2 * MIB);
  putEntry(bytes, 2, 6, 0xfffffffffff00000n);
  const lines: string[] = [];
  const report = (line: string, named = false) =>
    lines.push(`${named} ${line}`);
  {
    const options = { purpose: "check" } as const;
    await using image = await openImage(stackOf(bytes), options);
    assertEquals((await image.check({ report })).corruptions, 4);
  }
  const pastEnd = (entry: number, offset: bigint) =>
    `true VHDX BAT entry ${entry} start offset ${offset} points after end of ` +
    `file (${end}). Image has probably been truncated.`;
  const start = pastEnd(0, BigInt(100 * MIB));
  assertEquals(lines, [
    start,
    "true VHDX region 2097152-3145728 overlaps with region 2097152-3145728",
    "true VHDX BAT entry 2 offset overflow.",
    pastEnd(2, 0xfffffffffff00000n),
  ]);
  lines.length = 0;
  await assertRejects(
    () => openImage(stackOf(bytes), { report }),
    BlockError,
    "Invalid argument",
  );
  assertEquals(lines, [start]);
});

Deno.test("check() of an image in use takes no space in its file", async () => {
  const sizes = [true, false].map(async (isChecked) => {
    const store = storeOf(await newImage());
    const stack = { driver: "vhdx", file: { driver: "memory", store } };
    await using image = await openImage(stack);
    for (let at = 0; at < 5 * MIB; at += MIB) {
      await image.write(at, new Uint8Array([1]));
      const isDue = isChecked && at === MIB;
      if (isDue) assertEquals((await image.check()).corruptions, 0);
    }
    await image.flush();
    return store.size;
  });
  const [checked, plain] = await Promise.all(sizes);
  assertEquals(checked, plain);
});

Deno.test("an image that is merely opened or read stays as it was", async () => {
  const bytes = await newImage();
  const store = storeOf(bytes);
  const stack = { driver: "vhdx", file: { driver: "memory", store } };
  for (const readOnly of [true, false]) {
    await using image = await openImage(stack, { readOnly });
    await image.read(0, 8 * MIB);
    await image.flush();
    assertEquals((await image.check()).corruptions, 0);
  }
  assertEquals(contentOf(store), bytes);
});

const GUID = "12345678-9abc-4def-8123-456789abcdef";

/** An image whose log entries set blocks to zeroes by changing their states. */
async function withLog(
  entries: readonly {
    at: number;
    sequence: bigint;
    tail: number;
    state: number;
  }[],
): Promise<Bytes> {
  const bytes = await newImage();
  patchHeaders(bytes, (view) => {
    putGuid(new Uint8Array(view.buffer, view.byteOffset, 4096), 48, GUID);
  });
  for (const { at, sequence, tail, state } of entries) {
    const table = bytes.slice(PLACE.bat, PLACE.bat + 4096);
    table[0] = state;
    const change = { offset: PLACE.bat, bytes: table };
    const entry = newEntry(GUID, tail, [change], bytes.length);
    // The entry wraps around where the ring ends.
    patchEntry(entry, sequence);
    for (let i = 0; i < entry.length; i += 4096) {
      const place = PLACE.log + (at + i) % MIB;
      bytes.set(entry.subarray(i, i + 4096), place);
    }
  }
  return bytes;
}

/** Give a log entry another sequence number. */
function patchEntry(entry: Uint8Array, sequence: bigint): void {
  const view = new DataView(entry.buffer, entry.byteOffset, entry.length);
  view.setBigUint64(16, sequence, true);
  view.setBigUint64(64 + 24, sequence, true);
  view.setUint32(4096 + 4, Number(sequence >> 32n), true);
  view.setUint32(8192 - 4, Number(sequence & 0xffffffffn), true);
  // The checksum covers the whole entry; the helper handles only 4096 bytes.
  let crc = 0xffffffff;
  for (let i = 0; i < entry.length; i++) {
    crc ^= i >= 4 && i < 8 ? 0 : entry[i];
    for (let bit = 0; bit < 8; bit++) {
      crc = crc >>> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
  }
  view.setUint32(4, ~crc >>> 0, true);
}

Deno.test("the newest complete sequence of the log is replayed", async () => {
  const last = MIB - 4096;
  const cases: [what: string, expected: number, entries: {
    at: number;
    sequence: bigint;
    tail: number;
    state: number;
  }[]][] = [
    ["one entry", 3, [{ at: 0, sequence: 1n, tail: 0, state: 3 }]],
    ["in the middle", 3, [
      { at: 40960, sequence: 9n, tail: 40960, state: 3 },
    ]],
    ["two in a row", 1, [
      { at: 0, sequence: 5n, tail: 0, state: 3 },
      { at: 8192, sequence: 6n, tail: 0, state: 1 },
    ]],
    ["across the end of the ring", 1, [
      { at: last, sequence: 1n << 33n, tail: last, state: 1 },
    ]],
    ["a second entry beyond the end of the ring", 1, [
      { at: MIB - 8192, sequence: 5n, tail: MIB - 8192, state: 3 },
      { at: 0, sequence: 6n, tail: MIB - 8192, state: 1 },
    ]],
    ["an older sequence elsewhere", 3, [
      { at: 81920, sequence: 7n, tail: 81920, state: 3 },
      { at: 0, sequence: 3n, tail: 0, state: 1 },
    ]],
    ["a sequence whose tail is lost", 3, [
      { at: 81920, sequence: 2n, tail: 81920, state: 3 },
      { at: 8192, sequence: 9n, tail: 0, state: 1 },
    ]],
    ["a gap in the sequence numbers", 1, [
      { at: 0, sequence: 5n, tail: 0, state: 3 },
      { at: 8192, sequence: 7n, tail: 8192, state: 1 },
    ]],
  ];
  for (const [what, expected, entries] of cases) {
    const store = storeOf(await withLog(entries));
    const stack = { driver: "vhdx", file: { driver: "memory", store } };
    const error = await assertRejects(
      () => openImage(stack, { readOnly: true }),
      BlockError,
      "contains a log that needs to be replayed",
    );
    assertEquals(error.hint?.startsWith("To replay the log, run:"), true);
    {
      await using image = await openImage(stack);
      const repaired = await image.check();
      assertEquals([what, repaired.corruptionsFixed], [what, 1]);
      assertEquals((await image.check()).corruptionsFixed, 0);
    }
    assertEquals([what, contentOf(store)[PLACE.bat]], [what, expected]);
    await using image = await openImage(stack, { readOnly: true });
    assertEquals(image.size, 8 * MIB);
  }
});

Deno.test("a log without a valid entry is empty", async () => {
  const bytes = await withLog([{ at: 0, sequence: 1n, tail: 0, state: 3 }]);
  bytes[PLACE.log + 5000]++;
  await using image = await openImage(stackOf(bytes), { readOnly: true });
  assertEquals(image.size, 8 * MIB);
});

Deno.test("a file shorter than its log says is refused", async () => {
  const bytes = await withLog([{ at: 0, sequence: 1n, tail: 0, state: 3 }]);
  await assertRejects(
    () => openImage(stackOf(bytes.subarray(0, -MIB))),
    BlockError,
    "shorter than its log requires",
  );
});

Deno.test("a fixed image has room for all of its disk", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const options: OptionValues = { size: 3 * MIB + 512, subformat: "fixed" };
  await createImage("vhdx", file, { ...options, block_size: MIB });
  const size = store.size;
  await using image = await openImage({ driver: "vhdx", file });
  await image.write(0, new Uint8Array(image.size).fill(1));
  await image.flush();
  assertEquals(store.size, size);
  assertEquals(await image.read(image.size - 1, 1), new Uint8Array([1]));
});

Deno.test("a disk of size zero can be opened", async () => {
  await using image = await openImage(stackOf(await newImage({ size: 0 })));
  assertEquals([image.size, (await image.check()).corruptions], [0, 0]);
});

Deno.test("entries of blocks beyond the first chunk follow its bitmap's entry", async () => {
  const size = 5 * 1024 * MIB;
  const store = storeOf(await newImage({ size }));
  const stack = { driver: "vhdx", file: { driver: "memory", store } };
  const places = [0, 4095, 4096, 4097, 5119].map((block) => block * MIB);
  {
    await using image = await openImage(stack);
    for (const [i, place] of places.entries()) {
      await image.write(place, new Uint8Array([i + 1]));
    }
  }
  await using image = await openImage(stack);
  for (const [i, place] of places.entries()) {
    assertEquals((await image.read(place, 1))[0], i + 1);
  }
  const bytes = contentOf(store);
  const entries = [4095, 4096, 4097, 4098].map((index) =>
    bytes[PLACE.bat + 8 * index] & 7
  );
  assertEquals(entries, [6, 0, 6, 6]);
});
