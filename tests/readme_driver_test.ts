/**
 * The example driver of the README. What lies between the two marks is printed
 * there; the last test makes sure that it stays the same.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BlockError, MemoryStore } from "@bdrv/bdrv";
import { conformance } from "./conformance.ts";
import { TempDir } from "./qemu.ts";

// --- README: a driver of your own
import {
  type BlockDriver,
  type BlockNode,
  createImage,
  openImage,
  registerDriver,
} from "@bdrv/bdrv";

/** Keeps a second copy of everything, and reads it where the first fails. */
const mirrorDriver: BlockDriver = {
  name: "mirror",
  role: "filter",
  async open(_options, context) {
    const file = await context.openChild("file");
    const copy = await context.openChild("copy");
    return mirror(file, copy);
  },
};

function mirror(file: BlockNode, copy: BlockNode): BlockNode {
  return {
    driver: mirrorDriver,
    filename: file.filename,
    readOnly: file.readOnly,
    children: { file, copy },
    get size() {
      return file.size;
    },
    readv: (offset, iov) =>
      file.readv(offset, iov).catch(() => copy.readv(offset, iov)),
    async writev(offset, iov, flags) {
      await file.writev!(offset, iov, flags);
      await copy.writev!(offset, iov, flags);
    },
    async truncate(size, options) {
      await file.truncate!(size, options);
      await copy.truncate!(size, options);
    },
    async flush() {
      await file.flush?.();
      await copy.flush?.();
    },
    status: (offset, length) => file.status(offset, length),
    // Its children are closed after it.
    close: () => Promise.resolve(),
  };
}

registerDriver(mirrorDriver);
// --- end

const memory = (store: MemoryStore) => ({ driver: "memory", store });

function mirrored(file: MemoryStore, copy: MemoryStore) {
  return { driver: "mirror", file: memory(file), copy: memory(copy) };
}

conformance("mirror", {
  completesCancelled: true,
  async open(size) {
    const stack = mirrored(new MemoryStore(size), new MemoryStore(size));
    const open = async () => (await openImage(stack)).node;
    return { node: await open(), reopen: open };
  },
});

conformance("qcow2 on mirror", {
  async open(size) {
    const [left, right] = [new MemoryStore(), new MemoryStore()];
    await createImage("qcow2", memory(left), { size });
    await createImage("qcow2", memory(right), { size });
    const stack = { driver: "qcow2", file: mirrored(left, right) };
    const open = async () => (await openImage(stack)).node;
    return { node: await open(), reopen: open };
  },
});

Deno.test("mirror reads the copy where the file fails", async () => {
  await using folder = new TempDir();
  const names = [folder.file("a.img"), folder.file("b.img")];
  for (const name of names) await createImage("raw", name, { size: 4096 });
  const [file, copy] = names;
  await using image = await openImage({ driver: "mirror", file, copy });
  await image.write(1000, new TextEncoder().encode("twice"));
  image.node.children.file!.readv = () =>
    Promise.reject(new BlockError("EIO", "a scratch"));
  const bytes = await image.read(1000, 5);
  assertEquals(new TextDecoder().decode(bytes), "twice");
});

Deno.test("the README shows the example driver unchanged", async () => {
  const source = await Deno.readTextFile(new URL(import.meta.url));
  const readme = await Deno.readTextFile(
    new URL("../README.md", import.meta.url),
  );
  const [, marked] = /\/\/ --- README: .*\n([^]*?)\/\/ --- end\n/.exec(source)!;
  const blocks = [...readme.matchAll(/```ts\n([^]*?)```/g)].map(([, it]) => it);
  assertEquals(blocks.filter((it) => it === marked).length, 1);
});
