/**
 * Images with something for an inspection to find, including each check of
 * OpenStack's `format_inspector`.
 *
 * @module
 */
import { allocate } from "../../../core/bytes.ts";
import {
  createImage,
  MemoryStore,
  openImage,
  streamImage,
} from "../../../mod.ts";
import { contentOf } from "../../drivers/qcow2/bytes.ts";
import { goldenBytes } from "../../drivers/qcow2/golden.ts";

type Bytes = Uint8Array<ArrayBuffer>;

/** An image, and what must be found in it. */
export interface Input {
  readonly name: string;
  readonly bytes: Bytes;
  /** The checks that report a danger. */
  readonly dangers: readonly string[];
  /** The checks that report a warning. */
  readonly warnings?: readonly string[];
  /** Whether OpenStack's inspector misses what ours finds. */
  readonly isOurs?: boolean;
}

const SIZE = 64 * 1024 * 1024;

async function made(
  format: string,
  options: Record<string, unknown> = {},
): Promise<Bytes> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage(format, file, { size: SIZE, ...options });
  return contentOf(store);
}

/** A copy with other bytes at an offset, given as text or as numbers. */
function patched(
  bytes: Bytes,
  ...patches: [at: number, what: string | readonly number[]][]
): Bytes {
  const copy = bytes.slice();
  for (const [at, what] of patches) {
    const patch = typeof what === "string"
      ? Uint8Array.from(what, (character) => character.charCodeAt(0))
      : what;
    copy.set(patch, at);
  }
  return copy;
}

async function* qcow2Inputs(): AsyncGenerator<Input> {
  const plain = await made("qcow2");
  const bit = (bit: number) =>
    patched(plain, [79 - (bit >> 3), [1 << bit % 8]]);
  yield { name: "qcow2", bytes: plain, dangers: [] };
  const v2 = await made("qcow2", { compat: "0.10" });
  yield { name: "qcow2 v2", bytes: v2, dangers: [] };
  // Extensions begin there, so the feature bits may be anything.
  yield {
    name: "qcow2 v2 with an extension",
    bytes: patched(v2, [72, [0x12, 0x34, 0x56, 0xf0, 0, 0, 0, 0x10]]),
    dangers: [],
  };
  const backing = await goldenBytes("overlay.qcow2");
  yield { name: "qcow2 overlay", bytes: backing, dangers: ["backing-file"] };
  yield {
    name: "qcow2 with a nameless backing file",
    bytes: patched(plain, [15, [1]]),
    dangers: ["backing-file"],
  };
  yield {
    name: "qcow2 with a backing file outside",
    bytes: patched(plain, [8, [0, 0, 0, 0, 0, 0, 0xf0, 0]], [19, [11]], [
      0xf000,
      "/etc/passwd",
    ]),
    dangers: ["backing-file"],
    warnings: ["backing-format"],
  };
  const data = await goldenBytes("data-file.qcow2");
  yield { name: "qcow2 data-file", bytes: data, dangers: ["data-file"] };
  yield {
    name: "qcow2 bit 0",
    bytes: bit(0),
    dangers: [],
    warnings: ["dirty"],
  };
  yield {
    name: "qcow2 bit 1",
    bytes: bit(1),
    dangers: [],
    warnings: ["corrupt"],
  };
  yield { name: "qcow2 bit 2", bytes: bit(2), dangers: ["data-file"] };
  yield { name: "qcow2 bit 3", bytes: bit(3), dangers: [] };
  for (const number of [4, 5, 7, 8, 15, 31, 32, 63]) {
    yield {
      name: `qcow2 bit ${number}`,
      bytes: bit(number),
      dangers: ["unknown-features"],
    };
  }
  for (const version of [0, 1, 4, 5]) {
    yield {
      name: `qcow2 version ${version}`,
      bytes: patched(plain, [7, [version]]),
      dangers: ["version"],
    };
  }
  const snapshots = await goldenBytes("snapshots.qcow2");
  yield { name: "qcow2 with snapshots", bytes: snapshots, dangers: [] };
  const aes = await goldenBytes("aes.qcow2");
  yield {
    name: "qcow2 aes",
    bytes: aes,
    dangers: [],
    warnings: ["weak-encryption"],
  };
  yield {
    name: "qcow2 luks",
    bytes: await goldenBytes("luks.qcow2"),
    dangers: [],
  };
  yield {
    name: "qcow2 with an unknown method of encryption",
    bytes: patched(plain, [35, [3]]),
    dangers: ["unknown-features"],
    isOurs: true,
  };
  yield {
    name: "qcow2 size bomb",
    bytes: await made("qcow2", { size: 2 ** 50 }),
    dangers: [],
    warnings: ["size-bomb"],
  };
  yield {
    name: "qcow2 with an L1 table that would take all memory",
    bytes: patched(plain, [36, [0x7f, 0xff, 0xff, 0xff]]),
    dangers: ["excessive-table"],
    warnings: ["truncated"],
    isOurs: true,
  };
  yield {
    name: "qcow2 cut off",
    bytes: plain.slice(0, 100_000),
    dangers: [],
    warnings: ["truncated"],
  };
  yield {
    name: "qcow2 and VDI",
    bytes: patched(plain, [64, [0x7f, 0x10, 0xda, 0xbe]]),
    dangers: ["multiple-formats"],
  };
  yield {
    name: "qcow2 and MBR",
    bytes: patched(plain, [510, [0x55, 0xaa]]),
    dangers: ["multiple-formats"],
  };
}

