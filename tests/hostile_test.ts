/** What hostile images must not achieve, whatever is done with them. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  convert,
  createImage,
  MemoryStore,
  openImage,
} from "../mod.ts";
import { put32, put64, storeOf } from "./drivers/qcow2/bytes.ts";
import { Random } from "./drivers/qcow2/damage.ts";
import { GOLDEN, goldenBytes, goldenData } from "./drivers/qcow2/golden.ts";
import {
  BACKING_NAMES,
  damageLuks,
  makeHostile,
  mistake,
  OPERATIONS,
} from "./hostile.ts";
import { TempDir } from "./qemu.ts";

/** How many images are made; BDRV_HOSTILE_SEEDS sets more. */
const SEEDS = Number(Deno.env.get("BDRV_HOSTILE_SEEDS") ?? "40");
const FIRST = Number(Deno.env.get("BDRV_HOSTILE_FIRST") ?? "0");

/** The time limit of each operation, in milliseconds. */
const LONGEST = 10_000;
/** The limit on the growth of memory in use by its end, in bytes. */
const MOST_MEMORY = 400 * 1024 ** 2;

/** The limit for opening encrypted images. */
const UNLOCKING = { "encrypt.max-unlock-time": 1000 };
/** Images with bitmaps, keys, subclusters and a data file. */
const RICH = [
  ...["bitmaps.qcow2", "luks.qcow2", "extended.qcow2", "data-file.qcow2"],
  ...["bitmap.qcow2", "raw-data.qcow2", "luks-extended.qcow2"],
];
const NAMES = [...new Set(GOLDEN.map(({ name }) => name))]
  .filter((name) => name.endsWith(".qcow2"));

Deno.test("on a damaged image, each operation succeeds or says why not", async () => {
  await using folder = new TempDir();
  const found: string[] = [];
  for (let seed = FIRST; seed < FIRST + SEEDS; seed++) {
    const random = new Random(seed);
    // Half of the images have something that others lack.
    const image = random.pick(seed % 2 === 0 ? RICH : NAMES);
    const original = await goldenBytes(image);
    const { bytes, what } = makeHostile(original, random);
    // Half of them are files, so that names of backing files are relative to
    // them.
    const filename = seed % 2 === 0 ? undefined : folder.file("hostile");
    for (const [name, operate] of Object.entries(OPERATIONS)) {
      if (filename) await Deno.writeFile(filename, bytes);
      const file = filename
        ? { driver: "file", filename }
        : { driver: "memory", store: storeOf(bytes) };
      const options = { secrets: () => "sesame", maxChain: 8 };
      const start = performance.now();
      const before = Deno.memoryUsage().rss;
      let wrong: string | undefined;
      try {
        const data = await goldenData(image);
        const time = image.startsWith("luks") ? UNLOCKING : {};
        const stack = { driver: "qcow2", file, ...data, ...time };
        await operate({ stack, options }, new Random(seed));
      } catch (error) {
        wrong = mistake(error);
      }
      const time = performance.now() - start;
      if (time > LONGEST) wrong ??= `${Math.round(time)} ms`;
      const memory = Deno.memoryUsage().rss - before;
      if (memory > MOST_MEMORY) wrong ??= `${memory} bytes`;
      if (wrong) found.push(`${seed} ${name} (${what}): ${wrong}`);
    }
  }
  assertEquals(found.join("\n"), "");
});

