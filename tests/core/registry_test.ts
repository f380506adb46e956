import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type BlockDriver,
  BlockError,
  createImage,
  getDriver,
  insertFilter,
  listDrivers,
  loadDriver,
  MemoryStore,
  openImage,
  registerDriver,
  removeFilter,
} from "../../mod.ts";

/** The drivers before they are loaded, which happens once in each test file. */
const stubs = listDrivers().filter(({ load }) => load !== undefined);

Deno.test("insertFilter() takes a filter that is not loaded yet, whatever its child is called", async () => {
  const file = { driver: "memory", store: new MemoryStore(1024) };
  await using disk = await openImage({ driver: "raw", file });
  const filter = await insertFilter(disk.node, { driver: "blkdebug" });
  assertEquals(disk.format, "blkdebug");
  await disk.write(0, new Uint8Array(512).fill(7));
  await removeFilter(filter);
  assertEquals(disk.format, "raw");
});

Deno.test("a file name means the same before and after its driver is loaded", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, new Uint8Array(4096));
    for (const name of ["null-co://", "null-aio://", `blkdebug::${path}`]) {
      const sizes: number[] = [];
      for (let time = 0; time < 3; time++) {
        await using image = await openImage(name, { readOnly: true });
        sizes.push(image.size);
      }
      const size = name.startsWith("null") ? 1024 ** 3 : 4096;
      assertEquals(sizes, [size, size, size]);
    }
  } finally {
    await Deno.remove(path);
  }
});

Deno.test("loading a driver changes nothing that was known about it", async () => {
  for (const stub of stubs) {
    const whole = await loadDriver(stub);
    assertEquals(getDriver(stub.name), whole);
    for (const fact of Object.keys(stub)) {
      if (fact === "load") continue;
      const [before, after] = [stub, whole].map((driver) =>
        (driver as unknown as { readonly [name: string]: unknown })[fact]
      );
      const what = `${stub.name}: ${fact}`;
      assertEquals(typeof after, typeof before, what);
      if (typeof before !== "function") assertEquals(after, before, what);
    }
  }
});

Deno.test("loadDriver() says which driver cannot be loaded, and why", async () => {
  const stub: BlockDriver = {
    name: "not-loadable",
    role: "filter",
    load: () => Promise.reject(new TypeError("Module not found")),
    open: () => Promise.reject(new Error("opened")),
  };
  registerDriver(stub);
  const file = { driver: "memory", store: new MemoryStore(512) };
  for (
    const act of [
      () => loadDriver(stub),
      () => openImage({ driver: "not-loadable", file }),
    ]
  ) {
    await assertRejects(
      act,
      BlockError,
      "Cannot load the driver 'not-loadable': Module not found",
    );
  }
  assertEquals(getDriver("not-loadable"), stub);
});

Deno.test("loadDriver() rejects another driver, and anything that is not one", async () => {
  const raw = await loadDriver(getDriver("raw"));
  const open = () => Promise.reject(new Error("opened"));
  const odd: [loaded: unknown, words: string][] = [
    [undefined, "its name is undefined"],
    [{ name: "odd", role: "filter" }, "'open'"],
    [{ name: "raw", role: "format", open }, "stands for 'raw'"],
  ];
  for (const [loaded, words] of odd) {
    const stub: BlockDriver = {
      name: "odd",
      role: "filter",
      load: () => Promise.resolve(loaded as BlockDriver),
      open,
    };
    await assertRejects(() => loadDriver(stub), BlockError, words);
    await assertRejects(() => loadDriver(stub), BlockError, "'odd'");
  }
  assertEquals(getDriver("raw"), raw);
  const load = 5 as unknown as BlockDriver["load"];
  assertThrows(
    () => registerDriver({ name: "odd", role: "filter", open, load }),
    BlockError,
    "the 'load' of 'odd' is 5",
  );
});

Deno.test("a driver's option tables are loaded on demand, or when it gets an option", async () => {
  const read = (options: object) => {
    let times = 0;
    const driver: BlockDriver = {
      name: `tables-late-${names++}`,
      role: "filter",
      childNames: ["file"],
      loadTables: () => {
        times++;
        return Promise.resolve({
          openOptions: { tag: { type: "number", help: "A number" } },
          createOptions: { size: { type: "size", help: "A size" } },
        });
      },
      open: (_options, context) => context.openChild("file"),
    };
    registerDriver(driver);
    const file = { driver: "memory", store: new MemoryStore(512) };
    const opened = openImage({ driver: driver.name, file, ...options });
    return { driver, opened, loaded: () => times };
  };
  let names = 0;

  const plain = read({ "read-only": true });
  await (await plain.opened).close();
  assertEquals(plain.loaded(), 0);
  assertEquals(plain.driver.createOptions, undefined);
  assertEquals(await loadDriver(plain.driver), plain.driver);
  await loadDriver(plain.driver);
  assertEquals(plain.loaded(), 1);
  assertEquals(Object.keys(plain.driver.createOptions!), ["size"]);

  const tagged = read({ tag: 5 });
  await (await tagged.opened).close();
  assertEquals(tagged.loaded(), 1);
  await assertRejects(() => read({ tag: "x" }).opened, BlockError, "'tag'");
});

Deno.test("failing to load option tables is an error that names the driver", async () => {
  const odd: [tables: unknown, words: string][] = [
    [Promise.reject(new TypeError("Module not found")), "Module not found"],
    [{ openOptions: 5 }, "the options of 'tables-odd-1' are 5"],
  ];
  for (const [i, [tables, words]] of odd.entries()) {
    const driver: BlockDriver = {
      name: `tables-odd-${i}`,
      role: "filter",
      loadTables: async () => await (tables as Promise<object>),
      open: () => Promise.reject(new Error("opened")),
    };
    registerDriver(driver);
    const why = `Cannot load the driver 'tables-odd-${i}': `;
    await assertRejects(() => loadDriver(driver), BlockError, why);
    await assertRejects(() => loadDriver(driver), BlockError, words);
  }
  const loadTables = 5 as unknown as BlockDriver["loadTables"];
  const open = () => Promise.reject(new Error("opened"));
  assertThrows(
    () => registerDriver({ name: "odd", role: "filter", open, loadTables }),
    BlockError,
    "the 'loadTables' of 'odd' is 5",
  );
});

Deno.test("qcow2's tables are available to reopen(), and once it is loaded", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 1 << 20 });
  await using image = await openImage({ driver: "qcow2", file });
  await image.reopen({ options: { "l2-cache-size": 65536 } });
  await assertRejects(
    () => image.reopen({ options: { "l2-cache-siz": 65536 } }),
    BlockError,
    "l2-cache-siz",
  );
  const { createOptions = {} } = await loadDriver(getDriver("qcow2"));
  assertEquals("cluster_size" in createOptions, true);
});
