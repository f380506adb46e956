import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type BlockDriver,
  BlockError,
  getDriver,
  insertFilter,
  listDrivers,
  loadDriver,
  MemoryStore,
  openImage,
  registerDriver,
  removeFilter,
} from "../../mod.ts";

/** The driver before it is loaded, which every test file sees once. */
const stubs = listDrivers().filter(({ load }) => load !== undefined);

Deno.test("insertFilter() takes a filter that has not been loaded, whatever its child is called", async () => {
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

Deno.test("loading a driver changes nothing that was known of it", async () => {
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

Deno.test("loadDriver() takes nothing for a driver that is another, or none", async () => {
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
