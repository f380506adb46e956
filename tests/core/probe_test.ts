import { assert, assertEquals, assertRejects } from "@std/assert";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { openImage } from "../../core/image.ts";
import type { BlockNode } from "../../core/node.ts";
import type { OpenOptions } from "../../core/open_options.ts";
import { registerDriver } from "../../core/registry.ts";
import { MemoryStore } from "../../core/memory_store.ts";
import { memoryDriver } from "../../drivers/memory.ts";
import { rawDriver } from "../../drivers/raw.ts";
import { bytesOf, fileOf, HEADERS, RAW_DISKS, WRAPPED } from "./headers.ts";

// No other format has a driver here, not even qcow2.
registerDriver(memoryDriver);
registerDriver(rawDriver);

const SIZE = 65536;

function memory(bytes: Uint8Array) {
  const store = new MemoryStore(bytes.length);
  store.write(0, bytes);
  return { driver: "memory", store };
}

/** The format that a file is probed as, with any warnings. */
async function probed(
  bytes: Uint8Array,
  options: OpenOptions = {},
): Promise<[format: string, warnings: string[]]> {
  const warnings: string[] = [];
  await using image = await openImage({ file: memory(bytes) }, {
    readOnly: true,
    warn: (message) => warnings.push(message),
    ...options,
  });
  return [image.format, warnings];
}

async function refusal(bytes: Uint8Array): Promise<BlockError> {
  return await assertRejects(() => probed(bytes), BlockError);
}

Deno.test("an image of a format without a driver is refused, naming the format", async () => {
  for (const [format, ...pieces] of HEADERS) {
    const bytes = fileOf(pieces, SIZE);
    const error = await refusal(bytes);
    assertEquals(error.code, "ENOTSUP", format);
    assert(error.message.includes(`'${format}'`), error.message);
    assert(error.hint?.includes("-f raw"), error.hint);
    assertEquals(await probed(bytes, { format: "raw" }), ["raw", []]);
    // To describe it, its name is enough.
    const [described, [warning]] = await probed(bytes, { purpose: "info" });
    assertEquals(described, format);
    assert(warning.includes(`'${format}'`), warning);
  }
});

Deno.test("an image may end with its magic", async () => {
  for (const [format, ...pieces] of HEADERS) {
    const end = Math.max(...pieces.map(([at, text]) => at + text.length));
    const { message } = await refusal(fileOf(pieces, end));
    assert(message.includes(`'${format}'`), `${format}: ${message}`);
  }
});

Deno.test("a file that only resembles a format is raw", async () => {
  for (const [what, ...pieces] of RAW_DISKS) {
    const found = await probed(fileOf(pieces, SIZE));
    assertEquals(found, ["raw", []], what);
  }
  assertEquals(await probed(new Uint8Array()), ["raw", []]);
});

Deno.test("files that have to be unpacked are raw, with a hint", async () => {
  for (const [what, ...pieces] of WRAPPED) {
    const [format, [warning]] = await probed(fileOf(pieces, 3000));
    assertEquals(format, "raw", what);
    assert(warning.includes(what) && warning.includes("unpacked"), warning);
    const given = await probed(fileOf(pieces, 3000), { format: "raw" });
    assertEquals(given, ["raw", []]);
  }
});

Deno.test("footers are found where the last sector begins", async () => {
  const koly = bytesOf("koly\0\0\0\x04");
  const conectix = bytesOf("conectix");
  // Old programs wrote only 511 bytes of a VHD's footer.
  for (
    const [size, at] of [[4096, 3584], [512, 0], [4095, 3584], [4100, 3588]]
  ) {
    const file = new Uint8Array(size);
    file.set(koly, at);
    const { message } = await refusal(file);
    assert(message.includes("'dmg'"), message);
  }
  for (const [size, at] of [[4096, 3584], [4095, 3584]]) {
    const file = new Uint8Array(size);
    file.set(conectix, at);
    const [format, [warning]] = await probed(file);
    assertEquals(format, "raw");
    assert(warning.includes("VHD"), warning);
  }
});

