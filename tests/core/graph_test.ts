/** The graph of open nodes. @module */
import { TempDir } from "../qemu.ts";
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  ALL_ACCESS,
  BlockError,
  type BlockNode,
  createImage,
  drain,
  findDriver,
  Image,
  insertFilter,
  MemoryStore,
  openImage,
  registerDriver,
  removeFilter,
  replaceChild,
  serveNbd,
  type StackObject,
  ThrottleGroup,
} from "../../mod.ts";
import { openNode } from "../../core/open.ts";

const SIZE = 1 << 20;

/** A memory node's description, and its store. */
function memory(size = 0) {
  return { driver: "memory", store: new MemoryStore(size) };
}

async function qcow2(options: Record<string, unknown> = {}) {
  const file = memory();
  await createImage("qcow2", file, { size: SIZE, ...options });
  return file;
}

/** A node of the user's own, which counts how often it is closed. */
class OwnNode implements BlockNode {
  readonly driver = { name: "own", role: "protocol" } as const;
  readonly filename = "own";
  readonly readOnly = false;
  readonly children = {};
  closed = 0;
  /** Requests wait for this. */
  hold: Promise<void> = Promise.resolve();
  underWay = 0;
  readonly store: MemoryStore;

  constructor(store = new MemoryStore()) {
    this.store = store;
  }

  get size(): number {
    return this.store.size;
  }

  async #run(
    act: (offset: number, part: Uint8Array) => void,
    iov: readonly Uint8Array[],
    offset: number,
  ) {
    assertEquals(this.closed, 0, "used after it was closed");
    this.underWay++;
    await this.hold;
    for (const part of iov) {
      act(offset, part);
      offset += part.length;
    }
    this.underWay--;
  }

  readv(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    return this.#run((at, part) => this.store.read(at, part), iov, offset);
  }

  writev(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    return this.#run((at, part) => this.store.write(at, part), iov, offset);
  }

  truncate(size: number): Promise<void> {
    this.store.truncate(size);
    return Promise.resolve();
  }

  status(_offset: number, length: number) {
    return Promise.resolve({
      length,
      allocated: true,
      zero: false,
      compressed: false,
    });
  }

  close(): Promise<void> {
    this.closed++;
    return Promise.resolve();
  }
}

/** A node of the user's own, with the content of a description's file. */
async function ownQcow2(): Promise<OwnNode> {
  return new OwnNode((await qcow2()).store);
}

/**
 * A driver whose nodes report when they close, and close their child
 * themselves.
 */
const ended: string[] = [];

function watchDriver(): string {
  const name = "graph-test-watch";
  if (!findDriver(name)) {
    registerDriver({
      name,
      role: "filter",
      openOptions: { tag: { type: "string", help: "What to report" } },
      async open({ tag }, context) {
        const file = await context.openChild("file");
        if (tag === "refuse") {
          await file.close();
          throw new BlockError("EINVAL", "refused");
        }
        return {
          driver: findDriver(name)!,
          filename: file.filename,
          readOnly: file.readOnly,
          get size() {
            return file.size;
          },
          children: { file },
          readv: (offset, iov) => file.readv(offset, iov),
          writev: (offset, iov, flags) => file.writev!(offset, iov, flags),
          truncate: (size) => file.truncate!(size),
          status: (offset, length) => file.status(offset, length),
          async close() {
            ended.push(String(tag));
            await file.close();
          },
        };
      },
    });
  }
  return name;
}

function watched(tag: string, file: unknown): StackObject {
  return { driver: watchDriver(), tag, file };
}

async function refusedBy(
  code: string,
  attempt: () => Promise<unknown>,
): Promise<BlockError> {
  const error = await assertRejects(attempt, BlockError);
  assertEquals(error.code, code, error.message);
  return error;
}

/** Yield to others, so that whatever can proceed does. */
async function turns(count = 50): Promise<void> {
  for (let i = 0; i < count; i++) await undefined;
}

