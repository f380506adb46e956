import { assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  openImage,
  type OpenOptions,
} from "../../../mod.ts";
import { Random } from "../../model.ts";
import { TempDir } from "../../qemu.ts";
import {
  MIB,
  newImage,
  patch,
  patchFooters,
  PLACE,
  putEntry,
} from "./bytes.ts";

const SIZE = 8 * MIB;

/**
 * Names of a parent: by platform code of its locators, and the header's own.
 */
interface Names {
  readonly W2ru?: string;
  readonly W2ku?: string;
  readonly MacX?: string;
  readonly name?: string;
}

function encoded(kind: string, text: string): Uint8Array {
  if (kind === "MacX") return new TextEncoder().encode(text);
  return new Uint8Array(Uint16Array.from(text, (c) => c.charCodeAt(0)).buffer);
}

/** The bytes of a child, whose third block has sectors 1, 8 and 9. */
async function newChild(
  parentUuid: Uint8Array,
  { name = "", ...locators }: Names,
): Promise<Uint8Array<ArrayBuffer>> {
  const image = await newImage({ size: SIZE });
  const names = PLACE.end;
  const block = names + 4096;
  const bytes = new Uint8Array(block + 512 + 2 * MIB + 512);
  bytes.set(image.subarray(0, -512));
  bytes.set(image.subarray(-512), bytes.length - 512);
  patchFooters(bytes, (view) => view.setUint32(60, 4));
  patch(bytes, PLACE.header, (view) => {
    for (const [i, byte] of parentUuid.entries()) view.setUint8(40 + i, byte);
    for (let i = 0; i < name.length; i++) {
      view.setUint16(64 + 2 * i, name.charCodeAt(i));
    }
    for (const [i, [kind, text]] of Object.entries(locators).entries()) {
      const at = 576 + 24 * i;
      for (let j = 0; j < 4; j++) view.setUint8(at + j, kind.charCodeAt(j));
      const data = encoded(kind, text);
      view.setUint32(at + 4, 512);
      view.setUint32(at + 8, data.length);
      view.setBigUint64(at + 16, BigInt(names + 512 * i));
      bytes.set(data, names + 512 * i);
    }
  });
  putEntry(bytes, 2, block / 512);
  bytes[block] = 0b01000000;
  bytes[block + 1] = 0b11000000;
  for (const sector of [1, 8, 9]) {
    bytes.fill(sector, block + 512 * (1 + sector), block + 512 * (2 + sector));
  }
  return bytes;
}

/** A parent in a folder: the content that a child reads, and its identifier. */
async function newParent(
  filename: string,
  subformat: "dynamic" | "fixed" = "dynamic",
) {
  const options = { size: SIZE, force_size: true, subformat };
  await createImage("vpc", filename, options);
  const disk = new Uint8Array(SIZE);
  disk.set(new Random(1).bytes(5 * MIB), 512);
  await using image = await openImage(filename, { format: "vpc" });
  await image.write(0, disk);
  await image.close();
  for (const sector of [1, 8, 9]) {
    const at = 4 * MIB + 512 * sector;
    disk.fill(sector, at, at + 512);
  }
  const footer = (await Deno.readFile(filename)).subarray(-512);
  return { disk, uuid: footer.slice(68, 84) };
}

Deno.test("a differencing image reads its parent where it has no sectors", async () => {
  await using folder = new TempDir();
  const name = folder.file("child.vhd");
  for (const subformat of ["dynamic", "fixed"] as const) {
    const base = folder.file("base.vhd");
    const { disk, uuid } = await newParent(base, subformat);
    const child = await newChild(uuid, { W2ru: ".\\base.vhd" });
    await Deno.writeFile(name, child);
    await using image = await openImage(name);
    assertEquals([image.format, image.readOnly], ["vpc", true]);
    const { backingFile, backingFormat } = await image.info();
    assertEquals([backingFile, backingFormat], ["base.vhd", "vpc"]);
    assertEquals(isEqual(await image.read(0, SIZE), disk), true);
    const random = new Random(5);
    for (let i = 0; i < 100; i++) {
      const offset = 4 * MIB + random.below(8000);
      const length = 1 + random.below(3000);
      const part = disk.subarray(offset, offset + length);
      assertEquals(isEqual(await image.read(offset, length), part), true);
    }
    await assertRejects(() => image.write(0, new Uint8Array(1)), BlockError);
    await image.close();
    assertEquals(isEqual(await Deno.readFile(name), child), true);
  }
});