/** A descriptor with some text replaced, as bytes. */
function described(from: Bytes, change: (text: string) => string): Bytes {
  const copy = from.slice();
  const text = new TextDecoder("latin1").decode(copy.subarray(512, 21 * 512))
    .replaceAll("\0", "");
  copy.fill(0, 512, 21 * 512);
  return patched(copy, [512, change(text)]);
}

async function* vmdkInputs(): AsyncGenerator<Input> {
  const sparse = await made("vmdk");
  yield { name: "vmdk", bytes: sparse, dangers: [] };
  const descriptors: [name: string, from: string | RegExp, to: string][] = [
    ["with an odd line", "# Extent", "dd oops\n# Extent"],
    ["without an extent", /^RW.*$/m, ""],
    ["of another kind", "monolithicSparse", "monolithicFlat"],
    ["of an unknown kind", "monolithicSparse", "x"],
    ["of a kind with a long name", "monolithicSparse", "x".repeat(100)],
    ["of no kind", /^createType.*$/m, ""],
    ["with an extent elsewhere", /"[^"]*"(?=\s*$)/m, '"/etc/passwd"'],
    ["that is not ASCII", "# Extent", "# \xe9xtent"],
    ["with two words before a sign", "CID=", "a b=c\nCID="],
  ];
  for (const [name, from, to] of descriptors) {
    const isExtent = name === "with an extent elsewhere";
    const bytes = described(
      sparse,
      (text) =>
        isExtent
          ? text.replace(/^RW (\d+) SPARSE.*$/m, `RW $1 SPARSE ${to}`)
          : text.replace(from, to),
    );
    yield {
      name: `vmdk ${name}`,
      bytes,
      dangers: /kind/.test(name) && /other|unknown|long|no /.test(name)
        ? ["descriptor", "extents"]
        : ["descriptor"],
    };
  }
  const again = 'createType="monolithicSparse"\n';
  yield {
    name: "vmdk of a long kind, and of another one",
    bytes: described(
      sparse,
      (text) => text.replace("monolithicSparse", "x".repeat(100)) + again,
    ),
    dangers: ["descriptor", "extents"],
  };
  yield {
    name: "vmdk whose kind goes on to the next line",
    bytes: described(
      sparse,
      (text) => `createType="streamOptimized\n${"#".repeat(64)}\n${text}`,
    ),
    dangers: ["descriptor", "extents"],
  };
  yield {
    name: "vmdk with a better kind in a comment",
    bytes: described(
      sparse,
      (text) => `# ${again}${text.replace("monolithicSparse", "vmfs")}`,
    ),
    dangers: ["descriptor", "extents"],
    isOurs: true,
  };
  yield {
    name: "vmdk in capitals",
    bytes: described(
      sparse,
      (text) => text.replace("monolithicSparse", "MONOLITHICSPARSE"),
    ),
    dangers: [],
  };
  yield {
    name: "vmdk with a parent",
    bytes: described(
      sparse,
      (text) =>
        text.replace(/^createType/m, 'parentFileNameHint="base.vmdk"\n$&'),
    ),
    dangers: ["backing-file"],
    isOurs: true,
  };
  yield {
    name: "vmdk with a parent in a comment",
    bytes: described(
      sparse,
      (text) =>
        text.replace(/^createType/m, '# parentFileNameHint="base.vmdk"\n$&'),
    ),
    dangers: ["backing-file"],
    isOurs: true,
  };
  for (const version of [0, 4]) {
    yield {
      name: `vmdk version ${version}`,
      bytes: patched(sparse, [4, [version]]),
      dangers: ["version"],
    };
  }
  yield {
    name: "vmdk with its descriptor elsewhere",
    bytes: patched(sparse, [28, [2]]),
    dangers: ["descriptor"],
  };
  yield {
    name: "vmdk cut off in its descriptor",
    bytes: sparse.slice(0, 3000),
    dangers: ["truncated"],
  };
  yield {
    name: "vmdk whose descriptor is empty",
    bytes: patched(sparse, [512, [0]]),
    dangers: ["descriptor"],
  };
  yield* footerInputs();
  const text = (lines: string) => new TextEncoder().encode(lines);
  const flat = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n" +
    'createType="monolithicFlat"\nRW 2048 FLAT "disk-flat.vmdk" 0\n';
  for (
    const [name, lines] of [
      ["flat", flat],
      ["flat outside", flat.replace("disk-flat", "/etc/disk-flat")],
      ["text", "words, and more of them\n".repeat(9) + 'createType="vmfs"\n'],
      ["flat in a long text", flat + "# x\n".repeat(5000)],
      [
        "flat, which it denies",
        flat.replace("monolithicFlat", "monolithicSparse"),
      ],
    ]
  ) {
    yield {
      name: `vmdk ${name}`,
      bytes: text(lines),
      dangers: name === "text"
        ? ["descriptor"]
        : name === "flat, which it denies"
        ? ["extents"]
        : ["descriptor", "extents"],
    };
  }
  const cowd = allocate(4096);
  yield {
    name: "vmdk cowd",
    bytes: patched(cowd, [0, "COWD"], [4, [1]]),
    dangers: [],
    warnings: ["extent"],
  };
  yield {
    name: "vmdk sesparse",
    bytes: patched(cowd, [0, "\xbe\xba\xfe\xca"]),
    dangers: [],
    warnings: ["extent"],
  };
}

