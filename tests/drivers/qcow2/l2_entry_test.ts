import { viewOf } from "../../../core/bytes.ts";
import { assert, assertEquals } from "@std/assert";
import { Incompatible, writeUint64 } from "../../../drivers/qcow2/format.ts";
import { Geometry } from "../../../drivers/qcow2/geometry.ts";
import { L2Layout } from "../../../drivers/qcow2/l2_entry.ts";
import { Random } from "../../model.ts";
import { put64 } from "./bytes.ts";

const { DATA_FILE, EXTENDED_L2 } = Incompatible;
const CLUSTER_BITS = 16;
const CLUSTER = 2 ** CLUSTER_BITS;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const HOST = 0x50000n;
const INDEX = 3;

const standard = new L2Layout(CLUSTER_BITS);
const withDataFile = new L2Layout(CLUSTER_BITS, DATA_FILE);
const extended = new L2Layout(CLUSTER_BITS, EXTENDED_L2);

/** A table with these words, starting at an entry. */
function tableOf(
  layout: L2Layout,
  words: readonly bigint[],
  index = INDEX,
): DataView {
  const bytes = new Uint8Array(CLUSTER);
  put64(bytes, index * layout.entrySize, ...words);
  return viewOf(bytes);
}

/** The words of an entry. */
function wordsAt(layout: L2Layout, table: DataView, index = INDEX): bigint[] {
  const at = index * layout.entrySize;
  const words = [table.getBigUint64(at)];
  if (layout.isExtended) words.push(table.getBigUint64(at + 8));
  return words;
}

Deno.test("an L2 table has half as many entries if they are extended", () => {
  assertEquals([standard.entrySize, standard.entriesPerTable], [8, 8192]);
  assertEquals([extended.entrySize, extended.entriesPerTable], [16, 4096]);
  const guest = 5 * 2 ** 29 + 7 * CLUSTER + 1;
  const half = new Geometry(CLUSTER_BITS, 4, EXTENDED_L2);
  assertEquals([half.l1Index(guest), half.l2Index(guest)], [10, 7]);
  assertEquals(half.l1EntriesFor(2 ** 30), 4);
  const whole = new Geometry(CLUSTER_BITS, 4);
  assertEquals([whole.l1Index(guest), whole.l2Index(guest)], [5, 7]);
  assertEquals(whole.l1EntriesFor(2 ** 30), 2);
});

Deno.test("kind() decodes standard entries", () => {
  const kinds: [bigint, string, string][] = [
    [0n, "unallocated", "unallocated"],
    [1n, "zero", "zero"],
    [HOST, "normal", "normal"],
    [COPIED | HOST, "normal", "normal"],
    [COPIED | HOST | 1n, "zeroAllocated", "zeroAllocated"],
    [1n << 55n, "normal", "normal"],
    // Reserved bits are not part of the offset.
    [1n << 56n | 0x1fen, "unallocated", "unallocated"],
    // With a data file, offset 0 is valid, but not for zeroes.
    [COPIED, "unallocated", "normal"],
    [COPIED | 1n, "zero", "zero"],
    [COMPRESSED | HOST, "compressed", "compressed"],
    [COPIED | COMPRESSED | 1n, "compressed", "compressed"],
  ];
  for (const [entry, kind, kindWithDataFile] of kinds) {
    const table = tableOf(standard, [entry]);
    assertEquals(standard.kind(table, INDEX), kind, entry.toString(16));
    assertEquals(withDataFile.kind(table, INDEX), kindWithDataFile);
    const isPlaced = kind === "normal" || kind === "zeroAllocated";
    assertEquals(standard.isPlaced(table, INDEX), isPlaced);
    assertEquals(standard.isEmpty(table, INDEX), entry === 0n);
    assertEquals(standard.isCopied(table, INDEX), (entry & COPIED) !== 0n);
    assertEquals(standard.isCompressed(table, INDEX), kind === "compressed");
    assertEquals(standard.subclusterKind(table, INDEX, 0), kind);
    assertEquals(standard.text(table, INDEX), entry.toString(16));
  }
});

