import { assert, assertEquals, assertRejects } from "@std/assert";
import { allocate } from "../../../core/bytes.ts";
import { BUDGET } from "../../../core/inspect/window.ts";
import {
  BlockError,
  createImage,
  inspect,
  type Inspection,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { Random } from "../../model.ts";
import { TempDir } from "../../qemu.ts";
import { storeOf } from "../../drivers/qcow2/bytes.ts";
import { inputs } from "./inspect_inputs.ts";

const memory = (bytes: Uint8Array) => ({
  driver: "memory",
  store: storeOf(bytes),
});

/** The checks that found something of a severity, without duplicates. */
function checksOf({ findings }: Inspection, severity: string): string[] {
  const checks = findings.filter((finding) => finding.severity === severity)
    .map(({ check }) => check);
  return [...new Set(checks)].sort();
}

async function* inChunks(bytes: Uint8Array, size: number) {
  for (let at = 0; at < bytes.length; at += size) {
    yield await Promise.resolve(bytes.subarray(at, at + size));
  }
}

Deno.test("inspect() finds what is suspicious about an image, and nothing else", async () => {
  for await (const { name, bytes, dangers, warnings = [] } of inputs()) {
    const inspection = await inspect(memory(bytes));
    const found = ["danger", "warning"].map((one) => checksOf(inspection, one));
    assertEquals(found, [dangers.toSorted(), warnings.toSorted()], name);
    const verdict = dangers.length > 0
      ? "unsafe"
      : warnings.length > 0
      ? "suspect"
      : "safe";
    assertEquals(inspection.verdict, verdict, name);
    assert(inspection.bytesRead <= BUDGET, name);
  }
});

Deno.test("inspect() finds the same in a stream, up to its first MiB", async () => {
  for await (const { name, bytes } of inputs()) {
    const whole = await inspect(memory(bytes));
    const { bytesRead: _, ...found } = whole;
    for (const size of [777, 65536]) {
      const options = { whole: bytes.length > BUDGET };
      const { bytesRead, ...streamed } = await inspect(
        inChunks(bytes, size),
        options,
      );
      assert(bytesRead <= BUDGET, name);
      const refused = found.files.map((file) => ({ ...file, gate: "refused" }));
      assertEquals(
        streamed,
        { ...found, files: refused } as typeof found,
        name,
      );
    }
  }
});

Deno.test("inspect() reads no more of a stream than it needs, unless told to", async () => {
  let asked = 0;
  async function* endless() {
    for (;;) {
      asked += 65536;
      yield await Promise.resolve(new Uint8Array(65536));
    }
  }
  const inspection = await inspect(endless());
  assert(asked <= BUDGET + 2 * 65536);
  assertEquals(checksOf(inspection, "warning"), ["end-not-seen"]);
  assertEquals(inspection.fileSize, undefined);

  const disk = new Uint8Array(5 * BUDGET);
  disk.set(new TextEncoder().encode("koly"), disk.length - 512);
  const whole = await inspect(inChunks(disk, 10_000), { whole: true });
  assertEquals([whole.format, whole.fileSize], ["dmg", disk.length]);
});

Deno.test("inspect() recognizes formats, sizes, tables and file systems", async () => {
  const facts: { [name: string]: Partial<Inspection> } = {
    "qcow2": { format: "qcow2", virtualSize: 64 * 1024 ** 2 },
    "qcow2 version 1": { format: "qcow", virtualSize: 64 * 1024 ** 2 },
    "qcow2 with snapshots": { format: "qcow2", snapshots: 2 },
    "qcow2 luks": { encrypted: true },
    "qcow2 and VDI": { format: undefined, matches: ["qcow2", "vdi"] },
    "qcow2 and MBR": { format: "qcow2", matches: ["qcow2", "mbr"] },
    "vmdk": { format: "vmdk", virtualSize: 64 * 1024 ** 2 },
    "vmdk flat": { format: "vmdk", virtualSize: 1024 ** 2 },
    "vmdk stream": { format: "vmdk", virtualSize: 64 * 1024 ** 2 },
    "vhdx": { format: "vhdx", virtualSize: 64 * 1024 ** 2 },
    "vdi": { format: "vdi", virtualSize: 64 * 1024 ** 2 },
    "vpc": { format: "vpc" },
    "parallels": { format: "parallels" },
    "luks": { format: "luks", encrypted: true },
    "mbr": { format: "raw", partitionTable: { type: "mbr", partitions: 1 } },
    "gpt": { format: "raw", partitionTable: { type: "gpt", partitions: 1 } },
    "fat": { fileSystem: "fat", partitionTable: undefined },
    "ext": { fileSystem: "ext", matches: [] },
    "btrfs": { fileSystem: "btrfs" },
    "iso CD001": { format: "raw", fileSystem: "iso9660", matches: ["iso"] },
    "iso NSR02": { fileSystem: "udf" },
    "dmg": { format: "dmg" },
    "dmg of 1 MiB": { format: "dmg", virtualSize: 1024 ** 2 },
    "dmg, encrypted": { format: "dmg", encrypted: true },
    "cloop": { format: "cloop", virtualSize: 1024 ** 2 },
    "bochs": { format: "bochs", virtualSize: 1024 ** 2 },
    "asif": { format: "asif", virtualSize: 1024 ** 2 },
    "empty": { format: "raw", fileSize: 0, virtualSize: 0 },
  };
  const seen = new Set<string>();
  for await (const { name, bytes } of inputs()) {
    const inspection = await inspect(memory(bytes));
    for (const [key, value] of Object.entries(facts[name] ?? {})) {
      assertEquals(
        inspection[key as keyof Inspection],
        value,
        `${name} ${key}`,
      );
      seen.add(name);
    }
  }
  assertEquals(seen.size, Object.keys(facts).length);
});

Deno.test("inspect() says what a file is that contains something packed", async () => {
  const stream = new Blob(["a disk"]).stream()
    .pipeThrough(new CompressionStream("gzip"));
  const bytes = await new Response(stream).bytes();
  const { findings } = await inspect(memory(bytes));
  assertEquals(findings.map(({ check, message }) => [check, message]), [
    ["wrapped", "it is compressed with gzip: its content was not inspected"],
  ]);
});

Deno.test("inspect() opens nothing that an image names, and reports the gate's verdict", async () => {
  await using folder = new TempDir();
  await Deno.mkdir(folder.file("in"));
  const filename = folder.file("in/overlay");
  for (
    const [name, gate] of [
      ["base.qcow2", "allowed"],
      ["../base.qcow2", "refused"],
      ["/etc/passwd", "refused"],
      ["nbd://127.0.0.1:1/x", "refused"],
      ['json:{"driver":"file","filename":"/etc/passwd"}', "refused"],
    ]
  ) {
    const bytes = await overlayOf(name);
    await Deno.writeFile(filename, bytes);
    const { files } = await inspect(filename);
    assertEquals(files.map((file) => [file.filename, file.gate]), [[
      name,
      gate,
    ]]);
    const asked: string[] = [];
    const permitted = await inspect(filename, {
      gate: ({ filename }) => asked.push(filename) > 0,
    });
    assertEquals(permitted.files[0].gate, "allowed");
    assertEquals(asked.length, 1);
  }
});

/** A qcow2 image that names a backing file, which need not exist. */
async function overlayOf(name: string): Promise<Uint8Array> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size: 1 << 20 });
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(8, 4096n);
  view.setUint32(16, name.length);
  bytes.set(new TextEncoder().encode(name), 4096);
  return bytes;
}