async function* footerInputs(): AsyncGenerator<Input> {
  const store = new MemoryStore(SIZE);
  store.write(70_000, new Uint8Array([1]));
  await using image = await openImage({
    driver: "raw",
    file: { driver: "memory", store },
  });
  const stream = streamImage("vmdk", image.node, {
    create: { subformat: "streamOptimized" },
  });
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  yield { name: "vmdk stream", bytes, dangers: [] };
  const footer = bytes.length - 1024;
  const faults: [what: string, at: number, patch: readonly number[]][] = [
    ["magic", footer, [0]],
    ["version", footer + 4, [2]],
    ["descriptor", footer + 36, [7]],
    ["place", footer + 56, Array(8).fill(0xff)],
    ["marker's size", footer - 504, [1]],
    ["marker's type", footer - 500, [1]],
    ["marker's padding", footer - 1, [1]],
    ["end", bytes.length - 500, [1]],
  ];
  for (const [what, at, patch] of faults) {
    yield {
      name: `vmdk stream: ${what}`,
      bytes: patched(bytes, [at, patch]),
      dangers: ["footer"],
    };
  }
}

async function* otherInputs(): AsyncGenerator<Input> {
  const nothing = allocate(1024 * 1024);
  const vdi = await made("vdi");
  yield { name: "vdi", bytes: vdi, dangers: [] };
  yield {
    name: "vdi with a parent",
    bytes: patched(vdi, [76, [4]], [424, [1]]),
    dangers: ["backing-file"],
    isOurs: true,
  };
  const vhd = await made("vpc");
  yield { name: "vpc", bytes: vhd, dangers: [] };
  yield {
    name: "vpc with a parent",
    bytes: patched(vhd, [63, [4]]),
    dangers: ["backing-file"],
    warnings: ["damaged"],
    isOurs: true,
  };
  yield {
    name: "vpc fixed",
    bytes: await made("vpc", { subformat: "fixed", size: 1024 * 1024 }),
    dangers: [],
    warnings: ["vhd-footer"],
  };
  const vhdx = await made("vhdx");
  yield { name: "vhdx", bytes: vhdx, dangers: [] };
  yield {
    name: "vhdx cut off",
    bytes: vhdx.slice(0, 100_000),
    dangers: ["truncated"],
  };
  yield {
    name: "vhdx with a log",
    bytes: patched(vhdx, [128 * 1024 + 48, [1]], [64 * 1024 + 48, [1]]),
    dangers: [],
    warnings: ["dirty"],
  };
  yield {
    name: "qed",
    bytes: patched(nothing, [0, "QED\0"]),
    dangers: ["banned"],
  };
  const luks = await goldenBytes("disk.luks");
  yield { name: "luks", bytes: luks, dangers: [] };
  yield {
    name: "luks 2",
    bytes: patched(luks, [7, [2]]),
    dangers: ["version"],
  };
  yield { name: "empty", bytes: allocate(0), dangers: [] };
  yield { name: "raw", bytes: nothing, dangers: [] };
  yield { name: "short", bytes: allocate(100), dangers: [] };
  yield {
    name: "parallels",
    bytes: patched(nothing, [0, "WithouFreSpacExt"], [16, [2]]),
    dangers: [],
  };
  yield {
    name: "dmg",
    bytes: patched(nothing, [nothing.length - 512, "koly"]),
    dangers: [],
  };
  yield* readOnlyInputs(nothing);
  yield {
    name: "gzip",
    bytes: patched(nothing, [0, [0x1f, 0x8b, 8]]),
    dangers: [],
    warnings: ["wrapped"],
  };
  yield {
    name: "tar",
    bytes: patched(nothing, [257, "ustar"]),
    dangers: [],
    warnings: ["wrapped"],
  };
}