Deno.test("a second writer of one node is refused with QEMU's message", async () => {
  const own = await ownQcow2();
  const stack = { driver: "qcow2", file: own };
  {
    await using first = await openImage({ ...stack, "node-name": "fmt0" });
    const error = await refusedBy(
      "EPERM",
      () => openImage({ ...stack, "node-name": "fmt1" }),
    );
    assert(
      error.message.endsWith(
        "Permission conflict on node 'own': permissions 'write, resize' are " +
          "both required by node 'fmt0' (uses node 'own' as 'file' child) and " +
          "unshared by node 'fmt1' (uses node 'own' as 'file' child).",
      ),
      error.message,
    );
    // A reader is refused as well: what it reads must not change.
    await refusedBy("EPERM", () => openImage(stack, { readOnly: true }));
    await first.write(0, new Uint8Array([1]));
  }
  // Neither refused nor closed nodes have left claims behind.
  await using again = await openImage(stack);
  assertEquals(await again.read(0, 1), new Uint8Array([1]));
  assertEquals(own.closed, 0);
});

Deno.test("nodes of files, raw and memory are guarded alike", async () => {
  const files = [
    memory(SIZE),
    { driver: "raw", file: memory(SIZE) },
    {
      driver: "throttle",
      "throttle-group": new ThrottleGroup({}),
      file: memory(SIZE),
    },
  ];
  for (const file of files) {
    await createImage("qcow2", memory(), { size: 512 });
    await using shared = await openImage(file);
    const from = await qcow2({ size: 1 << 16 });
    const bytes = new Uint8Array(from.store.size);
    from.store.read(0, bytes);
    await shared.write(0, bytes);
    const stack = { driver: "qcow2", file: shared.node };
    await using _first = await openImage(stack);
    await refusedBy("EPERM", () => openImage(stack));
    // The handle would be a second writer as well.
    await refusedBy("EPERM", () => shared.write(0, bytes));
    await shared.read(0, 4);
  }
});

Deno.test("readers share a node, and overlays a backing file", async () => {
  const own = await ownQcow2();
  const stack = { driver: "qcow2", file: own };
  {
    await using _one = await openImage(stack, { readOnly: true });
    await using two = await openImage(stack, { readOnly: true });
    assertEquals(two.size, SIZE);
  }
  const base = await openImage({ driver: "qcow2", file: await qcow2() });
  await base.write(0, new Uint8Array([7]));
  const overlay = async () =>
    await openImage({
      driver: "qcow2",
      file: await qcow2(),
      backing: base.node,
    });
  const one = await overlay();
  const two = await overlay();
  await one.write(0, new Uint8Array([1]));
  await two.write(1, new Uint8Array([2]));
  await one.close();
  assertEquals(await two.read(0, 2), new Uint8Array([7, 2]));
  await base.close();
  await refusedBy("EBADF", () => base.read(0, 1));
  // It is still the backing file of the other overlay.
  assertEquals(await two.read(0, 2), new Uint8Array([7, 2]));
  await two.close();
  const file = await qcow2();
  await refusedBy(
    "EBADF",
    () => openImage({ driver: "qcow2", file, backing: base.node }),
  );
});

Deno.test("claims end with their edge", async () => {
  const own = new OwnNode((await qcow2()).store) as OwnNode & {
    setPermissions?(permissions: unknown): void;
  };
  const claims: unknown[] = [];
  own.setPermissions = (permissions) => claims.push(permissions);
  await (await openImage({ driver: "qcow2", file: own })).close();
  assertEquals(claims.at(-1), { needs: 0, shares: ALL_ACCESS });
  const refusing = await openImage({
    driver: "raw",
    file: own,
    size: SIZE >> 4,
  });
  claims.length = 0;
  await refusedBy("EPERM", () => openImage({ driver: "qcow2", file: own }));
  assertEquals(claims.every((claim) => claim !== undefined), true);
  await refusing.write(0, new Uint8Array(1));
  await refusing.close();
});

