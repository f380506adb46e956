/**
 * Small images of each format, to be mutated: some made by `createImage`, some
 * by other programs, with what is known about the offsets of their fields.
 *
 * @module
 */
import {
  type BlockNode,
  createImage,
  getDriver,
  loadDriver,
  MemoryStore,
  openImage,
  type OptionValues,
  registerDriver,
  type StackObject,
  streamImage,
} from "../mod.ts";
import { crc32 } from "../drivers/packed/crc32.ts";
import { putChecksum } from "../drivers/vhdx/crc32c.ts";
import {
  bgzf,
  disk,
  gzip,
  joined,
  seekableZstd,
  tar,
  xz,
  zip,
  zstd,
} from "./drivers/packed/make.ts";
import { contentOf } from "./drivers/qcow2/bytes.ts";
import { damageTables } from "./drivers/read_only/damage.ts";
import { patch as patchVhd } from "./drivers/vpc/bytes.ts";
import { PLACE as VHDX } from "./drivers/vhdx/bytes.ts";
import {
  cowdExtent,
  descriptor,
  type Grains,
  seSparseExtent,
} from "./drivers/vmdk/make.ts";
import type { Random } from "./model.ts";

/** Bytes to be mutated. */
export type Bytes = Uint8Array<ArrayBuffer>;

const MIB = 1024 * 1024;
/** The size of disks made here: two blocks of a vdi, and part of a third. */
export const SIZE = 2 * MIB + 64 * 1024;

/** A range, from the first byte to just past the last. */
export type Range = readonly [start: number, end: number];

/** A part of a file with a checksum. */
export interface Sealed {
  readonly range: Range;
  /** Update the checksum; otherwise a change of the part would go unread. */
  seal(bytes: Bytes): void;
}

/** An image, and what to do with it. */
export interface Sample {
  readonly bytes: Bytes;
  /** Offsets of fields, besides those in the first and last sectors. */
  readonly places?: readonly number[];
  /** Ranges of text that gets parsed. */
  readonly texts?: readonly Range[];
  readonly seals?: readonly Sealed[];
  /** Make a change specific to this format; returns a description. */
  readonly damage?: (bytes: Bytes, random: Random) => string;
  /** The files it consists of, concatenated, if there are several. */
  readonly files?: readonly { name: string; length: number }[];
  /** Passphrases, by their IDs. */
  readonly secrets?: Readonly<Record<string, string>>;
  /** Options for opening it. */
  readonly options?: StackObject;
  /** Whether it can only be unpacked from beginning to end. */
  readonly isStream?: boolean;
}

/** The parts of images of several files, by name. */
export const PARTS = new Map<string, MemoryStore>();

registerDriver({
  name: "parts",
  role: "protocol",
  schemes: ["parts"],
  parseFilename: (url) => ({ url }),
  async open({ url }, context): Promise<BlockNode> {
    const store = PARTS.get(String(url).slice("parts://x/".length));
    const memory = await loadDriver(getDriver("memory"));
    return await memory.open({ store: store ?? new MemoryStore() }, context);
  },
});

/** An image with some data, made by `createImage`. */
async function made(format: string, options: OptionValues): Promise<Bytes> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage(format, file, { size: SIZE, ...options });
  await using image = await openImage({ driver: format, file });
  await image.write(100_000, new Uint8Array(2000).fill(1));
  await image.write(image.size - 600, new Uint8Array(500).fill(2));
  if (image.node.writeZeroes) await image.writeZeroes(200_000, 70_000);
  await image.flush();
  return contentOf(store);
}

/** An image written as a stream. */
async function streamed(
  format: string,
  create: OptionValues,
): Promise<Bytes> {
  const store = new MemoryStore(SIZE);
  store.write(100_000, new Uint8Array(200_000).fill(1));
  const raw = { driver: "raw", file: { driver: "memory", store } };
  await using image = await openImage(raw);
  const stream = streamImage(format, image.node, { create });
  return await new Response(stream).bytes();
}

/** An image of `tests/fixtures`. */
async function fixture(name: string): Promise<Bytes> {
  const url = new URL(`fixtures/${name}.gz`, import.meta.url);
  const packed = new Blob([await Deno.readFile(url)]).stream();
  const stream = packed.pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).bytes();
}

