/**
 * Headers that must be refused, each in QEMU's words, and what must be kept of
 * those that are not.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import type { OpenOptions } from "../../../core/open_options.ts";
import type { OptionValues } from "../../../core/options.ts";
import { openImage } from "../../../mod.ts";
import { openProtocol } from "../../../core/open.ts";
import { readHeader } from "../../../drivers/qcow2/header.ts";
import { qemuTest, run, TempDir } from "../../qemu.ts";
import {
  contentOf,
  extension,
  newImage,
  openBytes,
  put32,
  put64,
  putExtensions,
  storeOf,
} from "./bytes.ts";

/** A fault of a header, and the message about it. */
interface Refusal {
  readonly what: string;
  readonly code: string;
  readonly message: string;
  patch(bytes: Uint8Array): void;
  /** Options of the image. */
  readonly create?: OptionValues;
  readonly open?: OpenOptions;
  /** Options of the driver. */
  readonly stack?: OptionValues;
  /** Why QEMU is not asked, where it must not be. */
  readonly notQemu?: string;
}

const utf8 = (text: string) => new TextEncoder().encode(text);
const CRYPTO = 0x0537be77;
const BITMAPS = 0x23852875;
const BACKING_FORMAT = 0xe2792aca;
const FEATURES = 0x6803f857;

/** A row of a feature name table. */
function featureName(type: number, bit: number, name: string): Uint8Array {
  const row = new Uint8Array(48);
  row.set([type, bit]);
  row.set(utf8(name), 2);
  return row;
}