Deno.test("a node closes with its last edge, parents first", async () => {
  ended.length = 0;
  const stack = watched("top", watched("middle", watched("low", memory(512))));
  const image = await openImage(stack);
  const { node } = image;
  const low = node.children.file!.children.file!;
  const other = await openImage(low);
  const third = new Image(low);
  await image.close();
  assertEquals(ended, ["top", "middle"]);
  assertEquals(await other.read(0, 1), new Uint8Array(1));
  await other.close();
  await third.write(0, new Uint8Array(1));
  assertEquals(ended, ["top", "middle"]);
  await third.close();
  assertEquals(ended, ["top", "middle", "low"]);
  await third.close();
  assertEquals(ended, ["top", "middle", "low"]);
});

Deno.test("nodes of the user's own are shared, and closed by whoever made them", async () => {
  const own = new OwnNode(new MemoryStore(512));
  ended.length = 0;
  const a = await openImage({ driver: "raw", file: own });
  const b = await openImage({ driver: "raw", file: own });
  const plain = await openImage(own);
  await a.write(0, new Uint8Array([1]));
  await a.close();
  assertEquals(await b.read(0, 1), new Uint8Array([1]));
  await b.close();
  assertEquals(await plain.read(0, 1), new Uint8Array([1]));
  await plain.close();
  assertEquals(own.closed, 0);
  await own.close();
  assertEquals(own.closed, 1);
});

Deno.test("an error names what a user's object lacks to be a node", async () => {
  for (const method of ["readv", "status", "close"] as const) {
    const own = new OwnNode();
    Object.defineProperty(own, method, { value: undefined });
    for (const source of [own, { driver: "raw", file: own }]) {
      await assertRejects(
        () => openImage(source),
        BlockError,
        `it has no method '${method}'`,
      );
    }
  }
});

Deno.test("a driver that closes its children does not close shared ones", async () => {
  ended.length = 0;
  const shared = await openImage(watched("shared", memory(512)));
  await (await openImage(watched("above", shared.node))).close();
  assertEquals(ended, ["above"]);
  await shared.write(0, new Uint8Array(1));
  await refusedBy("EINVAL", () => openImage(watched("refuse", shared.node)));
  await shared.write(0, new Uint8Array(1));
  await shared.node.close();
  assertEquals(ended, ["above", "shared"]);
  await refusedBy("EBADF", () => shared.read(0, 1));
});

Deno.test("a failed open leaves nothing open or claimed", async () => {
  ended.length = 0;
  await refusedBy(
    "EINVAL",
    () => openImage({ driver: "qcow2", file: watched("file", memory(SIZE)) }),
  );
  assertEquals(ended, ["file"]);
  const image = await qcow2();
  await refusedBy("EINVAL", () =>
    openImage({
      driver: "qcow2",
      file: watched("file", { ...image }),
      backing: { driver: "qcow2", file: watched("backing", memory(512)) },
    }));
  assertEquals(ended, ["file", "backing", "file"]);
  const own = new OwnNode(new MemoryStore(SIZE));
  await refusedBy("EINVAL", () => openImage({ driver: "qcow2", file: own }));
  assertEquals(own.closed, 0);
  await (await openImage({ driver: "raw", file: own, size: 512 })).close();
});

Deno.test("a driver may return its child itself", async () => {
  ended.length = 0;
  const name = "graph-test-same";
  registerDriver({
    name,
    role: "filter",
    open: (_options, context) => context.openChild("file"),
  });
  const image = await openImage({
    driver: name,
    file: watched("x", memory(512)),
  });
  assertEquals(image.format, watchDriver());
  await image.write(0, new Uint8Array(1));
  await image.close();
  assertEquals(ended, ["x"]);
});