Deno.test("a header outranks a footer, which a guest may have written", async () => {
  const file = fileOf([[0, "vhdxfile"], [3584, "koly\0\0\0\x04"]], 4096);
  const { message } = await refusal(file);
  assert(message.includes("'vhdx'") && !message.includes("dmg"), message);
});

Deno.test("a file that looks like two formats at once is refused", async () => {
  for (const [format, ...pieces] of HEADERS) {
    if (format === "vdi" || pieces.length > 1) continue;
    const [[at, text]] = pieces;
    if (at + text.length > 64) continue;
    const bytes = fileOf([...pieces, [64, "\x7f\x10\xda\xbe"]], SIZE);
    const error = await refusal(bytes);
    assertEquals(error.code, "EINVAL");
    assert(error.message.includes(`'${format}'`), error.message);
    assert(error.message.includes("'vdi'"), error.message);
    assertEquals((await probed(bytes, { format: "raw" }))[0], "raw");
  }
});

Deno.test("a disk whose last sector cannot be read is probed as raw", async () => {
  const file = {
    driver: memoryDriver,
    filename: "broken",
    size: 4096,
    readOnly: true,
    children: {},
    readv: (offset: number) =>
      offset >= 3584
        ? Promise.reject(new BlockError("EIO"))
        : Promise.resolve(),
    status: (_: number, length: number) =>
      Promise.resolve({ length, allocated: true, zero: false }),
    close: () => Promise.resolve(),
  } satisfies BlockNode;
  await using image = await openImage({ file }, { readOnly: true });
  assertEquals(image.format, "raw");
});

/** A driver for `name`, whose probe recognizes nothing. */
function driverNamed(name: string, probe?: BlockDriver["probe"]): BlockDriver {
  const driver: BlockDriver = {
    name,
    role: "format",
    ...(probe && { probe }),
    async open(_options, context) {
      const file = await context.openChild("file");
      return { ...rawNodeOf(file), driver };
    },
  };
  return driver;
}

function rawNodeOf(file: BlockNode): Omit<BlockNode, "driver"> {
  return {
    filename: file.filename,
    readOnly: true,
    size: file.size,
    children: { file },
    readv: (offset, iov) => file.readv(offset, iov),
    status: (offset, length) => file.status(offset, length),
    close: () => file.close(),
  };
}

Deno.test("a registered driver takes over its format", async () => {
  const vhdx = fileOf([[0, "vhdxfile"]], SIZE);
  const bochs = fileOf([[0, "Bochs Virtual HD Image\0"]], SIZE);
  const dmg = fileOf([[SIZE - 512, "koly\0\0\0\x04"]], SIZE);
  for (const bytes of [vhdx, bochs, dmg]) await refusal(bytes);
  registerDriver(driverNamed("vhdx"));
  // Its probe misses the image, but the magic is known: it must not become raw.
  registerDriver(driverNamed("bochs", () => 0));
  registerDriver(
    driverNamed("dmg", (_, name) => name.endsWith(".dmg") ? 2 : 0),
  );
  assertEquals(await probed(vhdx), ["vhdx", []]);
  assertEquals(await probed(bochs), ["bochs", []]);
  assertEquals(await probed(dmg), ["dmg", []]);
});

Deno.test("the driver that is surest wins; a tie is refused", async () => {
  const sure = (score: number): BlockDriver["probe"] => (head) =>
    head[0] === 0x53 ? score : 0;
  const bytes = fileOf([[0, "S"]], SIZE);
  registerDriver(driverNamed("test-sure", sure(70)));
  registerDriver(driverNamed("test-less-sure", sure(30)));
  assertEquals(await probed(bytes), ["test-sure", []]);
  registerDriver(driverNamed("test-as-sure", sure(70)));
  const { code, message } = await refusal(bytes);
  assertEquals(code, "EINVAL");
  assert(message.includes("'test-as-sure' and 'test-sure'"), message);
});