Deno.test("isPlain() takes aligned clusters without flags, and no others", () => {
  const isPlain = (entry: bigint) =>
    standard.isPlain(tableOf(standard, [entry]), INDEX);
  assert(isPlain(HOST));
  assert(isPlain(COPIED | HOST | 1n << 55n));
  for (const bits of [1n, 2n, 0x200n, 1n << 56n, COMPRESSED]) {
    assert(!isPlain(HOST | bits), bits.toString(16));
  }
  assert(!isPlain(0n));
  assert(!isPlain(COPIED));
});

Deno.test("hasReservedBits() knows the specification's reserved bits", () => {
  for (let bit = 0n; bit < 62n; bit++) {
    const table = tableOf(standard, [1n << bit]);
    const isReserved = bit >= 1n && bit <= 8n || bit >= 56n;
    assertEquals(standard.hasReservedBits(table, INDEX), isReserved, `${bit}`);
  }
});

/** Entries according to the specification's table of subclusters. */
const SUBCLUSTER_KINDS: [bigint, bigint, string[]][] = [
  [HOST, 0b1n, ["normal", "unallocatedPlaced"]],
  [HOST, 1n << 32n, ["zeroAllocated", "unallocatedPlaced"]],
  [HOST, 1n << 33n | 0b1n, ["normal", "zeroAllocated"]],
  [HOST, 1n << 37n | 1n << 5n, ["invalid", "invalid"]],
  [0n, 1n << 32n, ["zero", "unallocated"]],
  [0n, 0n, ["unallocated", "unallocated"]],
  [0n, 1n << 31n, ["invalid", "invalid"]],
  // The zero flag of whole clusters has no meaning here.
  [1n, 0n, ["unallocated", "unallocated"]],
  [HOST | 1n, 0b10n, ["unallocatedPlaced", "normal"]],
  [COMPRESSED | HOST, 0b1n, ["compressed", "compressed"]],
];

Deno.test("subclusterKind() decodes extended entries", () => {
  for (const [entry, bitmap, kinds] of SUBCLUSTER_KINDS) {
    const table = tableOf(extended, [entry, bitmap]);
    const found = kinds.map((_, i) => extended.subclusterKind(table, INDEX, i));
    assertEquals(found, kinds, `${entry.toString(16)} ${bitmap.toString(16)}`);
  }
  const last = tableOf(extended, [HOST, 1n << 63n]);
  assertEquals(extended.subclusterKind(last, INDEX, 31), "zeroAllocated");
  const both = new L2Layout(CLUSTER_BITS, EXTENDED_L2 | DATA_FILE);
  const first = tableOf(both, [COPIED, 0b1n]);
  assertEquals(both.subclusterKind(first, INDEX, 0), "normal");
});

Deno.test("setters change their own entries, and no neighbours", () => {
  const all = 0xffffffffn;
  type Change = (layout: L2Layout, table: DataView) => void;
  const changes: [Change, bigint[], bigint[]][] = [
    [
      (layout, table) => layout.setPlace(table, INDEX, 2 ** 33 + CLUSTER),
      [COPIED | 1n << 33n | 0x10000n],
      [COPIED | 1n << 33n | 0x10000n, all],
    ],
    [
      (layout, table) => layout.setPlace(table, INDEX, CLUSTER, true),
      [COPIED | 0x10001n],
      [COPIED | 0x10000n, all << 32n],
    ],
    [
      (layout, table) => {
        layout.setPlace(table, INDEX, CLUSTER);
        layout.setZero(table, INDEX);
        layout.setCopied(table, INDEX, false);
      },
      [0x10001n],
      [0x10000n, all << 32n],
    ],
    [(layout, table) => layout.clear(table, INDEX, false), [0n], [0n, 0n]],
    [(layout, table) => layout.clear(table, INDEX, true), [1n], [
      0n,
      all << 32n,
    ]],
    [
      (layout, table) => layout.setCompressed(table, INDEX, 0x50100, 0x400),
      // From the middle of one sector into the third.
      [COMPRESSED | 2n << 54n | 0x50100n],
      [COMPRESSED | 2n << 54n | 0x50100n, 0n],
    ],
    [
      (layout, table) => {
        layout.setPlace(table, INDEX, CLUSTER + 512, true);
        layout.dropPlace(table, INDEX);
      },
      [1n],
      [0n, all << 32n],
    ],
  ];
  for (const [change, short, long] of changes) {
    for (const [layout, expected] of [[standard, short], [extended, long]]) {
      const at = layout as L2Layout;
      const filled = Array(at.entrySize / 8 * 3).fill(0x0123456789abcdefn);
      const table = tableOf(at, filled, INDEX - 1);
      change(at, table);
      assertEquals(wordsAt(at, table), expected);
      const neighbour = filled.slice(0, at.entrySize / 8);
      assertEquals(wordsAt(at, table, INDEX - 1), neighbour);
      assertEquals(wordsAt(at, table, INDEX + 1), neighbour);
    }
  }
});