Deno.test("Image.close() waits for requests in flight", async () => {
  const own = new OwnNode(new MemoryStore(512));
  const image = await openImage({ driver: "raw", file: own });
  const { promise, resolve } = Promise.withResolvers<void>();
  own.hold = promise;
  const order: string[] = [];
  const write = image.write(0, new Uint8Array([5])).then(() =>
    order.push("written")
  );
  const close = image.close().then(() => order.push("closed"));
  await turns();
  assertEquals(order, []);
  await refusedBy("EBADF", () => image.read(0, 1));
  resolve();
  await Promise.all([write, close]);
  assertEquals(order, ["written", "closed"]);
});

Deno.test("drain() waits for requests in flight, and holds back new ones", async () => {
  const own = new OwnNode(new MemoryStore(512));
  await using image = await openImage({ driver: "raw", file: own });
  await using beside = await openImage(image.node);
  const { promise, resolve } = Promise.withResolvers<void>();
  own.hold = promise;
  const order: string[] = [];
  const note = (what: string) => () => void order.push(what);
  const first = image.write(0, new Uint8Array(1)).then(note("first"));
  const draining = drain(own);
  draining.then(note("drained"));
  await turns();
  const second = image.write(0, new Uint8Array(1)).then(note("second"));
  const third = beside.read(0, 1).then(note("third"));
  await turns();
  assertEquals([order, own.underWay], [[], 1]);
  resolve();
  const drained = await draining;
  const fourth = image.flush().then(note("fourth"));
  // Requests of a handle made meanwhile wait as well.
  await using late = await openImage({ driver: "raw", file: own });
  const fifth = late.read(0, 1).then(note("fifth"));
  await turns();
  assertEquals(order, ["first", "drained"]);
  assertEquals(own.underWay, 0);
  drained[Symbol.dispose]();
  drained[Symbol.dispose]();
  await Promise.all([first, second, third, fourth, fifth]);
  assertEquals(order.slice(0, 3), ["first", "drained", "second"]);
  assertEquals(order.length, 6);
});

Deno.test("requests held back go on in the order of their arrival", async () => {
  await using image = await openImage({ driver: "raw", file: memory(512) });
  const drained = await drain(image.node);
  const order: number[] = [];
  const requests: Promise<unknown>[] = [];
  const ask = (number: number) =>
    requests.push(image.read(0, 1).then(() => order.push(number)));
  for (let i = 0; i < 5; i++) ask(i);
  drained[Symbol.dispose]();
  ask(5);
  await undefined;
  ask(6);
  // Drain once more while they go on.
  const again = await drain(image.node);
  ask(7);
  await turns();
  assert(!order.includes(7));
  again[Symbol.dispose]();
  await Promise.all(requests);
  assertEquals(order, [0, 1, 2, 3, 4, 5, 6, 7]);
});

Deno.test("drain() stops the outermost nodes first: inner requests may finish", async () => {
  // A node that asks an image, which is drained along with it.
  await using inner = await openImage({ driver: "raw", file: memory(512) });
  const own: BlockNode = {
    driver: { name: "own", role: "protocol" },
    filename: "own",
    size: 512,
    readOnly: true,
    children: { inner: inner.node },
    async readv(offset, iov) {
      for (let i = 0; i < 3; i++) {
        await turns(5);
        await inner.readv(offset, iov);
      }
    },
    status: (_offset, length) =>
      Promise.resolve({
        length,
        allocated: true,
        zero: false,
        compressed: false,
      }),
    close: () => Promise.resolve(),
  };
  await using outer = await openImage({ driver: "raw", file: own });
  const read = outer.read(0, 512);
  {
    using _ = await drain(inner.node.children.file!);
    await read;
  }
  await outer.read(0, 512);
});

