/**
 * Hostile images: damaged or malicious qcow2 images, and all operations on
 * them.
 *
 * @module
 */
import {
  bench,
  BlockError,
  type BlockNode,
  commit,
  compare,
  convert,
  createImage,
  measure,
  MemoryStore,
  openImage,
  type OpenOptions,
  rebase,
  type StackObject,
  streamImage,
} from "../mod.ts";
import { readPadded, writeZeroes } from "../core/requests.ts";
import { put32, put64, storeOf } from "./drivers/qcow2/bytes.ts";
import { damage, type Random } from "./drivers/qcow2/damage.ts";

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 8n, 9n, 72n, 104n, 112n, 511n, 512n, 4096n, 65536n],
  ...[0x7fffffffn, 0x80000000n, 0xffffffffn, 0x100000000n, 1n << 40n],
  ...[(1n << 53n) - 1n, 1n << 53n, (1n << 56n) - 512n, 1n << 62n],
  ...[(1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n, (1n << 64n) - 512n],
];

/** Fields of the header: offset and length. */
const FIELDS: readonly (readonly [string, number, 4 | 8])[] = [
  ["version", 4, 4],
  ["backing offset", 8, 8],
  ["backing length", 16, 4],
  ["cluster bits", 20, 4],
  ["size", 24, 8],
  ["encryption", 32, 4],
  ["L1 entries", 36, 4],
  ["L1 offset", 40, 8],
  ["refcount table offset", 48, 8],
  ["refcount table clusters", 56, 4],
  ["snapshots", 60, 4],
  ["snapshots offset", 64, 8],
  ["incompatible", 72, 8],
  ["compatible", 80, 8],
  ["autoclear", 88, 8],
  ["refcount order", 96, 4],
  ["header length", 100, 4],
  ["compression", 104, 4],
];

/** Names for which no backing file may be opened. */
export const BACKING_NAMES: readonly string[] = [
  'json:{"driver":"file","filename":"/dev/zero"}',
  'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/hostname"}}',
  "json:{",
  "json:[]",
  'json:{"driver":{"a":1}}',
  "json:" + '{"file":'.repeat(100),
  "/dev/zero",
  "/dev/stdin",
  "/etc/hostname",
  "../../../../../../../../../../etc/hostname",
  "nbd://127.0.0.1:1/x",
  "fd:0",
  "blkdebug:/etc/hostname:/etc/hostname",
  "null-co:",
  ".",
  "x".repeat(1023),
];

/** Damage the header, or a byte anywhere; returns a description. */
function damageHeader(bytes: Uint8Array, random: Random): string {
  const kind = random.below(10);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (kind < 5) {
    const [name, at, length] = random.pick(FIELDS);
    const old = length === 8
      ? view.getBigUint64(at)
      : BigInt(view.getUint32(at));
    const value = random.below(4) === 0
      ? old ^ 1n << BigInt(random.below(length * 8))
      : random.below(4) === 0
      ? BigInt(random.below(64) * 2 ** view.getInt8(23))
      : random.pick(VALUES);
    if (length === 8) put64(bytes, at, BigInt.asUintN(64, value));
    else put32(bytes, at, Number(BigInt.asUintN(32, value)));
    return `${name} = 0x${value.toString(16)}`;
  }
  if (kind < 7) {
    // In the header extensions, or in the backing file name behind them.
    const at = 72 + random.below(400);
    bytes[at] = random.pick([0, 1, 0x10, 0x7f, 0xff, bytes[at] ^ 1]);
    return `header byte ${at} = ${bytes[at]}`;
  }
  if (kind < 8) {
    const at = 112 + 8 * random.below(16);
    const type = random.pick(
      [0xe2792aca, 0x6803f857, 0x0537be77, 0x23852875, 0x44415441, 0x1234],
    );
    const length = random.pick([0, 1, 15, 16, 24, 48, 1000, 2 ** 32 - 1]);
    put32(bytes, at, type, length);
    return `extension at ${at}: ${type.toString(16)}, ${length} bytes`;
  }
  if (kind < 9) {
    const name = random.pick(BACKING_NAMES);
    const encoded = new TextEncoder().encode(name);
    const offset = Math.min(2 ** bytes[23], bytes.length) - encoded.length;
    if (offset < 112) return "no place for a name";
    bytes.set(encoded, offset);
    put64(bytes, 8, offset);
    put32(bytes, 16, encoded.length);
    return `backing file ${name.slice(0, 60)}`;
  }
  const at = random.below(bytes.length);
  bytes[at] ^= 1 << random.below(8);
  return `byte ${at} = ${bytes[at]}`;
}