/** Formats that are only read; a disk that is far too large is a bomb. */
function* readOnlyInputs(nothing: Bytes): Generator<Input> {
  const end = nothing.length - 512;
  const koly = [end, "koly"] as [number, string];
  yield {
    name: "dmg of 1 MiB",
    bytes: patched(nothing, koly, [end + 492 + 6, [8]]),
    dangers: [],
  };
  yield {
    name: "dmg of 4 TiB, cut",
    bytes: patched(nothing, koly, [end + 492 + 3, [2]], [end + 224 + 4, [1]]),
    dangers: [],
    warnings: ["size-bomb", "truncated"],
  };
  yield {
    name: "dmg in parts",
    bytes: patched(nothing, koly, [end + 63, [2]]),
    dangers: ["extents"],
    isOurs: true,
  };
  yield {
    name: "dmg, encrypted",
    bytes: patched(nothing, [0, "encrcdsa"]),
    dangers: [],
  };
  const script =
    "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r " +
    "-t iso9660 /dev/cloop $1\n";
  const cloop = (blockSize: number[], blocks: number[]) =>
    patched(nothing, [0, script], [128, blockSize], [132, blocks]);
  yield {
    name: "cloop",
    bytes: cloop([0, 1, 0, 0], [0, 0, 0, 16]),
    dangers: [],
  };
  yield {
    name: "cloop of 7 TiB, cut",
    bytes: cloop([0, 16, 0, 0], [0, 0x70, 0, 0]),
    dangers: [],
    warnings: ["size-bomb", "truncated"],
  };
  yield {
    name: "cloop with a table of 2 GiB",
    bytes: cloop([0, 0, 2, 0], [16, 0, 0, 0]),
    dangers: ["excessive-table"],
    isOurs: true,
  };
  yield {
    name: "cloop with odd blocks",
    bytes: cloop([0, 0, 2, 1], [0, 0, 0, 1]),
    dangers: [],
    warnings: ["damaged"],
  };
  const bochs = patched(
    nothing,
    [0, "Bochs Virtual HD Image\0"],
    [32, "Redolog\0"],
    [48, "Growing\0"],
    [66, [2]],
    [69, [2]],
    [72, [16]],
    [90, [16]],
  );
  yield { name: "bochs", bytes: bochs, dangers: [] };
  yield {
    name: "bochs of 1 TiB, cut",
    bytes: patched(bochs, [72, [0, 0, 8]], [90, [0, 0, 0, 1]]),
    dangers: [],
    warnings: ["size-bomb", "truncated"],
  };
  yield {
    name: "bochs with a large catalog",
    bytes: patched(bochs, [75, [1]]),
    dangers: ["excessive-table"],
    isOurs: true,
  };
  yield {
    name: "bochs, undoable",
    bytes: patched(bochs, [48, "Undoable\0"]),
    dangers: [],
    warnings: ["version"],
  };
  const asif = patched(nothing, [0, "shdw"], [7, [1]], [54, [8]], [68, [2]]);
  yield { name: "asif", bytes: asif, dangers: [] };
  yield {
    name: "asif of 4 TiB",
    bytes: patched(asif, [51, [2]]),
    dangers: [],
    warnings: ["size-bomb"],
  };
  yield {
    name: "asif version 2",
    bytes: patched(asif, [7, [2]]),
    dangers: [],
    warnings: ["version"],
  };
}