Deno.test("replaceChild() moves a disk in use to another file", async () => {
  const kinds: [driver: string, options?: Record<string, unknown>][] = [
    ...[["raw"], ["qcow2"], ["vdi"], ["vmdk"], ["vpc"], ["vhdx"]] as [string][],
    ["vpc", { subformat: "fixed" }],
    ["vhdx", { subformat: "fixed" }],
  ];
  for (const [driver, options] of kinds) {
    const file = memory();
    await createImage(driver, file, { size: SIZE, ...options });
    await using image = await openImage({ driver, file });
    await image.write(4000, new Uint8Array(2000).fill(1));
    const copy = new OwnNode();
    {
      using _ = await drain(image.node);
      const bytes = new Uint8Array(file.store.size);
      file.store.read(0, bytes);
      copy.store.write(0, bytes);
      await replaceChild(image.node, "file", copy);
    }
    assertEquals(image.node.children.file, copy);
    await image.write(70_000, new Uint8Array(2000).fill(2));
    await image.flush();
    const before = new Uint8Array(file.store.size);
    file.store.read(0, before);
    assertEquals(before.includes(2) && driver === "raw", false);
    for (const [at, byte] of [[4000, 1], [5999, 1], [70_000, 2], [0, 0]]) {
      assertEquals((await image.read(at, 1))[0], byte, driver);
    }
    await image.close();
    assertEquals(copy.closed, 0);
    await using again = await openImage({ driver, file: copy }, {
      readOnly: true,
    });
    assertEquals((await again.read(71_999, 1))[0], 2, driver);
  }
});

Deno.test("replaceChild() gives an overlay another backing file", async () => {
  ended.length = 0;
  const stores = [new MemoryStore(SIZE), new MemoryStore(SIZE)];
  stores[1].write(0, new Uint8Array([9]));
  await using overlay = await openImage({
    driver: "qcow2",
    file: await qcow2(),
    backing: watched("before", { driver: "memory", store: stores[0] }),
  });
  assertEquals(await overlay.read(0, 1), new Uint8Array([0]));
  const other = await openImage({ driver: "memory", store: stores[1] });
  await replaceChild(overlay.node, "backing", other.node);
  assertEquals(ended, ["before"]);
  assertEquals(await overlay.read(0, 1), new Uint8Array([9]));
  await other.close();
  assertEquals(await overlay.read(0, 1), new Uint8Array([9]));
});

Deno.test("replaceChild() gives children to images of other formats", async () => {
  await using folder = new TempDir();
  const filename = folder.file("disk.vmdk");
  const subformat = "monolithicFlat";
  await createImage("vmdk", filename, { size: SIZE, subformat });
  await using image = await openImage(filename);
  await image.write(0, new Uint8Array([1]));
  const copy = new OwnNode(new MemoryStore(SIZE));
  await replaceChild(image.node, "extents.0", copy);
  await image.write(5, new Uint8Array([2]));
  const bytes = new Uint8Array(6);
  copy.store.read(0, bytes);
  assertEquals([...bytes], [0, 0, 0, 0, 0, 2]);
  assertEquals([...await image.read(0, 6)], [...bytes]);

  const overlay = memory();
  await createImage("vmdk", overlay, { size: SIZE });
  const stores = [new MemoryStore(SIZE), new MemoryStore(SIZE)];
  stores[1].write(0, new Uint8Array([9]));
  await using link = await openImage({
    driver: "vmdk",
    file: overlay,
    backing: { driver: "memory", store: stores[0] },
  });
  assertEquals(await link.read(0, 1), new Uint8Array([0]));
  const other = await openImage({ driver: "memory", store: stores[1] });
  await replaceChild(link.node, "backing", other.node);
  assertEquals(await link.read(0, 1), new Uint8Array([9]));
  await other.close();
});

Deno.test("replaceChild() of a VHD image needs a file that ends where the old one does", async () => {
  const file = memory();
  await createImage("vpc", file, { size: SIZE });
  await using image = await openImage({ driver: "vpc", file });
  const longer = new OwnNode(new MemoryStore(file.store.size + 512));
  await refusedBy("EINVAL", () => replaceChild(image.node, "file", longer));
  await image.write(0, new Uint8Array([1]));
  assertEquals(await image.read(0, 1), new Uint8Array([1]));
});

