/** Sources held by the program: bytes, blobs, and open files. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  type HeldSource,
  MemoryStore,
  openImage,
} from "../../mod.ts";
import { setPortable } from "../platforms.ts";
import { TempDir } from "../qemu.ts";

const MIB = 1024 ** 2;

/** The bytes of a qcow2 image of 4 MiB whose disk begins with "hello". */
async function hello(options = {}): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size: 4 * MIB, ...options });
  {
    const stack = { driver: "qcow2", file };
    await using image = await openImage(stack, { backing: false });
    await image.write(0, new TextEncoder().encode("hello"));
  }
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}

async function startOf(source: HeldSource): Promise<string> {
  await using image = await openImage(source);
  assertEquals([image.node.driver.name, image.size], ["qcow2", 4 * MIB]);
  return new TextDecoder().decode(await image.read(0, 5));
}

Deno.test("openImage() takes blobs, files and buffers, and probes them", async () => {
  const bytes = await hello();
  const sources: HeldSource[] = [
    new Blob([bytes]),
    new File([bytes], "disk.qcow2"),
    bytes,
    bytes.buffer,
    new DataView(bytes.buffer),
    new Uint16Array(bytes.buffer),
  ];
  for (const portable of [false, true]) {
    setPortable(portable);
    try {
      for (const source of sources) {
        assertEquals(await startOf(source), "hello");
      }
    } finally {
      setPortable(false);
    }
  }
});

Deno.test("held sources can be children at any depth, and backing files", async () => {
  const bytes = await hello();
  const blob = new Blob([bytes]);
  const overlay = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", overlay, { size: 4 * MIB });
  await using image = await openImage({
    driver: "qcow2",
    file: overlay,
    backing: blob,
  });
  await image.write(4, new TextEncoder().encode("!"));
  const text = new TextDecoder().decode(await image.read(0, 5));
  assertEquals(text, "hell!");
  await using raw = await openImage({
    driver: "raw",
    offset: 0,
    size: 512,
    file: blob,
  });
  assertEquals((await raw.read(0, 3))[0], 0x51);
  await using probed = await openImage({ file: bytes });
  assertEquals(probed.node.driver.name, "qcow2");
});

Deno.test("a blob is read-only, and says so", async () => {
  await using image = await openImage(await hello());
  assert(image.node.readOnly);
  const error = await assertRejects(
    () => image.write(0, new Uint8Array(1)),
    BlockError,
  );
  assertEquals(error.code, "ENOTSUP");
});

Deno.test("an image in a blob cannot name files", async () => {
  const bytes = await hello({
    backing_file: "/etc/passwd",
    backing_fmt: "raw",
  });
  const file = new File([bytes], "mine.qcow2");
  const error = await assertRejects(() => openImage(file), BlockError);
  assertEquals(error.code, "EACCES");
  assert(error.message.startsWith("Could not open 'mine.qcow2': "));
});

Deno.test("openImage() takes open files, which stay open", async () => {
  await using dir = new TempDir();
  const path = dir.file("disk");
  Deno.writeFileSync(path, await hello());
  using file = Deno.openSync(path, { read: true, write: true });
  {
    await using image = await openImage(file);
    await image.write(2 * MIB, new Uint8Array(MIB).fill(7));
  }
  assertEquals(await startOf(file), "hello");
  using reading = Deno.openSync(path);
  {
    await using image = await openImage(reading);
    assert(image.node.readOnly);
    assertEquals((await image.read(2 * MIB, 1))[0], 7);
  }
  const { process } = globalThis as unknown as {
    process: { getBuiltinModule(name: string): typeof import("node:fs") };
  };
  const fs = process.getBuiltinModule("node:fs");
  const handle = await fs.promises.open(path, "r+");
  {
    await using image = await openImage(handle);
    await image.write(0, new TextEncoder().encode("J"));
  }
  assertEquals(await startOf(handle), "Jello");
  await handle.close();
});

Deno.test("createImage() makes an image in an open file", async () => {
  await using dir = new TempDir();
  using handle = Deno.openSync(dir.file("new"), {
    read: true,
    write: true,
    create: true,
  });
  const file = { driver: "handle", handle };
  await createImage("qcow2", file, { size: MIB });
  await using image = await openImage(file.handle);
  assertEquals(image.size, MIB);
});