Deno.test("the parent of a differencing image must pass the gate, and match", async () => {
  await using folder = new TempDir();
  await Deno.mkdir(folder.file("in"));
  const { uuid } = await newParent(folder.file("base.vhd"));
  const open = async (
    names: Names,
    options: OpenOptions = {},
    file = "child.vhd",
    id = uuid,
  ) => {
    await Deno.writeFile(folder.file(file), await newChild(id, names));
    await using image = await openImage(folder.file(file), options);
    return image.size;
  };
  for (
    const names of [
      { W2ru: "base.vhd" },
      { W2ru: "..\\none.vhd", W2ku: "C:\\disks\\base.vhd" },
      { W2ku: "C:\\disks\\base.vhd" },
      { MacX: "file:///disks/b%61se.vhd" },
      { name: "base.vhd" },
      { W2ru: "none.vhd", name: "base.vhd" },
    ]
  ) {
    assertEquals(await open(names), SIZE);
    assertEquals(await open(names, { gate: "allow" }), SIZE);
  }
  const relative = { W2ru: "base.vhd" };
  const refusals: [Parameters<typeof open>, string][] = [
    [[relative, { gate: "deny" }], "not permitted"],
    [[{ W2ru: "..\\base.vhd" }, {}, "in/child.vhd"], "not permitted"],
    [[relative, {}, "child.vhd", new Uint8Array(16)], "is not the parent"],
    [[{}], "does not say where"],
    [[{ W2ru: "none.vhd" }], "No such file"],
    [[{ W2ru: "child.vhd" }], "infinite loop"],
  ];
  for (const [given, message] of refusals) {
    await assertRejects(() => open(...given), BlockError, message);
  }
  assertEquals(await open(relative, { backing: false }), SIZE);
  assertEquals(await open({ W2ru: "none.vhd" }, { purpose: "info" }), SIZE);
});

Deno.test("a parent may have a parent, and another size", async () => {
  await using folder = new TempDir();
  const { disk, uuid } = await newParent(folder.file("base.vhd"), "fixed");
  const middle = await newChild(uuid, { W2ru: "base.vhd" });
  await Deno.writeFile(folder.file("middle.vhd"), middle);
  const ofMiddle = middle.slice(-512).subarray(68, 84);
  const top = await newChild(ofMiddle, { W2ku: "D:\\x y\\middle.vhd" });
  putEntry(top, 2, 0xffffffff);
  await Deno.writeFile(folder.file("top.vhd"), top);
  {
    await using image = await openImage(folder.file("top.vhd"));
    assertEquals(isEqual(await image.read(0, SIZE), disk), true);
  }
  // What a smaller parent does not have reads as zeroes.
  const bytes = await Deno.readFile(folder.file("base.vhd"));
  const smaller = 6 * MIB;
  const short = new Uint8Array(smaller + 512);
  short.set(bytes.subarray(0, smaller));
  short.set(bytes.subarray(-512), smaller);
  patch(short, smaller, (view) => {
    view.setBigUint64(40, BigInt(smaller));
    view.setBigUint64(48, BigInt(smaller));
  });
  await Deno.writeFile(folder.file("base.vhd"), short);
  await using image = await openImage(folder.file("top.vhd"));
  disk.fill(0, smaller);
  assertEquals(isEqual(await image.read(0, SIZE), disk), true);
});