Deno.test("a refused replaceChild() changes nothing", async () => {
  const file = await qcow2();
  await using image = await openImage({ driver: "qcow2", file });
  await image.write(0, new Uint8Array([3]));
  const before = image.node.children.file!;
  const attempt = (child: BlockNode, role = "file") => () =>
    replaceChild(image.node, role, child);
  const bytes = new Uint8Array(file.store.size);
  file.store.read(0, bytes);
  const copy = () => {
    const store = new MemoryStore();
    store.write(0, bytes);
    return store;
  };
  await refusedBy("EINVAL", attempt(new OwnNode(), "file"));
  await refusedBy("EINVAL", attempt(new OwnNode(copy()), "backing"));
  await refusedBy("EINVAL", attempt(image.node));
  await using readOnly = await openImage(
    { driver: "memory", store: copy() },
    { readOnly: true },
  );
  await refusedBy("EACCES", attempt(readOnly.node));
  const used = new OwnNode(copy());
  {
    await using _ = await openImage({ driver: "qcow2", file: used });
    await refusedBy("EPERM", attempt(used));
  }
  await using watching = await openImage({
    driver: "qcow2",
    file: watched("a", await qcow2()),
  });
  // A driver that cannot replace it. (A filter could, but this one has no
  // name.)
  const own = watching.node.children.file!;
  await refusedBy("EINVAL", () => replaceChild(own, "nothing", used));
  await using gone = await openImage(memory(512));
  await gone.close();
  await refusedBy("EBADF", attempt(gone.node));
  assertEquals(image.node.children.file, before);
  await image.write(1, new Uint8Array([4]));
  assertEquals(await image.read(0, 2), new Uint8Array([3, 4]));
  await image.close();
  await using again = await openImage({ driver: "qcow2", file });
  assertEquals(await again.read(0, 2), new Uint8Array([3, 4]));
});

Deno.test("replaceChild() names a driver that cannot replace its child", async () => {
  const name = "graph-test-stiff";
  registerDriver({
    name,
    role: "format",
    async open(_options, context) {
      const file = await context.openChild("file");
      return {
        driver: findDriver(name)!,
        filename: file.filename,
        size: file.size,
        readOnly: file.readOnly,
        children: { file },
        readv: (offset, iov) => file.readv(offset, iov),
        writev: (offset, iov) => file.writev!(offset, iov),
        status: (offset, length) => file.status(offset, length),
        close: () => Promise.resolve(),
      };
    },
  });
  await using image = await openImage({ driver: name, file: memory(512) });
  const error = await refusedBy(
    "ENOTSUP",
    () => replaceChild(image.node, "file", new OwnNode(new MemoryStore(512))),
  );
  assert(error.message.startsWith(`Driver '${name}' cannot replace`));
  const throttle = {
    driver: "throttle",
    "throttle-group": new ThrottleGroup({}),
  };
  await refusedBy(
    "ENOTSUP",
    () => insertFilter(image.node.children.file!, throttle),
  );
  await image.write(0, new Uint8Array(512));
});

Deno.test("replaceChild() of a filter, and of an image in a quorum", async () => {
  const stores = [1, 2].map(() => new MemoryStore(512));
  await using image = await openImage({
    driver: "throttle",
    "throttle-group": new ThrottleGroup({}),
    file: { driver: "memory", store: stores[0] },
  });
  const other = await openImage({ driver: "memory", store: stores[1] });
  await replaceChild(image.node, "file", other.node);
  await image.write(0, new Uint8Array([6]));
  assertEquals(await other.read(0, 1), new Uint8Array([6]));
  assertEquals(image.format, "throttle");
  await other.close();

  await using quorum = await openImage({
    driver: "quorum",
    "vote-threshold": 2,
    children: [memory(512), memory(512), memory(512)],
  });
  const own = new OwnNode(new MemoryStore(512));
  await replaceChild(quorum.node, "children.1", own);
  await quorum.write(0, new Uint8Array([8]));
  const byte = new Uint8Array(1);
  own.store.read(0, byte);
  assertEquals(byte[0], 8);
  await refusedBy(
    "EINVAL",
    () =>
      replaceChild(
        quorum.node,
        "children.1",
        new OwnNode(new MemoryStore(1024)),
      ),
  );
});