Deno.test("setCopied() says whether it changed the entry", () => {
  const table = tableOf(standard, [HOST]);
  assertEquals(standard.setCopied(table, INDEX, false), false);
  assertEquals(standard.setCopied(table, INDEX, true), true);
  assertEquals(standard.setCopied(table, INDEX, true), false);
  assertEquals(wordsAt(standard, table), [COPIED | HOST]);
  assertEquals(standard.offset(table, INDEX), Number(HOST));
});

Deno.test("compressed cluster descriptors survive encoding and decoding", () => {
  const random = new Random(1);
  for (let bits = 9; bits <= 21; bits++) {
    const layout = new L2Layout(bits);
    const table = viewOf(new Uint8Array(8));
    for (let i = 0; i < 100; i++) {
      const length = 1 + random.below(2 ** bits);
      const hostOffset = random.below(2 ** 31) * random.pick([1, 2, 4, 1000]);
      layout.setCompressed(table, 0, hostOffset, length);
      assertEquals(layout.kind(table, 0), "compressed");
      assertEquals(layout.compressedOffset(table, 0), hostOffset);
      // The length is counted in sectors.
      const end = Math.ceil((hostOffset + length) / 512) * 512;
      assertEquals(layout.compressedLength(table, 0), end - hostOffset);
      const digits = hostOffset.toString(16);
      assertEquals(layout.compressedOffsetText(table, 0), digits);
    }
  }
});

/**
 * The length of the run of equal entries from the first one, read one by one.
 */
function slowRun(layout: L2Layout, table: DataView, most: number): number {
  const kind = layout.kind(table, 0);
  const isPlaced = layout.isPlaced(table, 0);
  let count = 1;
  for (; count < most && kind !== "compressed"; count++) {
    const expected = layout.offset(table, 0) + count * CLUSTER;
    if (layout.kind(table, count) !== kind) break;
    if (isPlaced && layout.offset(table, count) !== expected) break;
  }
  return count;
}

Deno.test("runLength() extends over equal entries", () => {
  const random = new Random(2);
  for (const layout of [standard, withDataFile, extended]) {
    for (let round = 0; round < 2000; round++) {
      const table = viewOf(new Uint8Array(8 * layout.entrySize));
      const start = random.pick([0, 0, 2 ** 32 - 2 * CLUSTER, 7 * CLUSTER]);
      const kind = random.pick(["normal", "normal", "zero", "none"]);
      const set = (index: number, of: string) => {
        const host = start + index * CLUSTER;
        if (of === "normal") layout.setPlace(table, index, host);
        else layout.clear(table, index, of === "zero");
      };
      for (let index = 0; index < 8; index++) set(index, kind);
      const odd = 1 + random.below(7);
      switch (random.below(5)) {
        case 0:
          set(odd, random.pick(["normal", "zero", "none"]));
          break;
        case 1:
          layout.setZero(table, odd);
          break;
        case 2:
          layout.setCopied(table, odd, random.below(2) === 0);
          break;
        case 3:
          layout.setCompressed(table, odd, start, 512);
          break;
      }
      const most = 1 + random.below(12);
      const expected = slowRun(layout, table, Math.min(most, 8));
      assertEquals(layout.runLength(table, 0, most), expected);
    }
  }
});