function all(
  images: readonly Promise<Bytes>[],
  more: Omit<Sample, "bytes"> = {},
): Promise<Sample[]> {
  return Promise.all(images.map(async (bytes) => ({
    ...more,
    bytes: await bytes,
  })));
}

function fixtures(
  names: readonly string[],
  more: Omit<Sample, "bytes"> = {},
): Promise<Sample[]> {
  return all(names.map(fixture), more);
}

const VHD_SEALS = (bytes: Bytes): Sealed[] =>
  [0, 512, bytes.length - 512].map((at) => ({
    range: [at, at + 1024],
    seal: (bytes) => patchVhd(bytes, at, () => {}),
  }));

const VHDX_SEALS: readonly Sealed[] = [
  ...[VHDX.header, VHDX.otherHeader].map((at): Sealed => ({
    range: [at, at + 4096],
    seal: (bytes) => putChecksum(bytes.subarray(at, at + 4096), 4),
  })),
  ...[VHDX.regions, VHDX.otherRegions].map((at): Sealed => ({
    range: [at, at + 65536],
    seal: (bytes) => putChecksum(bytes.subarray(at, at + 65536), 4),
  })),
  // A log entry, with its length at offset 8.
  ...[0, 1, 2, 3, 4].map((sector): Sealed => {
    const at = VHDX.log + 4096 * sector;
    return {
      range: [at, at + 65536],
      seal(bytes) {
        const length = new DataView(bytes.buffer).getUint32(at + 8, true);
        const isEntry = bytes[at] === "l".charCodeAt(0) && length <= 65536;
        if (!isEntry || length < 64) return;
        putChecksum(bytes.subarray(at, at + length), 4);
      },
    };
  }),
];

async function vhdx(): Promise<Sample[]> {
  const places = [
    ...[VHDX.header + 64, VHDX.regions, VHDX.log, VHDX.log + 4096, VHDX.bat],
    ...[VHDX.metadata, VHDX.items],
  ];
  const own = [{ block_size: MIB }, { subformat: "fixed", block_size: MIB }]
    .map((options) => made("vhdx", options));
  const theirs = ["absent", "dirty", "dynamic"]
    .map((name) => fixture(`vhd/${name}.vhdx`));
  return await all([...own, ...theirs], { places, seals: VHDX_SEALS });
}

async function vpc(): Promise<Sample[]> {
  const own = [{}, { subformat: "fixed" }].map((one) => made("vpc", one));
  const theirs = ["dynamic", "exact"].map((name) => fixture(`vhd/${name}.vpc`));
  const images = await Promise.all([...own, ...theirs]);
  return images.map((bytes) => ({
    bytes,
    places: [1536],
    seals: VHD_SEALS(bytes),
  }));
}

/** A grain of each kind. */
const GRAINS: Grains = new Map([[0, 1], [1, 2], [5, 0], [100, 4]]);

/** A VMDK of several files. */
function parts(
  text: string | Bytes,
  extents: readonly (readonly [name: string, bytes: Bytes])[],
): Sample {
  const start = new Uint8Array(4096);
  start.set(typeof text === "string" ? new TextEncoder().encode(text) : text);
  const files = [["disk.vmdk", start] as const, ...extents];
  const bytes = joined(files.map(([, bytes]) => bytes)) as Bytes;
  const places: number[] = [];
  let at = 0;
  for (const [, { length }] of files) {
    places.push(at, at + 512, at + length - 1024);
    at += length;
  }
  return {
    bytes,
    places,
    texts: [[0, 4096], [0, 4096]],
    files: files.map(([name, { length }]) => ({ name, length })),
  };
}

async function vmdk(): Promise<Sample[]> {
  const embedded: Range = [512, 21 * 512];
  const one = await all([
    made("vmdk", {}),
    made("vmdk", { zeroed_grain: true }),
    fixture("vmdk/zeroed.vmdk"),
  ], { places: [21 * 512, 26 * 512, 65536], texts: [embedded] });
  const streams = await all([
    streamed("vmdk", { subformat: "streamOptimized" }),
    fixture("vmdk/stream.vmdk"),
  ]);
  return [
    ...one,
    ...streams.map((sample) => ({
      ...sample,
      texts: [embedded],
      places: [65536, sample.bytes.length - 2048, sample.bytes.length - 4096],
    })),
  ];
}