Deno.test("filters are inserted above and below nodes in use, and removed", async () => {
  const group = new ThrottleGroup({});
  const throttle = { driver: "throttle", "throttle-group": group };
  await using image = await openImage({ driver: "qcow2", file: await qcow2() });
  await using beside = await openImage(image.node);
  const { node } = image;
  await image.write(0, new Uint8Array([1]));
  const top = await insertFilter(node, throttle);
  assertEquals([image.node, beside.node], [top, top]);
  const low = await insertFilter(node.children.file!, throttle);
  assertEquals(node.children.file, low);
  const compress = await insertFilter(node, { driver: "compress" });
  assertEquals(top.children.file, compress);
  await image.write(1 << 16, new Uint8Array(1 << 16).fill(5));
  assertEquals(await beside.read(0, 1), new Uint8Array([1]));
  await removeFilter(compress);
  await removeFilter(low);
  await removeFilter(top);
  assertEquals([image.node, beside.node], [node, node]);
  assertEquals(node.children.file!.driver.name, "memory");
  await image.write(3, new Uint8Array([4]));
  assertEquals(await beside.read(0, 4), new Uint8Array([1, 0, 0, 4]));
  await refusedBy("EINVAL", () => removeFilter(node));
  await refusedBy("EINVAL", () => insertFilter(node, { driver: "qcow2" }));
  await refusedBy("EBADF", () => removeFilter(top));
});

Deno.test("a filter that was opened with its disk can be removed", async () => {
  await using image = await openImage({
    driver: "qcow2",
    file: { driver: "preallocate", file: await qcow2() },
  });
  await image.write(0, new Uint8Array(SIZE).fill(1));
  const filter = image.node.children.file!;
  const below = filter.children.file!;
  assert(below.size > filter.size);
  await removeFilter(filter);
  assertEquals(image.node.children.file, below);
  assert(below.size < 2 * SIZE);
  await image.write(0, new Uint8Array(SIZE).fill(2));
});

Deno.test("openNode() returns a node that its caller closes", async () => {
  ended.length = 0;
  const node = await openNode(watched("node", memory(512)));
  const image = await openImage({ driver: "raw", file: node });
  await image.close();
  assertEquals(ended, []);
  const wrapping = new Image(node);
  await wrapping.close();
  assertEquals(ended, ["node"]);
});

Deno.test("bitmaps and servers follow an image whose node is replaced", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 1 << 20 });
  const disk = await openImage({ driver: "qcow2", file });
  const group = { driver: "throttle", "throttle-group": new ThrottleGroup({}) };
  let filter = await insertFilter(disk, group);
  const server = await serveNbd(disk, { host: "127.0.0.1", port: 0 });
  await disk.bitmaps.add("b");
  const client = await openImage(server.uri!, {
    format: "raw",
    readOnly: true,
  });
  await removeFilter(filter);
  await disk.reopen({ cache: "unsafe" });
  await disk.write(0, new Uint8Array(512).fill(1));
  const { length, zero } = await client.status(0, 1 << 20);
  assertEquals([length, zero], [65536, false]);
  filter = await insertFilter(disk, group);
  assertEquals((await disk.bitmaps.list()).map(({ name }) => name), ["b"]);
  const dirty = await Array.fromAsync(disk.bitmaps.dirty("b"));
  assertEquals(dirty, [{ offset: 0, length: 65536 }]);
  {
    using _ = await drain(disk.node);
    let isListed = false;
    const listing = disk.bitmaps.list().then(() => isListed = true);
    await new Promise((resolve) => setTimeout(resolve, 1));
    assertEquals(isListed, false);
    listing.catch(() => {});
  }
  await removeFilter(filter);
  await client.close();
  await server.close();
  await disk.close();
});