Deno.test("inspect() reads only the node that it is given, and closes only its own", async () => {
  const store = storeOf(await overlayOf("base"));
  await using image = await openImage({ driver: "memory", store });
  const { node } = image;
  const inspection = await inspect(node);
  assertEquals(inspection.format, "qcow2");
  assertEquals((await image.read(0, 3)).length, 3);
  await assertRejects(
    () => inspect({ driver: "qcow2", file: { driver: "memory", store } }),
    BlockError,
    "name its file",
  );
  await assertRejects(
    () =>
      inspect({
        driver: "blkdebug",
        image: { driver: "qcow2", file: { driver: "memory", store } },
      }),
    BlockError,
    "name its file",
  );
  await assertRejects(() => inspect("/nonexistent/x"), BlockError, "No such");
});

Deno.test("inspect() of any content gives a verdict, and reads at most 1 MiB", async () => {
  const all: Uint8Array[] = [];
  for await (const { bytes } of inputs()) all.push(bytes);
  const rounds = Number(Deno.env.get("BDRV_HOSTILE_SEEDS") ?? "300");
  for (let seed = 0; seed < rounds; seed++) {
    const random = new Random(seed);
    const original = random.pick(all);
    let bytes = new Uint8Array(original.subarray(0, 2 * BUDGET));
    for (let left = 1 + random.below(4); left > 0 && bytes.length > 0; left--) {
      const at = random.below(
        Math.min(bytes.length, random.pick([128, 1024, 400_000])),
      );
      bytes[at] = random.pick([0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1]);
    }
    if (random.below(4) === 0) {
      bytes = bytes.slice(0, random.below(bytes.length + 1));
    }
    const { bytesRead, verdict } = await inspect(memory(bytes)).catch(
      (error) => {
        throw new Error(`seed ${seed}`, { cause: error });
      },
    );
    assert(bytesRead <= BUDGET && verdict.length > 0, `seed ${seed}`);
  }
});

Deno.test("inspect() bounds its memory and its reads, whatever a header claims", async () => {
  const text = '# Disk DescriptorFile\nversion=1\ncreateType="x"\n';
  const long = new TextEncoder().encode(text + "# x\n".repeat(1024 * 1024));
  const found = await inspect(memory(long));
  assertEquals(found.verdict, "unsafe");
  assert(found.bytesRead <= BUDGET);
  const wide = allocate(3 * BUDGET);
  wide.set(new TextEncoder().encode("vhdxfile"));
  assert((await inspect(memory(wide))).bytesRead <= BUDGET);
});