Deno.test("with a damaged LUKS header, opening succeeds or says why not", async () => {
  const original = await goldenBytes("disk.luks");
  const found: string[] = [];
  const secrets = () => "sesame";
  for (let seed = FIRST; seed < FIRST + 10 * SEEDS; seed++) {
    const random = new Random(seed);
    const length = random.below(8) > 0
      ? original.length
      : random.below(2 ** 19);
    const bytes = original.slice(0, length);
    const steps = [];
    for (let left = random.pick([1, 1, 2, 3]); left > 0; left--) {
      if (bytes.length > 0) steps.push(damageLuks(bytes, 0, random));
    }
    const start = performance.now();
    let wrong: string | undefined;
    try {
      const file = { driver: "memory", store: storeOf(bytes) };
      const stack = { driver: "luks", file, "max-unlock-time": 300 };
      {
        await using image = await openImage(stack, {
          purpose: "info",
          readOnly: true,
        });
        await image.info();
      }
      await using image = await openImage(stack, { secrets });
      await image.write(0, await image.read(0, Math.min(5000, image.size)));
      const add = { state: "active", "new-secret": "new", "iter-time": 0 };
      await image.node.image!.amend!(add);
      await image.node.image!.amend!({ state: "inactive", keyslot: 0 });
    } catch (error) {
      wrong = mistake(error);
    }
    const time = performance.now() - start;
    if (time > LONGEST) wrong ??= `${Math.round(time)} ms`;
    if (wrong) found.push(`${seed} (${steps.join("; ")}): ${wrong}`);
  }
  assertEquals(found.join("\n"), "");
});

Deno.test("amend() skips the unused entries of the largest possible refcount table", async () => {
  const bytes = await goldenBytes("large-clusters.qcow2");
  const file = { driver: "memory", store: storeOf(bytes) };
  await using image = await openImage({ driver: "qcow2", file });
  const start = performance.now();
  await image.node.image!.amend!({ refcount_bits: 64 });
  // Only four of a million blocks exist; clearing a buffer for each would take
  // longer.
  assert(performance.now() - start < LONGEST);
});

Deno.test("reading a corrupt compressed cluster repeatedly does not pile up memory", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const size = 4 * 1024 ** 2;
  await createImage("qcow2", file, { size, cluster_size: 2 * 1024 ** 2 });
  {
    await using image = await openImage({ driver: "qcow2", file });
    await image.writeCompressed(0, new Uint8Array(2 * 1024 ** 2).fill(7));
    const { value } = await image.node.snapshots!.list().then(() =>
      image.extents()[Symbol.asyncIterator]().next()
    );
    assertEquals(value.compressed, true);
  }
  // The offset of the compressed data, according to the L2 table.
  const entry = new Uint8Array(8);
  const l1 = new Uint8Array(8);
  store.read(3 * 2 * 1024 ** 2, l1);
  const l2 = Number(
    new DataView(l1.buffer).getBigUint64(0) & 0xffffffffffff00n,
  );
  store.read(l2, entry);
  const offsetBits = (1n << 49n) - 1n;
  const at = Number(new DataView(entry.buffer).getBigUint64(0) & offsetBits);
  store.write(at, new Uint8Array(512).fill(6));

  await using image = await openImage({ driver: "qcow2", file }, {
    readOnly: true,
  });
  const target = { driver: "memory", store: new MemoryStore(size) };
  await using copy = await openImage({ driver: "raw", file: target });
  const before = Deno.memoryUsage().external;
  let warnings = 0;
  await convert([image.node], copy.node, {
    salvage: true,
    warn: () => warnings++,
  });
  assertEquals(warnings, 2 * 1024 ** 2 / 512);
  // Once, each sector read took another 2 MiB.
  assert(Deno.memoryUsage().external - before < 200 * 1024 ** 2);
});

Deno.test("a header full of unknown extensions can be read and written", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const clusterSize = 2 * 1024 ** 2;
  const options = { size: 1 << 20, cluster_size: clusterSize };
  await createImage("qcow2", file, options);
  const extensions = new Uint8Array(clusterSize - 112 - 4096);
  for (let at = 0; at + 8 <= extensions.length; at += 8) {
    put32(extensions, at, 0x1234);
  }
  store.write(112, extensions);
  await using image = await openImage({ driver: "qcow2", file });
  await image.node.image!.changeBacking!("other", "raw");
  assertEquals((await image.info()).backingFile, "other");
});