/** The VMDK layouts that have more than one file. */
async function vmdkFiles(): Promise<Sample[]> {
  const size = SIZE - SIZE % 4096;
  const lines = (kind: string, name: string) => [
    `RW ${size / 512} ${kind} "${name}"`,
    "RW 128 ZERO",
  ];
  return [
    parts(await fixture("vmdk/flat.vmdk"), [
      ["flat-flat.vmdk", await fixture("vmdk/flat-flat.vmdk")],
    ]),
    parts(await fixture("vmdk/split.vmdk"), [
      ["split-s001.vmdk", await fixture("vmdk/split-s001.vmdk")],
      ["split-s002.vmdk", await fixture("vmdk/split-s002.vmdk")],
    ]),
    parts(descriptor(lines("VMFSSPARSE", "cowd"), "vmfsSparse"), [
      ["cowd", cowdExtent(size, GRAINS)],
    ]),
    parts(descriptor(lines("SESPARSE", "se"), "seSparse"), [
      ["se", seSparseExtent(size, GRAINS)],
    ]),
  ];
}

const KEY = { "key-secret": "s0" };
const secrets = { s0: "a passphrase" };

async function luks(): Promise<Sample[]> {
  const image = async (options: OptionValues): Promise<Sample> => {
    const store = new MemoryStore();
    const file = { driver: "memory", store };
    const create = { size: 131_072, ...KEY, "iter-time": 0, ...options };
    await createImage("luks", file, create, { secrets });
    return {
      bytes: contentOf(store),
      secrets,
      options: KEY,
      damage: limitIterations,
    };
  };
  return [
    await image({}),
    await image({ "cipher-mode": "cbc", "ivgen-alg": "essiv" }),
  ];
}

/**
 * Limit the iterations of key derivation: a header may demand any number, of
 * cryptsetup and QEMU too, and a test does not wait for them.
 */
function limitIterations(bytes: Bytes): string {
  const view = new DataView(bytes.buffer);
  for (
    const at of [
      164,
      ...Array.from({ length: 8 }, (_, i) => 212 + 48 * i),
    ]
  ) {
    if (view.getUint32(at) > 2000) view.setUint32(at, 2000);
  }
  return "at most 2000 iterations";
}

/** The headers in an intact tar archive. */
function tarSeals(bytes: Bytes): Sealed[] {
  const seals: Sealed[] = [];
  const text = new TextDecoder("latin1").decode(bytes);
  for (
    let at = text.indexOf("ustar");
    at >= 0;
    at = text.indexOf("ustar", at + 1)
  ) {
    const start = at - 257;
    if (start < 0 || start % 512 !== 0) continue;
    seals.push({
      range: [start, start + 512],
      seal(bytes) {
        const header = bytes.subarray(start, start + 512);
        header.fill(0x20, 148, 156);
        const sum = header.reduce((sum, byte) => sum + byte, 0);
        const digits = `${sum.toString(8).padStart(6, "0")}\0 `;
        header.set(new TextEncoder().encode(digits), 148);
      },
    });
  }
  return seals;
}

function archive(bytes: Bytes): Sample {
  const seals = tarSeals(bytes);
  const text = new TextDecoder("latin1").decode(bytes);
  const [start, end] = [text.indexOf("<?xml"), text.indexOf("</Envelope>")];
  return {
    bytes,
    seals,
    places: seals.map(({ range }) => range[0] + 100),
    texts: [
      ...seals.map(({ range: [at] }): Range => [at, at + 345]),
      ...end > 0 ? [[start, end + 11] as const] : [],
    ],
  };
}

const disk64 = disk.subarray(0, 65536);