/** Offsets at which header extensions point to something, by their types. */
function* extensionsOf(view: DataView) {
  if (view.getUint32(4) < 3) return;
  const end = Math.min(2 ** view.getUint32(20), view.byteLength - 8);
  for (let at = view.getUint32(100); at < end;) {
    const [type, length] = [view.getUint32(at), view.getUint32(at + 4)];
    if (type === 0) return;
    yield { type, at: at + 8, length };
    at += 8 + Math.ceil(length / 8) * 8;
  }
}

const BITMAPS = 0x23852875;
const LUKS = 0x0537be77;
const DATA_FILE = 0x44415441;

/** Fields of a bitmap directory's entry: offset and length. */
const BITMAP_FIELDS: readonly (readonly [string, number, 1 | 2 | 4 | 8])[] = [
  ["table offset", 0, 8],
  ["table entries", 8, 4],
  ["flags", 12, 4],
  ["type", 16, 1],
  ["granularity", 17, 1],
  ["name length", 18, 2],
  ["extra data", 20, 4],
  ["name", 24, 2],
];

/** Fields of a LUKS header: offset and length. */
const LUKS_FIELDS: readonly (readonly [string, number, 2 | 4 | 8])[] = [
  ["magic", 0, 4],
  ["version", 6, 2],
  ["cipher", 8, 4],
  ["mode", 40, 8],
  ["hash", 72, 4],
  ["payload", 104, 4],
  ["key bytes", 108, 4],
  ["digest", 112, 4],
  ["digest iterations", 164, 4],
  ...Array.from({ length: 8 }, (_, slot) => slot).flatMap((slot) => [
    [`state of slot ${slot}`, 208 + slot * 48, 4] as const,
    [`iterations of slot ${slot}`, 212 + slot * 48, 4] as const,
    [`place of slot ${slot}`, 248 + slot * 48, 4] as const,
    [`stripes of slot ${slot}`, 252 + slot * 48, 4] as const,
  ]),
];

/** Names to put where a LUKS header names an algorithm. */
const LUKS_NAMES = [
  ...["xts-plain64", "cbc-essiv:sha256", "xts-essiv:sha1", "ecb-plain"],
  ...["ctr-plain64:md5", "-", "xts-", "xts-essiv:", "__proto__", "aes"],
  ...["serpent", "toString", "sha512", "ripemd160", "x".repeat(32)],
];

/** Put a value into a field of 1 to 8 bytes; returns a description. */
function putField(
  bytes: Uint8Array,
  [name, offset, length]: readonly [string, number, number],
  start: number,
  random: Random,
): string {
  const at = start + offset;
  if (at + length > bytes.length) return `${name} is not there`;
  const few = random.below(2) === 0;
  const value = few ? BigInt(random.below(66)) : random.pick(VALUES);
  for (let i = 0; i < length; i++) {
    bytes[at + i] = Number(value >> BigInt(8 * (length - 1 - i)) & 0xffn);
  }
  return `${name} = 0x${value.toString(16)}`;
}

/** Damage a LUKS header that begins at `start`; returns a description. */
export function damageLuks(
  bytes: Uint8Array,
  start: number,
  random: Random,
): string {
  if (random.below(4) > 0) {
    return putField(bytes, random.pick(LUKS_FIELDS), start, random);
  }
  const at = start + random.pick([8, 40, 72]);
  if (at + 32 > bytes.length) return "no LUKS header";
  const name = random.pick(LUKS_NAMES);
  bytes.fill(0, at, at + 32);
  bytes.set(new TextEncoder().encode(name), at);
  return `name at ${at - start} = ${name}`;
}

/**
 * Damage what header extensions point to, or the subcluster bitmaps; returns a
 * description, or `undefined` if the image has none of them.
 */