Deno.test("sequenceLength() ends where flags differ, and at 4 GiB", () => {
  const table = viewOf(new Uint8Array(64));
  const start = 2 ** 32 - 4 * CLUSTER;
  for (let i = 0; i < 8; i++) standard.setPlace(table, i, start + i * CLUSTER);
  assertEquals(standard.sequenceLength(table, 0, 8), 4);
  assertEquals(standard.sequenceLength(table, 0, 3), 3);
  assertEquals(standard.sequenceLength(table, 4, 9), 4);
  standard.setCopied(table, 6, false);
  assertEquals(standard.sequenceLength(table, 4, 9), 2);
  writeUint64(table, 8, 0);
  assertEquals(standard.sequenceLength(table, 0, 8), 1);
});

/** A table of entries with subclusters of all kinds. */
function someSubclusters(random: Random): DataView {
  const table = viewOf(new Uint8Array(8 * extended.entrySize));
  for (let index = 0; index < 8; index++) {
    const bits = () =>
      BigInt(random.pick([0, -1, random.below(2 ** 32)]) >>> 0);
    const isPlaced = random.below(3) > 0;
    const zero = bits();
    // Most are free of contradictions.
    const allocated = random.oneIn(9) ? bits() : isPlaced ? bits() & ~zero : 0n;
    const entry = isPlaced ? COPIED | BigInt((1 + index) * CLUSTER) : 0n;
    put64(
      new Uint8Array(table.buffer),
      16 * index,
      random.oneIn(12) ? COMPRESSED | HOST : entry,
      zero << 32n | allocated,
    );
  }
  return table;
}

Deno.test("subclusterRun() extends over equal subclusters", () => {
  const random = new Random(3);
  for (let round = 0; round < 2000; round++) {
    const table = someSubclusters(random);
    const [index, first] = [random.below(8), random.below(32)];
    const most = 1 + random.below(100);
    const kind = extended.subclusterKind(table, index, first);
    const isWhole = kind === "invalid" || kind === "compressed";
    let expected = 1;
    for (; expected < most; expected++) {
      const at = first + expected;
      const next = index + Math.floor(at / 32);
      const isOther = isWhole && next !== index;
      if (next === 8 || isOther) break;
      if (extended.subclusterKind(table, next, at % 32) !== kind) break;
    }
    const run = extended.subclusterRun(table, index, first, most);
    assertEquals(run, expected);
  }
});

Deno.test("setData(), reserve() and setZeroPart() change the bits of a part", () => {
  const at = (index: number) => index * extended.subclusterSize;
  const table = tableOf(extended, [0n, 0xff00ff00n << 32n]);
  extended.setData(table, INDEX, Number(HOST), at(4), at(12));
  const place = COPIED | HOST;
  assertEquals(wordsAt(extended, table), [place, 0xff00f000n << 32n | 0xff0n]);
  // From the middle of one cluster to the middle of another.
  extended.setData(table, INDEX, Number(HOST), at(30) + 1, at(31) + 1);
  assertEquals(wordsAt(extended, table), [
    place,
    0x3f00f000n << 32n | 0xc0000ff0n,
  ]);
  extended.setZeroPart(table, INDEX, at(31), at(32));
  assertEquals(wordsAt(extended, table), [
    place,
    0xbf00f000n << 32n | 0x40000ff0n,
  ]);
  extended.reserve(table, INDEX, Number(HOST) + CLUSTER, true);
  assertEquals(wordsAt(extended, table), [
    place + BigInt(CLUSTER),
    0xbf00f000n << 32n | 0x40000ff0n,
  ]);
  assertEquals(
    [
      extended.firstAllocated(table, INDEX),
      extended.lastAllocated(table, INDEX),
    ],
    [4, 31],
  );
});

Deno.test("wholeKind() recognizes clusters whose subclusters differ", () => {
  const all = 0xffffffffn;
  const kinds = [
    [0n, 0n],
    [0n, all << 32n],
    [0n, 1n << 40n],
    [COPIED | HOST, all << 32n],
    [COPIED | HOST, 0n],
    [COPIED | HOST, 1n],
    [COMPRESSED | HOST, 0n],
  ].map((words) => extended.wholeKind(tableOf(extended, words), INDEX));
  assertEquals(kinds, [
    "unallocated",
    "zero",
    "partlyZero",
    "zeroAllocated",
    "normal",
    "normal",
    "compressed",
  ]);
});