function numbered(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function xzSeals(bytes: Bytes): Sealed[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const end = bytes.length;
  const block = 4 * (bytes[12] + 1);
  const index = end - 12 - 4 * (view.getUint32(end - 8, true) + 1);
  const sum = (start: number, stop: number, at: number): Sealed => ({
    range: [Math.min(start, at), Math.max(stop, at + 4)],
    seal(bytes) {
      new DataView(bytes.buffer)
        .setUint32(at, crc32(bytes.subarray(start, stop)), true);
    },
  });
  return [
    sum(6, 8, 8),
    sum(12, 12 + block - 4, 12 + block - 4),
    sum(index, end - 16, end - 16),
    sum(end - 8, end - 2, end - 12),
  ];
}

async function xzSamples(): Promise<Sample[]> {
  const blocks = (await xz(disk, "--block-size=64KiB")).slice();
  const one = (await xz(disk64)).slice();
  return [
    { bytes: blocks, seals: xzSeals(blocks) },
    { bytes: one, seals: xzSeals(one), isStream: true },
  ];
}

/** Samples of each format, made on demand. */
export const SAMPLES: { readonly [format: string]: () => Promise<Sample[]> } = {
  asif: () =>
    fixtures(["read-only/small.asif", "read-only/sectors.asif"], {
      places: [8192, 32768, 49152, 65536, 262144, 393216, 524288],
    }),
  bochs: () => fixtures(["read-only/small.bochs"]),
  cloop: () => fixtures(["read-only/small.cloop"], { places: [128, 128] }),
  dmg: () =>
    fixtures(
      [
        ...["adc", "bzip2", "fork", "lzfse-blocks", "lzfse", "lzma", "mixed"],
        ...["simple", "zlib"],
      ].map((name) => `read-only/${name}.dmg`),
      {
        damage: (bytes, random) =>
          random.below(3) === 0 ? "" : damageTables(bytes, random),
      },
    ),
  gzip: () => {
    const places = [0, 0];
    return Promise.resolve([
      { bytes: bgzf(disk) as Bytes, places },
      { bytes: gzip(disk64) as Bytes, places, isStream: true },
    ]);
  },
  luks,
  ova: async () => {
    const own = await streamed("ova", {});
    return [archive(own)];
  },
  parallels: async () => [
    ...await all([made("parallels", {})], { places: [64, 64] }),
    ...await fixtures(["first", "odd"].map((name) => `old/${name}.parallels`), {
      places: [64, 64],
    }),
  ],
  qcow: async () => [
    ...await all([made("qcow", {})], { places: [48, 4096] }),
    ...await fixtures(["old/packed.qcow", "old/plain.qcow"], {
      places: [48, 4096],
    }),
  ],
  qcow2: async () => [
    ...await all([
      made("qcow2", {}),
      made("qcow2", { cluster_size: 4096 }),
      made("qcow2", { extended_l2: true }),
    ], { places: [65536, 3 * 65536, 4 * 65536, 4 * 4096] }),
    ...await fixtures(
      [
        ...["bitmap", "bitmaps", "compressed-zlib", "compressed-zstd", "dirty"],
        ...["extended", "overlay", "refcount1", "refcount64", "snapshots"],
        ...["v2", "zero"],
      ].map((name) => `${name}.qcow2`),
      {
        places: [4096, 8192, 12288, 16384, 65536, 131072, 196608, 262144],
      },
    ),
  ],
  qed: async () =>
    await all([made("qed", {}), fixture("old/small.qed")], {
      places: [65536, 5 * 65536],
    }),
  tar: async () => [
    archive(
      tar([["a.txt", numbered("hello")], ["disk.raw", disk64]]) as Bytes,
    ),
    archive(tar([["disk.raw", disk64]]) as Bytes),
    archive(
      tar([["x", numbered("18 path=disk.img\n\n")], ["d.raw", disk64]], {
        change: (header) => header[0] === 120 && (header[156] = 120),
      }) as Bytes,
    ),
    archive(await streamed("ova", {})),
  ],
  vdi: () =>
    all([made("vdi", {}), made("vdi", { static: true })], {
      places: [64, 320, 512],
    }),
  vhdx,
  vmdk,
  "vmdk of several files": vmdkFiles,
  vpc,
  xz: xzSamples,
  zip: () =>
    Promise.resolve([
      { bytes: zip("disk.raw", disk64, 0) as Bytes },
      { bytes: zip("disk.raw", disk64, 8) as Bytes, isStream: true },
    ]),
  zstd: () =>
    Promise.resolve([
      { bytes: seekableZstd(disk) as Bytes },
      { bytes: zstd(disk64) as Bytes, isStream: true },
    ]),
};
