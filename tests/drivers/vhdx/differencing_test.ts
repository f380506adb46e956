import { assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import { guidAt, putGuid } from "../../../drivers/vhdx/guid.ts";
import {
  BlockError,
  createImage,
  openImage,
  type OpenOptions,
} from "../../../mod.ts";
import { Random } from "../../model.ts";
import { TempDir } from "../../qemu.ts";
import { MIB, newImage, PLACE, putEntry, stackOf } from "./bytes.ts";

const SIZE = 8 * MIB;
const LOCATOR_TYPE = "b04aefb7-d19e-4a81-b789-25b8e9445913";
const LOCATOR = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";
const DATA_WRITE_GUID = PLACE.otherHeader + 32;

/** A parent locator with these entries. */
function locatorOf(entries: Record<string, string>): Uint8Array {
  const utf16 = (text: string) =>
    new Uint8Array(Uint16Array.from(text, (c) => c.charCodeAt(0)).buffer);
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  putGuid(bytes, 0, LOCATOR_TYPE);
  view.setUint16(18, Object.keys(entries).length, true);
  let at = 1024;
  for (const [i, pair] of Object.entries(entries).entries()) {
    for (const [j, text] of pair.map(utf16).entries()) {
      bytes.set(text, at);
      view.setUint32(20 + 12 * i + 4 * j, at, true);
      view.setUint16(28 + 12 * i + 2 * j, text.length, true);
      at += text.length;
    }
  }
  return bytes;
}

/** The bytes of a child without any content yet. */
async function newChild(
  entries: Record<string, string>,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = await newImage({ size: SIZE, block_state_zero: false });
  const view = new DataView(bytes.buffer);
  view.setUint32(PLACE.items + 4, 2, true);
  view.setUint16(PLACE.metadata + 10, 6, true);
  const at = PLACE.metadata + 6 * 32;
  putGuid(bytes, at, LOCATOR);
  const offset = 128 * 1024;
  view.setUint32(at + 16, offset, true);
  view.setUint32(at + 20, 4096, true);
  view.setUint32(at + 24, 4, true);
  bytes.set(locatorOf(entries), PLACE.metadata + offset);
  return bytes;
}

/** A parent in a folder: its content, and how a child refers to it. */
async function newParent(filename: string) {
  const options = { size: SIZE, block_size: MIB };
  await createImage("vhdx", filename, options);
  const disk = new Uint8Array(SIZE);
  disk.set(new Random(1).bytes(3 * MIB), 512);
  {
    await using image = await openImage(filename);
    await image.write(0, disk.subarray(0, 4 * MIB));
  }
  const bytes = await Deno.readFile(filename);
  const [first, second] = [PLACE.header, PLACE.otherHeader].map((at) =>
    new DataView(bytes.buffer).getBigUint64(at + 8, true)
  );
  const header = first > second ? PLACE.header : PLACE.otherHeader;
  return { disk, linkage: `{${guidAt(bytes, header + 32).toUpperCase()}}` };
}

/**
 * Give a child blocks of its own: a whole one, a zero one, and some sectors.
 */
function fillChild(
  child: Uint8Array<ArrayBuffer>,
  disk: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const end = child.length;
  const bytes = new Uint8Array(end + 3 * MIB);
  bytes.set(child);
  const whole = new Random(2).bytes(MIB);
  bytes.set(whole, end);
  putEntry(bytes, 0, 6, end);
  disk.set(whole, 0);
  putEntry(bytes, 1, 2);
  disk.fill(0, MIB, 2 * MIB);
  // Of the third block, the child has sectors 1, 8 and 9.
  putEntry(bytes, 2, 7, end + MIB);
  putEntry(bytes, 4096, 6, end + 2 * MIB);
  const bitmap = end + 2 * MIB + 2 * 256;
  bytes[bitmap] = 0b10;
  bytes[bitmap + 1] = 0b11;
  for (const sector of [1, 8, 9]) {
    const data = new Random(3 + sector).bytes(512);
    bytes.set(data, end + MIB + 512 * sector);
    disk.set(data, 2 * MIB + 512 * sector);
  }
  return bytes;
}

Deno.test("a differencing image reads its parent where it has no sectors", async () => {
  await using folder = new TempDir();
  const { disk, linkage } = await newParent(folder.file("base.vhdx"));
  const child = fillChild(
    await newChild({ parent_linkage: linkage, relative_path: ".\\base.vhdx" }),
    disk,
  );
  await Deno.writeFile(folder.file("child.avhdx"), child);
  await using image = await openImage(folder.file("child.avhdx"), {
    readOnly: true,
  });
  const { backingFile, backingFormat } = await image.info();
  assertEquals([backingFile, backingFormat], ["base.vhdx", "vhdx"]);
  assertEquals(isEqual(await image.read(0, SIZE), disk), true);
  const random = new Random(5);
  for (let i = 0; i < 100; i++) {
    const offset = 2 * MIB + random.below(8000);
    const length = 1 + random.below(3000);
    const part = disk.subarray(offset, offset + length);
    assertEquals(isEqual(await image.read(offset, length), part), true);
  }
  const extents: [number, number][] = [];
  for await (const { offset, depth } of image.extents()) {
    if (offset >= 2 * MIB && offset < 2 * MIB + 6000) {
      extents.push([(offset - 2 * MIB) / 512, depth]);
    }
  }
  assertEquals(extents, [[0, 1], [1, 0], [2, 1], [8, 0], [10, 1]]);
});

Deno.test("a differencing image is read, not written", async () => {
  await using folder = new TempDir();
  const { linkage } = await newParent(folder.file("base.vhdx"));
  const name = folder.file("child.avhdx");
  const child = await newChild({
    parent_linkage: linkage,
    absolute_win32_path: "\\\\?\\c:\\disks\\base.vhdx",
  });
  await Deno.writeFile(name, child);
  await using image = await openImage(name);
  assertEquals(image.readOnly, true);
  await assertRejects(() => image.write(0, new Uint8Array(1)), BlockError);
  await image.close();
  assertEquals(isEqual(await Deno.readFile(name), child), true);
});

Deno.test("the parent of a differencing image must pass the gate, and match", async () => {
  await using folder = new TempDir();
  const { linkage } = await newParent(folder.file("base.vhdx"));
  const name = folder.file("child.avhdx");
  await Deno.mkdir(folder.file("in"));
  const open = async (
    entries: Record<string, string>,
    options: OpenOptions = {},
    file = name,
  ) => {
    await Deno.writeFile(file, await newChild(entries));
    await using image = await openImage(file, { readOnly: true, ...options });
    return image.size;
  };
  const relative = { relative_path: "base.vhdx" };
  const entries = { ...relative, parent_linkage: linkage };
  assertEquals(await open(entries), SIZE);
  const refusals: [Parameters<typeof open>, string][] = [
    [[entries, { gate: "deny" }], "not permitted"],
    [[
      { parent_linkage: linkage, relative_path: "..\\base.vhdx" },
      {},
      folder.file("in/child.avhdx"),
    ], "not permitted"],
    [[relative], "is not the parent"],
    [[{ ...relative, parent_linkage: DATA_WRITE_GUID.toString() }], "is not"],
    [[{ parent_linkage: linkage }], "does not say where"],
    [[{ ...entries, relative_path: "none.vhdx" }], "No such file"],
    [[{ ...entries, relative_path: "child.avhdx" }], "infinite loop"],
  ];
  for (const [given, message] of refusals) {
    await assertRejects(() => open(...given), BlockError, message);
  }
  // The user's choice overrides the image's.
  assertEquals(await open(relative, { backing: false }), SIZE);
  assertEquals(await open({ ...entries, relative_path: "" }).catch(() => 0), 0);
});

Deno.test("a missing sector bitmap is an error, not zeroes", async () => {
  await using folder = new TempDir();
  const { disk, linkage } = await newParent(folder.file("base.vhdx"));
  const name = folder.file("child.avhdx");
  const child = fillChild(
    await newChild({ parent_linkage: linkage, relative_path: "base.vhdx" }),
    disk,
  );
  putEntry(child, 4096, 0);
  await Deno.writeFile(name, child);
  await using image = await openImage(name, { readOnly: true });
  await assertRejects(() => image.read(2 * MIB, 1), BlockError, "bitmap");
  assertEquals(await image.read(0, 5), disk.slice(0, 5));
});

Deno.test("a partially present block makes no sense without a parent", async () => {
  const bytes = await newImage();
  const whole = new Uint8Array(bytes.length + MIB);
  whole.set(bytes);
  putEntry(whole, 0, 7, bytes.length);
  putEntry(whole, 1, 4);
  await using image = await openImage(stackOf(whole));
  for (const offset of [0, MIB]) {
    const error = await assertRejects(() => image.read(offset, 1), BlockError);
    assertEquals(error.code, "EIO");
    await assertRejects(() => image.write(offset, new Uint8Array(1)));
  }
});