/** A file in a browser's origin-private file system. */
class FileSystemFileHandle {
  readonly kind = "file";
  readonly name = "disk.img";
  bytes = new Uint8Array(0);
  isOpen = false;
  readonly #syncs: boolean;

  constructor(syncs: boolean) {
    this.#syncs = syncs;
  }

  get [Symbol.toStringTag]() {
    return "FileSystemFileHandle";
  }

  // deno-lint-ignore require-await -- as in browsers
  async getFile() {
    return new File([this.bytes], this.name);
  }

  // deno-lint-ignore require-await
  async createSyncAccessHandle() {
    if (!this.#syncs) throw new DOMException("", "InvalidStateError");
    if (this.isOpen) throw new DOMException("", "NoModificationAllowedError");
    this.isOpen = true;
    const resize = (size: number) => {
      const bytes = new Uint8Array(size);
      bytes.set(this.bytes.subarray(0, size));
      this.bytes = bytes;
    };
    return {
      read: (into: Uint8Array, { at }: { at: number }) => {
        const piece = this.bytes.subarray(at, at + into.length);
        into.set(piece);
        return piece.length;
      },
      write: (bytes: Uint8Array, { at }: { at: number }) => {
        if (at + bytes.length > this.bytes.length) resize(at + bytes.length);
        this.bytes.set(bytes, at);
        return bytes.length;
      },
      truncate: resize,
      getSize: () => this.bytes.length,
      flush: () => {},
      close: () => void (this.isOpen = false),
    };
  }
}

Deno.test("a browser's files are written in place in workers", async () => {
  const handle = new FileSystemFileHandle(true);
  await createImage("qcow2", { driver: "opfs", handle }, { size: MIB });
  {
    await using image = await openImage(handle);
    await image.write(5, new Uint8Array([1, 2, 3]));
    await image.flush();
    const error = await assertRejects(() => openImage(handle), BlockError);
    assertEquals(error.code, "EAGAIN");
    await image.reopen({ readOnly: true });
    assertEquals([...await image.read(4, 5)], [0, 1, 2, 3, 0]);
  }
  assert(!handle.isOpen);
  await using image = await openImage(handle, { readOnly: true });
  assert(!handle.isOpen);
  assertEquals([...await image.read(4, 5)], [0, 1, 2, 3, 0]);
});

Deno.test("outside workers, a browser's files are read-only", async () => {
  const handle = new FileSystemFileHandle(false);
  handle.bytes = await hello();
  assertEquals(await startOf(handle), "hello");
  const file = { driver: "opfs", handle };
  const error = await assertRejects(
    () => createImage("raw", file, { size: MIB }),
    BlockError,
  );
  assertEquals(error.code, "ENOTSUP");
});

Deno.test("anything else is refused in one line that names its type", async () => {
  class Disk {
    bytes = 5;
  }
  for (
    const [source, named] of [
      [42, "42"],
      [null, "null"],
      [undefined, "undefined"],
      [new Disk(), "an object (Disk)"],
      [new Map(), "an object (Map)"],
      [Promise.resolve(), "an object (Promise)"],
      [[1, 2], "a list of 2"],
      [Symbol("x"), "Symbol(x)"],
      [() => {}, "a function"],
      [new Response("x").body, "an object (ReadableStream)"],
    ] as const
  ) {
    const error = await assertRejects(
      () => openImage(source as unknown as string),
      BlockError,
    );
    assert(error.message.includes(`Cannot open ${named}: `), error.message);
    assert(error.message.length < 160 && !error.message.includes("\n"));
  }
});

Deno.test("an option that a driver cannot open is refused", async () => {
  for (
    const stack of [
      { driver: "blob", blob: "text" },
      { driver: "blob" },
      { driver: "handle", handle: 3 },
      { driver: "opfs", handle: {} },
      { driver: "blob", blob: new Blob([]), size: 5 },
      "blob:x",
    ]
  ) {
    const error = await assertRejects(() => openImage(stack), BlockError);
    assertEquals(error.code, "EINVAL");
  }
});

Deno.test("writing to what has no name says so without one", async () => {
  await using image = await openImage(await hello());
  const error = await assertRejects(
    () => image.write(0, new Uint8Array(1)),
    BlockError,
  );
  assertEquals(error.message, "Cannot write: driver 'blob' cannot write");
});