function damageParts(bytes: Uint8Array, random: Random): string | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const place = (at: number) => Number(view.getBigUint64(at) & 0xffffffffffn);
  for (const { type, at, length } of extensionsOf(view)) {
    if (type === LUKS) {
      if (random.below(4) > 0) return damageLuks(bytes, place(at), random);
      const field = [`header pointer ${at}`, 8 * random.below(2), 8] as const;
      return putField(bytes, field, at, random);
    }
    if (type === BITMAPS) {
      const fields = [["bitmaps", 0, 4], ["size", 8, 8], ["place", 16, 8]];
      if (random.below(4) === 0) {
        const [name, offset, length] = random.pick(fields);
        const field = [`${name}`, Number(offset), Number(length)] as const;
        return `directory: ${putField(bytes, field, at, random)}`;
      }
      const field = random.pick(BITMAP_FIELDS);
      return `bitmap: ${putField(bytes, field, place(at + 16), random)}`;
    }
    if (type === DATA_FILE) {
      const name = new TextEncoder().encode(random.pick(BACKING_NAMES));
      bytes.set(name.subarray(0, length), at);
      return "name of the data file";
    }
  }
  // Extended L2 entries: 16 bytes, half of which are bitmaps.
  const isExtended = (view.getUint32(76) & 0x10) !== 0;
  const l1 = place(40);
  if (!isExtended || l1 + 8 > bytes.length) return undefined;
  const l2 = place(l1);
  const entry = l2 + 16 * random.below(64);
  const field = ["subclusters", 8 + 4 * random.below(2), 4] as const;
  const what = putField(bytes, field, entry, random);
  // Sometimes change the zero bitmap as well.
  if (random.below(2) === 0 && entry + 16 <= bytes.length) {
    put32(bytes, entry + 8, random.below(2 ** 31) * random.below(3));
  }
  return `entry at ${entry}: ${what}`;
}

/** Damage an image's header, tables, or both; returns a description. */
export function makeHostile(
  image: Uint8Array,
  random: Random,
): { bytes: Uint8Array; what: string } {
  if (random.below(3) === 0) {
    const bytes = image.slice();
    const what = damageParts(bytes, random);
    if (what !== undefined) return { bytes, what };
  }
  const kind = random.below(3);
  const hostile = kind > 0
    ? damage(image, random)
    : { bytes: image.slice(), what: "" };
  if (kind === 1) return hostile;
  const steps = [hostile.what];
  for (let left = 1 + random.below(3); left > 0; left--) {
    steps.push(damageHeader(hostile.bytes, random));
  }
  return { ...hostile, what: steps.filter(Boolean).join("; ") };
}

/** A fresh copy of the image, for an operation. */
export interface Victim {
  /** The image in memory, for `openImage`. */
  stack: StackObject;
  /** How to open it, with a limit on the length of its chain. */
  options: OpenOptions;
}

/** Bytes to read of a disk, which may claim any size. */
const LOOK = 2 * 1024 * 1024;
/** Most extents to query. */
const MOST_EXTENTS = 3000;
/** Larger disks are not copied. */
const LARGEST = 64 * 1024 * 1024;

type Operation = (victim: Victim, random: Random) => Promise<void>;

async function using(
  { stack, options }: Victim,
  readOnly: boolean,
  use: (node: BlockNode) => Promise<unknown>,
): Promise<void> {
  await using image = await openImage(stack, { ...options, readOnly });
  await use(image.node);
}

const reading =
  (use: (node: BlockNode, random: Random) => Promise<unknown>): Operation =>
  (victim, random) => using(victim, true, (node) => use(node, random));
const writing =
  (use: (node: BlockNode, random: Random) => Promise<unknown>): Operation =>
  (victim, random) => using(victim, false, (node) => use(node, random));

function checking(
  repair?: { leaks: boolean; corruptions: boolean },
): Operation {
  return async ({ stack, options }) => {
    await using image = await openImage(stack, {
      ...options,
      purpose: "check",
      readOnly: !repair,
    });
    await image.check({ repair });
  };
}

/** Offsets on a disk: start, end, and a random one. */
function places(node: BlockNode, random: Random): number[] {
  const sectors = Math.floor(node.size / 512);
  const somewhere = Math.min(sectors, 4096);
  return [0, random.below(Math.max(1, somewhere)) * 512, (sectors - 1) * 512]
    .filter((at) => at >= 0 && at < node.size);
}

async function newTarget(format: string, size: number): Promise<BlockNode> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage(format, file, { size });
  return (await openImage({ driver: format, file })).node;
}