function* diskInputs(): Generator<Input> {
  const nothing = allocate(1024 * 1024);
  const signature = [510, [0x55, 0xaa]] as [number, number[]];
  /** An MBR entry: active flag, CHS, type, CHS, first sector, sector count. */
  const entry = (index: number, bytes: readonly number[]) =>
    [446 + 16 * index, bytes] as [number, readonly number[]];
  const linux = [0x80, 0, 2, 0, 0x83, 0, 2, 0, 1, 0, 0, 0, 9, 0, 0, 0];
  const gpt = [0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 9, 0, 0, 0];
  const mbr = (...patches: [number, readonly number[] | string][]) =>
    patched(nothing, signature, ...patches);
  const table = [512, "EFI PART"] as [number, string];
  const size = [512 + 72, [2, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 128]] as [
    number,
    number[],
  ];
  const used = [1024, [1]] as [number, number[]];
  yield { name: "mbr", bytes: mbr(entry(0, linux)), dangers: [] };
  yield { name: "mbr, last", bytes: mbr(entry(3, linux)), dangers: [] };
  yield { name: "mbr without partitions", bytes: mbr(), dangers: ["mbr"] };
  yield {
    name: "mbr with a wrong flag",
    bytes: mbr(entry(0, [7, ...linux.slice(1)])),
    dangers: ["mbr"],
  };
  const whole = mbr(entry(0, gpt), table, size, used);
  yield { name: "gpt", bytes: whole, dangers: [] };
  yield {
    name: "gpt without its table",
    bytes: mbr(entry(0, gpt)),
    dangers: [],
    warnings: ["gpt"],
  };
  const faults: [string, [number, readonly number[]][]][] = [
    ["and another partition", [entry(0, gpt), entry(1, linux)]],
    ["in the second entry", [entry(1, gpt)]],
    ["with another CHS", [entry(0, gpt.with(2, 1))]],
    ["with another start", [entry(0, gpt.with(8, 2))]],
  ];
  for (const [name, entries] of faults) {
    yield {
      name: `gpt ${name}`,
      bytes: mbr(...entries, table, size, used),
      dangers: ["mbr"],
    };
  }
  yield {
    name: "fat",
    bytes: mbr([16, [2]], [21, [0xf8]], [82, "FAT32   "]),
    dangers: [],
  };
  yield { name: "ntfs", bytes: mbr([3, "NTFS    "]), dangers: ["mbr"] };
  yield {
    name: "ext",
    bytes: patched(nothing, [1080, [0x53, 0xef]]),
    dangers: [],
  };
  yield {
    name: "btrfs",
    bytes: patched(nothing, [65600, "_BHRfS_M"]),
    dangers: [],
  };
  for (const magic of ["CD001", "NSR02", "NSR03"]) {
    yield {
      name: `iso ${magic}`,
      bytes: patched(nothing, [32768, [1]], [32769, magic]),
      dangers: [],
    };
  }
  yield {
    name: "iso and mbr",
    bytes: patched(mbr(entry(0, linux)), [32769, "CD001"]),
    dangers: ["multiple-formats"],
  };
  yield {
    name: "iso cut off",
    bytes: patched(nothing, [32769, "CD001"]).slice(0, 33_000),
    dangers: [],
  };
}

/** All inputs. */
export async function* inputs(): AsyncGenerator<Input> {
  yield* qcow2Inputs();
  yield* vmdkInputs();
  yield* otherInputs();
  yield* diskInputs();
}