Deno.test("messages about hostile images show what was found", async () => {
  const bytes = await goldenBytes("v3.qcow2");
  put32(bytes, 32, 0xffffffff);
  await assertRejects(
    () =>
      openImage({
        driver: "qcow2",
        file: { driver: "memory", store: storeOf(bytes) },
      }),
    BlockError,
    "Unsupported encryption method -1",
  );
  await assertRejects(
    () => openImage('json:{"driver":{"a":1}}'),
    BlockError,
    "Must specify either driver or file",
  );
});

Deno.test("no backing file name in an image leads out of its folder", async () => {
  await using folder = new TempDir();
  await Deno.mkdir(folder.file("in"));
  const filename = folder.file("in/overlay");
  await createImage("qcow2", filename, { size: 1 << 20 });
  const fresh = await Deno.readFile(filename);
  await Deno.writeFile(folder.file("secret"), new Uint8Array(512));
  const names = [
    ...BACKING_NAMES,
    folder.file("secret"),
    "../secret",
    `blkdebug::${folder.file("secret")}`,
    `blkdebug:${folder.file("secret")}:${filename}`,
    `json:{"driver":"quorum","children":["${folder.file("secret")}"]}`,
    `json:{"driver":"raw","file.filename":"${folder.file("secret")}"}`,
    `file:../secret`,
  ];
  const formats = ["raw", "qcow2", "blkdebug", "quorum", "throttle", "file"];
  for (const name of names) {
    for (const format of formats) {
      await Deno.writeFile(filename, withBacking(fresh, name, format));
      const opened: string[] = [];
      const error = await assertRejects(
        () =>
          openImage(filename, {
            onEvent: (_, file) => void opened.push(file),
            writableBacking: () => true,
          }),
        BlockError,
      );
      assertEquals(mistake(error), undefined);
      const inside = name.startsWith("x") || name === ".";
      assert(
        inside || /which is not permitted/.test(error.message),
        `${name}, ${format}: ${error.message}`,
      );
      assertEquals(opened.filter((file) => !file.startsWith(filename)), []);
    }
  }
});

Deno.test("no name of a data file leads out of the image's folder", async () => {
  await using folder = new TempDir();
  await Deno.mkdir(folder.file("in"));
  const filename = folder.file("in/image");
  const data_file = folder.file("in/data");
  await createImage("qcow2", filename, { size: 1 << 20, data_file });
  await using _ = await openImage(filename);
  const fresh = await Deno.readFile(filename);
  await Deno.writeFile(folder.file("secret"), new Uint8Array(512));
  await Deno.symlink("../secret", folder.file("in/link"));
  const names = [
    ...BACKING_NAMES,
    folder.file("secret"),
    folder.file("in/../secret"),
    folder.file("in/link"),
    `file:${folder.file("in/data")}`,
  ];
  const other = folder.file("in/other");
  for (const name of names) {
    const bytes = fresh.slice();
    const text = new TextEncoder().encode(name);
    put32(bytes, 112, 0x44415441, text.length);
    bytes.fill(0, 120, 2000);
    bytes.set(text, 120);
    await Deno.writeFile(other, bytes);
    const opened: string[] = [];
    const error = await assertRejects(
      () => openImage(other, { onEvent: (_, file) => void opened.push(file) }),
      BlockError,
    );
    assertEquals(mistake(error), undefined);
    assert(/which is not permitted/.test(error.message), error.message);
    assertEquals(opened.filter((file) => !file.startsWith(other)), []);
  }
});

/** The image, naming another backing file and its format. */
function withBacking(
  image: Uint8Array,
  name: string,
  format: string,
): Uint8Array {
  const bytes = image.slice();
  const [text, type] = [name, format].map((s) => new TextEncoder().encode(s));
  put32(bytes, 112, 0xe2792aca, type.length);
  bytes.fill(0, 120, 152);
  bytes.set(type, 120);
  const offset = 4096;
  bytes.set(text, offset);
  put64(bytes, 8, offset);
  put32(bytes, 16, text.length);
  return bytes;
}