function converting(options: Parameters<typeof convert>[2]): Operation {
  return reading(async (node) => {
    if (node.size > LARGEST) return;
    const target = await newTarget("qcow2", node.size);
    try {
      await convert([node], target, { targetIsZero: true, ...options });
    } finally {
      await target.close();
    }
  });
}

/** All operations on an image, by name. */
export const OPERATIONS: { readonly [name: string]: Operation } = {
  info: async ({ stack, options }) => {
    await using image = await openImage(stack, {
      ...options,
      purpose: "info",
      readOnly: true,
    });
    await image.info();
    await image.node.snapshots?.list();
  },
  map: async ({ stack, options }) => {
    await using image = await openImage(stack, { ...options, readOnly: true });
    let left = MOST_EXTENTS;
    for await (const _ of image.extents()) if (--left === 0) break;
  },
  check: checking(),
  "check -r leaks": checking({ leaks: true, corruptions: false }),
  "check -r all": checking({ leaks: true, corruptions: true }),
  read: reading(async (node, random) => {
    for (const at of places(node, random)) {
      const length = Math.min(LOOK, node.size - at);
      await readPadded(node, at, [new Uint8Array(length)]);
    }
  }),
  write: writing(async (node, random) => {
    for (const at of places(node, random)) {
      const length = Math.min(20000, node.size - at);
      await node.writev!(at, [new Uint8Array(length).fill(1)]);
      await writeZeroes(node, at, length, { unmap: true });
      await node.flush!();
    }
  }),
  discard: writing(async (node, random) => {
    for (const at of places(node, random)) {
      await node.discard!(at, Math.min(1 << 30, node.size - at));
    }
    await node.discard!(0, node.size);
    await node.writeZeroes!(0, node.size);
  }),
  "write -c": writing(async (node) => {
    const { clusterSize = 512 } = await node.info!();
    const length = Math.min(clusterSize, node.size);
    await node.writeCompressed!(0, [new Uint8Array(length).fill(3)]);
  }),
  "vm state": writing(async (node) => {
    await node.vmState!.save(0, [new Uint8Array(3000).fill(1)]);
    await node.vmState!.load(0, [new Uint8Array(3000)]);
  }),
  convert: converting({}),
  "convert -c": converting({ compressed: true }),
  "convert --salvage": converting({ salvage: true }),
  "convert -C": converting({ copyOffload: true }),
  "convert to -": reading(async (node) => {
    if (node.size > LARGEST) return;
    for await (const _ of streamImage("qcow2", node));
    for await (const _ of streamImage("raw", node));
  }),
  compare: reading(async (node) => {
    if (node.size > 2 ** 40) return;
    const store = new MemoryStore(node.size);
    await using other = await openImage(
      { driver: "raw", file: { driver: "memory", store } },
      { readOnly: true },
    );
    await compare(node, other.node);
    await compare(node, other.node, { strict: true });
  }),
  measure: reading(async (node) => {
    await measure("qcow2", {}, node);
    await measure("raw", {}, node);
  }),
  bench: writing(async (node) => {
    await bench(node, { count: 64, depth: 8, step: 12345 * 512 });
    await bench(node, { count: 64, depth: 8, step: 7 * 512, write: true });
  }),
  "amend compat=0.10": writing((node) =>
    node.image!.amend!({ compat: "0.10" })
  ),
  "amend compat=1.1": writing((node) => node.image!.amend!({ compat: "1.1" })),
  "amend lazy_refcounts": writing((node) =>
    node.image!.amend!({ lazy_refcounts: true })
  ),
  "amend refcount_bits": writing((node, random) =>
    node.image!.amend!({ refcount_bits: random.pick([1, 2, 8, 32, 64]) })
  ),
  "amend state=active": writing((node) =>
    node.image!.amend!({
      "encrypt.state": "active",
      "encrypt.new-secret": "new",
      "encrypt.iter-time": 0,
    })
  ),
  "amend state=inactive": writing((node) =>
    node.image!.amend!({
      "encrypt.state": "inactive",
      "encrypt.old-secret": "old",
    })
  ),
  commit: async ({ stack, options }) => {
    const file = { driver: "memory", store: new MemoryStore(1 << 16) };
    const backing = { driver: "raw", file, "read-only": false };
    await using(
      { stack: { ...stack, backing }, options },
      false,
      (node) => node.size > LARGEST ? Promise.resolve() : commit(node),
    );
  },
  empty: writing((node) => node.image!.makeEmpty!()),
  rebase: async ({ stack, options }) => {
    const file = { driver: "memory", store: storeOf(new Uint8Array(1 << 16)) };
    const backing = { driver: "raw", file };
    await using(
      { stack: { ...stack, backing }, options },
      false,
      (node) =>
        node.size > LARGEST ? Promise.resolve() : rebase(node, undefined),
    );
  },
  "rebase -u": writing((node) => node.image!.changeBacking!("other", "raw")),
  "resize grow": writing((node) => node.truncate!(node.size + (1 << 20))),
  "resize much": writing((node) => node.truncate!(2 ** 40)),
  "resize preallocation": writing((node) =>
    node.truncate!(node.size + (1 << 20), { preallocation: "metadata" })
  ),
  "resize shrink": writing((node) =>
    node.truncate!(Math.floor(node.size / 1024) * 512)
  ),
  "snapshot -c": writing((node) => node.snapshots!.create({ name: "new" })),
  "snapshot -a": writing((node) => eachSnapshot(node, "apply")),
  "snapshot -d": writing((node) => eachSnapshot(node, "delete")),
  "snapshot -l": reading(async (node) => {
    for (const { id } of (await node.snapshots!.list()).slice(0, 20)) {
      await node.snapshots!.loadTemporary(id);
      await readPadded(node, 0, [new Uint8Array(Math.min(4096, node.size))]);
    }
  }),
  bitmaps: reading(async (node) => {
    const { list, dirty } = node.image!.bitmaps!;
    for (const { name, flags } of (await list()).slice(0, 20)) {
      if (flags.includes("in-use")) continue;
      let left = MOST_EXTENTS;
      for await (const _ of dirty(name, 0, node.size)) if (--left === 0) break;
    }
  }),
  "bitmap --add": writing((node) => node.image!.bitmaps!.add("new")),
  "bitmap --clear": writing((node) => eachBitmap(node, "clear")),
  "bitmap --disable": writing((node) => eachBitmap(node, "disable")),
  "bitmap --remove": writing((node) => eachBitmap(node, "remove")),
  "bitmap --merge": writing(async (node) => {
    const { list, add, merge, dirty } = node.image!.bitmaps!;
    if (node.size > 2 ** 40) return;
    await add("new", { granularity: 2 ** 20 });
    for (const { name } of (await list()).slice(0, 20)) {
      await merge("new", dirty(name, 0, node.size));
    }
  }),
  reload: writing((node) => node.invalidate!()),
};