function concat(...parts: Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

function bitmaps(count: number, size: number, offset: number, rest = 0) {
  const data = new Uint8Array(24);
  put32(data, 0, count, rest);
  put64(data, 8, size, offset);
  return extension(BITMAPS, data);
}

const AUTOCLEAR_BITMAPS = (bytes: Uint8Array) => put64(bytes, 88, 1);

const REFUSALS: readonly Refusal[] = [
  {
    what: "another magic",
    code: "EINVAL",
    message: "Image is not in qcow2 format",
    patch: (b) => put32(b, 0, 0x514649fc),
  },
  ...[0, 1, 4, 0xffffffff].map((version) => ({
    what: `version ${version}`,
    code: "ENOTSUP",
    message: `Unsupported qcow2 version ${version}`,
    patch: (b: Uint8Array) => put32(b, 4, version),
  })),
  ...[0, 8, 22, 0x80000000].map((bits) => ({
    what: `2^${bits} bytes a cluster`,
    code: "EINVAL",
    message: `Unsupported cluster size: 2^${bits}`,
    patch: (b: Uint8Array) => put32(b, 20, bits),
  })),
  {
    what: "a header of 103 bytes",
    code: "EINVAL",
    message: "qcow2 header too short",
    patch: (b) => put32(b, 100, 103),
  },
  {
    what: "a header longer than a cluster",
    code: "EINVAL",
    message: "qcow2 header exceeds cluster size",
    patch: (b) => put32(b, 100, 4104),
  },
  {
    what: "a backing file name in the second cluster",
    code: "EINVAL",
    message: "Invalid backing file offset",
    patch: (b) => put64(b, 8, 4097),
  },
  {
    what: "a compression type of the future",
    code: "ENOTSUP",
    message: "qcow2: unknown compression type: 2",
    patch: (b) => b[104] = 2,
  },
  {
    what: "zlib with the bit for other types",
    code: "EINVAL",
    message: "qcow2: Compression type incompatible feature bit must not be set",
    patch: (b) => put64(b, 72, 8),
  },
  {
    what: "zstd without its bit",
    code: "EINVAL",
    message: "qcow2: Compression type incompatible feature bit must be set",
    patch: (b) => b[104] = 1,
  },
  {
    what: "an unknown feature without a name",
    code: "ENOTSUP",
    message:
      "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000020",
    patch: (b) => put64(b, 72, 0x8000000000000020n),
  },
  {
    what: "unknown features, some with names",
    code: "ENOTSUP",
    message:
      "Unsupported qcow2 feature(s): time travel, mind reading, Unknown incompatible feature: 80",
    patch: (b) => {
      put64(b, 72, (1n << 40n) | (1n << 62n) | 0x80n);
      putExtensions(
        b,
        extension(
          FEATURES,
          concat(
            featureName(0, 40, "time travel"),
            featureName(1, 7, "of another type"),
            featureName(0, 62, "mind reading"),
            featureName(0, 63, "not in use"),
          ),
        ),
      );
    },
  },
  {
    what: "an unterminated feature name",
    code: "ENOTSUP",
    message: `Unsupported qcow2 feature(s): ${"x".repeat(46)}`,
    patch: (b) => {
      put64(b, 72, 0x100);
      putExtensions(b, extension(FEATURES, featureName(0, 8, "x".repeat(46))));
    },
  },
  {
    what: "the corrupt bit, for writing",
    code: "EACCES",
    message: "qcow2: Image is corrupt; cannot be opened read/write",
    patch: (b) => put64(b, 72, 2),
    notQemu: "it opens the image read-only just to say so",
  },
  {
    what: "extended L2 entries in small clusters",
    code: "EINVAL",
    message: "Unsupported subcluster size: 128",
    patch: (b) => put64(b, 72, 16),
  },
  {
    what: "refcounts of 128 bits",
    code: "EINVAL",
    message: "Reference count entry width too large; may not exceed 64 bits",
    patch: (b) => put32(b, 96, 7),
  },
  {
    what: "no refcount table",
    code: "EINVAL",
    message: "Image does not contain a reference count table",
    patch: (b) => put32(b, 56, 0),
  },
  {
    what: "a refcount table of more than 8 MiB",
    code: "EFBIG",
    message: "Reference count table too large",
    patch: (b) => put32(b, 56, 2049),
  },
  {
    what: "an unaligned refcount table",
    code: "EINVAL",
    message: "Reference count table offset invalid",
    patch: (b) => put64(b, 48, 4608),
  },
  {
    what: "a refcount table past any file's end",
    code: "EINVAL",
    message: "Reference count table offset invalid",
    patch: (b) => put64(b, 48, 0x7ffffffffffff000n),
  },
  {
    what: "65537 snapshots",
    code: "EFBIG",
    message: "Snapshot table too large",
    patch: (b) => put32(b, 60, 65537),
  },
  {
    what: "an unaligned snapshot table, although it is empty",
    code: "EINVAL",
    message: "Snapshot table offset invalid",
    patch: (b) => put64(b, 64, 1),
  },
  {
    what: "an L1 table of more than 32 MiB",
    code: "EFBIG",
    message: "Active L1 table too large",
    patch: (b) => put32(b, 36, 4194305),
  },
  {
    what: "an unaligned L1 table",
    code: "EINVAL",
    message: "Active L1 table offset invalid",
    patch: (b) => put64(b, 40, 12296),
  },
  {
    what: "a size that needs more than 2^31 L1 entries",
    code: "EFBIG",
    message: "Image is too big",
    patch: (b) => put64(b, 24, 2n ** 53n),
  },
  {
    what: "an L1 table too small for the disk",
    code: "EINVAL",
    message: "L1 table is too small",
    patch: (b) => put64(b, 24, 2097152 + 512),
  },
  {
    what: "an unterminated extension",
    code: "EINVAL",
    message: "Header extension too large",
    patch: (b) => put32(b, 112, 0x12345678, 4096 - 119),
  },
  {
    what: "an extension that runs into the backing file name",
    code: "EINVAL",
    message: "Header extension too large",
    create: { backing_file: "base.img", backing_fmt: "raw" },
    patch: (b) => put32(b, 116, 100),
  },
  {
    what: "a long backing format",
    code: "EINVAL",
    message: "ERROR: ext_backing_format: len=16 too large (>=16)",
    patch: (b) =>
      putExtensions(b, extension(BACKING_FORMAT, utf8("x".repeat(16)))),
  },
  {
    what: "an encryption header without encryption",
    code: "EINVAL",
    message:
      "CRYPTO header extension only expected with LUKS encryption method",
    patch: (b) => putExtensions(b, extension(CRYPTO, new Uint8Array(16))),
  },
  {
    what: "a short encryption header extension",
    code: "EINVAL",
    message: "CRYPTO header extension size 8, but expected size 16",
    patch: (b) => {
      put32(b, 32, 2);
      putExtensions(b, extension(CRYPTO, new Uint8Array(8)));
    },
  },
  {
    what: "an unaligned encryption header",
    code: "EINVAL",
    message:
      "Encryption header offset '4608' is not a multiple of cluster size '4096'",
    patch: (b) => {
      put32(b, 32, 2);
      const place = new Uint8Array(16);
      put64(place, 0, 4608, 512);
      putExtensions(b, extension(CRYPTO, place));
    },
  },
  {
    what: "an unknown encryption method",
    code: "EINVAL",
    message: "Unsupported encryption method 3",
    patch: (b) => put32(b, 32, 3),
  },
  {
    what: "LUKS without its header",
    code: "EINVAL",
    message: "Missing CRYPTO header for crypt method 2",
    patch: (b) => put32(b, 32, 2),
    notQemu: "it crashes",
  },
  {
    what: "a bitmaps extension of the wrong length",
    code: "EINVAL",
    message: "bitmaps_ext: Invalid extension length",
    patch: (b) => putExtensions(b, extension(BITMAPS, new Uint8Array(16))),
  },
  {
    what: "bitmaps with a reserved field in use",
    code: "EINVAL",
    message: "bitmaps_ext: Reserved field is not zero",
    patch: (b) => {
      AUTOCLEAR_BITMAPS(b);
      putExtensions(b, bitmaps(1, 64, 4096, 1));
    },
  },
  {
    what: "too many bitmaps",
    code: "EINVAL",
    message:
      "bitmaps_ext: Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535",
    patch: (b) => {
      AUTOCLEAR_BITMAPS(b);
      putExtensions(b, bitmaps(65536, 64, 4096));
    },
  },
  {
    what: "a bitmaps extension without bitmaps",
    code: "EINVAL",
    message: "found bitmaps extension with zero bitmaps",
    patch: (b) => {
      AUTOCLEAR_BITMAPS(b);
      putExtensions(b, bitmaps(0, 64, 4096));
    },
  },
  {
    what: "an unaligned bitmap directory",
    code: "EINVAL",
    message: "bitmaps_ext: invalid bitmap directory offset",
    patch: (b) => {
      AUTOCLEAR_BITMAPS(b);
      putExtensions(b, bitmaps(1, 64, 4608));
    },
  },
  {
    what: "a large bitmap directory",
    code: "EINVAL",
    message:
      "bitmaps_ext: bitmap directory size (67107841) exceeds the maximum supported size (67107840)",
    patch: (b) => {
      AUTOCLEAR_BITMAPS(b);
      putExtensions(b, bitmaps(1, 67107841, 4096));
    },
  },
  {
    what: "a backing file name of 1024 bytes",
    code: "EINVAL",
    message: "Backing file name too long",
    patch: (b) => {
      put64(b, 8, 2048);
      put32(b, 16, 1024);
    },
  },
  {
    what: "a backing file name past its cluster",
    code: "EINVAL",
    message: "Backing file name too long",
    patch: (b) => {
      put64(b, 8, 4090);
      put32(b, 16, 7);
    },
  },
  {
    what: "sizes of all caches",
    code: "EINVAL",
    message:
      "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
    stack: {
      "cache-size": 65536,
      "l2-cache-size": 4096,
      "refcount-cache-size": 4096,
    },
    patch: () => {},
  },
  {
    what: "an L2 cache larger than all caches",
    code: "EINVAL",
    message: "l2-cache-size may not exceed cache-size",
    stack: { "cache-size": 65536, "l2-cache-size": 65537 },
    patch: () => {},
  },
  {
    what: "a refcount cache larger than all caches",
    code: "EINVAL",
    message: "refcount-cache-size may not exceed cache-size",
    stack: { "cache-size": 65536, "refcount-cache-size": 65537 },
    patch: () => {},
  },
  ...[256, 3000, 8192].map((size) => ({
    what: `an L2 cache entry of ${size} bytes`,
    code: "EINVAL",
    message:
      "L2 cache entry size must be a power of two between 512 and the cluster size (4096)",
    stack: { "l2-cache-entry-size": size },
    patch: () => {},
  })),
];

for (const refusal of REFUSALS) {
  const { what, code, message, patch, create, open, stack } = refusal;
  Deno.test(`a qcow2 image with ${what} is refused`, async () => {
    const bytes = await newImage(create);
    patch(bytes);
    const error = await assertRejects(
      () => openBytes(bytes, open, stack),
      BlockError,
    );
    assertEquals(error.message, message);
    assertEquals(error.code, code);
  });
}

qemuTest("QEMU refuses these images with the same words", async () => {
  await using folder = new TempDir();
  const name = folder.file("image.qcow2");
  for (const { what, message, patch, create, stack, notQemu } of REFUSALS) {
    if (notQemu !== undefined) continue;
    const bytes = await newImage(create);
    patch(bytes);
    Deno.writeFileSync(name, bytes);
    const description = JSON.stringify({
      driver: "qcow2",
      file: { driver: "file", filename: name },
      backing: null,
      ...stack,
    });
    const { code, stderr } = await run(
      ["qemu-io", "-r", "-c", "quit", `json:${description}`],
    );
    assertEquals(code, 1, what);
    assertEquals(
      stderr.trim(),
      `qemu-io: can't open device json:${description}: ${message}`,
      what,
    );
  }
}, ["qemu-io"]);

Deno.test("info opens an image whose other files are missing", async () => {
  const bytes = await newImage({
    backing_file: "/no/such",
    backing_fmt: "raw",
  });
  const node = await openBytes(bytes, { purpose: "info", readOnly: true });
  const info = await node.info!();
  assertEquals([info.backingFile, info.backingFormat], ["/no/such", "raw"]);
});

Deno.test("a corrupt image can be read, and opened to check it", async () => {
  const bytes = await newImage();
  put64(bytes, 72, 2);
  await openBytes(bytes, { readOnly: true });
  await openBytes(bytes, { purpose: "check" });
});

Deno.test("check opens an image without refcount and snapshot tables", async () => {
  const bytes = await newImage();
  put32(bytes, 56, 0);
  put64(bytes, 64, 1);
  await openBytes(bytes, { purpose: "check", readOnly: true });
});

Deno.test("opening for writing clears autoclear bits and keeps unknown fields", async () => {
  const bytes = await newImage();
  const future = [
    extension(0x11111111, utf8("one")),
    extension(0x22222222, utf8("twotwotwo")),
  ];
  // A header of 120 bytes, and unknown bits.
  put64(bytes, 112, 0x0123456789abcdefn);
  put32(bytes, 100, 120);
  put64(bytes, 80, 0xf0);
  put64(bytes, 88, 0xf000000000000004n);
  bytes.set(concat(...future), 120);
  const store = storeOf(bytes);
  const file = { driver: "memory", store };

  await using reader = await openImage({ driver: "qcow2", file }, {
    readOnly: true,
  });
  assertEquals(contentOf(store), bytes);
  await reader.close();
  await using image = await openImage({ driver: "qcow2", file });
  await image.node.image!.changeBacking!("base.img", "raw");
  await image.close();

  const protocol = await openProtocol(file);
  const header = await readHeader(protocol, {
    readOnly: true,
    forCheck: false,
    warn: () => {},
  });
  assertEquals(header.autoclear, { high: 0, low: 0 });
  assertEquals(header.compatible, { high: 0, low: 0xf0 });
  assertEquals([...header.unknownFields], [
    ...[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef],
  ]);
  const kept = header.unknownExtensions.map(({ type }) => type).sort();
  assertEquals(kept, [0x11111111, 0x22222222]);
  assertEquals(header.backingFile, "base.img");
  assertEquals(header.backingFormat, "raw");
});

Deno.test("a backing file name without room is refused, without changing anything", async () => {
  const store = storeOf(await newImage({ cluster_size: 512 }));
  const before = contentOf(store);
  const file = { driver: "memory", store };
  await using image = await openImage({ driver: "qcow2", file });
  for (const length of [400, 1024]) {
    const error = await assertRejects(
      () => image.node.image!.changeBacking!("x".repeat(length)),
      BlockError,
    );
    assertEquals(error.code, length > 1023 ? "EINVAL" : "ENOSPC");
    assertEquals(contentOf(store), before);
    assertEquals((await image.info()).backingFile, undefined);
  }
});

Deno.test("half a sector at the end of the disk does not belong to it", async () => {
  const bytes = await newImage();
  put64(bytes, 24, 1000);
  const node = await openBytes(bytes);
  assertEquals(node.size, 512);
});