async function eachSnapshot(
  node: BlockNode,
  verb: "apply" | "delete",
): Promise<void> {
  for (const { id } of (await node.snapshots!.list()).slice(0, 20)) {
    await node.snapshots![verb](id);
  }
}

async function eachBitmap(
  node: BlockNode,
  verb: "clear" | "disable" | "remove",
): Promise<void> {
  for (const { name } of (await node.image!.bitmaps!.list()).slice(0, 20)) {
    await node.image!.bitmaps![verb](name);
  }
}

/**
 * Why the outcome of an operation is a bug; `undefined` for success or a
 * genuine `BlockError`.
 */
export function mistake(thrown: unknown): string | undefined {
  if (thrown instanceof SuppressedError) {
    // The failure, and that of the close that follows.
    return mistake(thrown.error) ?? mistake(thrown.suppressed);
  }
  if (!(thrown instanceof BlockError)) return stackOf(thrown);
  if (thrown.message.trim() === "") return `no message: ${stackOf(thrown)}`;
  if (/^\s*$|^ +at /m.test(thrown.message)) return stackOf(thrown);
  for (let at: unknown = thrown; at !== undefined;) {
    if (!(at instanceof Error)) return `not an error: ${at}`;
    if (isMistake(at)) return stackOf(at);
    at = at.cause;
  }
  return undefined;
}

function isMistake(error: Error): boolean {
  return error instanceof TypeError || error instanceof RangeError ||
    error instanceof ReferenceError || error instanceof SyntaxError ||
    error.name === "AssertionError";
}

function stackOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.stack ?? String(thrown) : `${thrown}`;
}
