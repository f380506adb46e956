import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  type ImplicitOpen,
  MemoryStore,
  openImage,
  type OpenOptions,
} from "../../mod.ts";

/** Run a test in a folder of its own. */
function inFolder(name: string, run: (folder: string) => Promise<void>): void {
  Deno.test(name, async () => {
    const folder = await Deno.realPath(await Deno.makeTempDir());
    try {
      await run(folder);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

const SIZE = 1 << 20;

/** A raw base with recognizable content, and an overlay that names it. */
async function makeChain(
  base: string,
  overlay: string,
  baseAsNamed = base,
): Promise<void> {
  await createImage("raw", base, { size: SIZE });
  await using image = await openImage(base, { format: "raw" });
  await image.write(0, text("base"));
  await makeOverlay(overlay, baseAsNamed, "raw");
}

function makeOverlay(
  overlay: string,
  base: string,
  format: string,
): Promise<void> {
  return createImage("qcow2", overlay, {
    size: SIZE,
    backing_file: base,
    backing_fmt: format,
  });
}

async function firstBytes(
  source: string,
  options?: OpenOptions,
): Promise<string> {
  await using image = await openImage(source, { readOnly: true, ...options });
  return new TextDecoder().decode(await image.read(0, 4));
}

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

async function refused(
  attempt: () => Promise<unknown>,
  code: string,
  message: string,
): Promise<void> {
  const error = await assertRejects(attempt, BlockError);
  assertEquals(error.code, code, error.message);
  assert(error.message.includes(message), error.message);
}

inFolder("openImage() takes any spelling of a source", async (folder) => {
  const filename = `${folder}/disk.qcow2`;
  await createImage("qcow2", filename, { size: SIZE });
  {
    await using image = await openImage(filename);
    assertEquals([image.format, image.size], ["qcow2", SIZE]);
    await image.write(0, text("here"));
  }
  const file = { driver: "file", filename };
  const sources = [
    filename,
    `file:${filename}`,
    `qcow2:${filename}`,
    `json:${JSON.stringify({ driver: "qcow2", file })}`,
    `json:{"driver":"qcow2","file.filename":"${filename}"}`,
    new URL(`file://${filename}`),
    { filename },
    { driver: "qcow2", filename },
    { driver: "qcow2", file: filename },
    { driver: "qcow2", file },
    { driver: "qcow2", file: { driver: "raw", file } },
    { file },
  ];
  for (const source of sources) {
    await using image = await openImage(source, { readOnly: true });
    assertEquals(image.format, "qcow2", JSON.stringify(source));
    assertEquals(await image.read(0, 4), text("here"));
  }
});

inFolder("openImage() finds an image inside another file", async (folder) => {
  const filename = `${folder}/container`;
  await createImage("qcow2", `${folder}/inner`, { size: SIZE });
  const inner = await Deno.readFile(`${folder}/inner`);
  const outer = new Uint8Array(inner.length + 8192);
  outer.set(inner, 4096);
  await Deno.writeFile(filename, outer);
  await using image = await openImage({
    driver: "qcow2",
    file: {
      driver: "raw",
      offset: 4096,
      size: inner.length + 4096 - inner.length % 4096,
      file: { driver: "file", filename },
    },
  });
  assertEquals(image.size, SIZE);
});

inFolder("openImage() asked for raw does not look inside", async (folder) => {
  const filename = `${folder}/disk`;
  await createImage("qcow2", filename, { size: SIZE });
  await using image = await openImage(filename, {
    format: "raw",
    readOnly: true,
  });
  assertEquals(image.format, "raw");
  assertEquals(await image.read(0, 3), text("QFI"));
});

Deno.test("openImage() refuses descriptions that make no sense", async () => {
  const cases: [Parameters<typeof openImage>[0], string][] = [
    [{ driver: "nosuch" }, "Unknown driver 'nosuch'"],
    [{ driver: "qcow2" }, 'block device must be specified for "file"'],
    [{}, "Must specify either driver or file"],
    [
      { driver: "raw", file: { driver: "memory" }, speed: 3 },
      "Block format 'raw' does not support the option 'speed'",
    ],
    [
      { driver: "raw", file: { driver: "memory", a: { b: 1 } } },
      "Block protocol 'memory' doesn't support the option 'a.b'",
    ],
    ["json:{}", "Must specify either driver or file"],
    [5 as unknown as string, "Cannot open 5: a file name or"],
  ];
  for (const [source, message] of cases) {
    await refused(() => openImage(source), "EINVAL", message);
  }
  await refused(
    () =>
      openImage({ driver: "raw", file: { driver: "memory" } }, {
        format: "qcow2",
      }),
    "EINVAL",
    "Driver specified twice",
  );
});

Deno.test("openImage() applies the options of every node", async () => {
  const store = new MemoryStore();
  await createImage("raw", { driver: "memory", store }, { size: 1024 });
  const open = (options: Record<string, unknown>) =>
    openImage({ driver: "raw", file: { driver: "memory", store }, ...options });
  {
    await using image = await open({ "node-name": "a", "read-only": "on" });
    assert(image.readOnly);
  }
  {
    await using image = await open({ discard: "ignore" });
    assertEquals(image.node.discard, undefined);
  }
  {
    await using _ = await open({
      cache: { direct: true },
      "cache.no-flush": "on",
    });
  }
  const cases: [Record<string, unknown>, string][] = [
    [{ "read-only": "x" }, "Parameter 'read-only' expects 'on' or 'off'"],
    [{ discard: "x" }, "Invalid discard option"],
    [{ "node-name": "1" }, "Invalid node-name: '1'"],
    [{ cache: { x: 1 } }, "does not support the option 'cache.x'"],
    [{ cache: 1 }, "does not support the option 'cache'"],
  ];
  for (const [options, message] of cases) {
    await refused(() => open(options), "EINVAL", message);
  }
});

Deno.test("openImage() names the source that cannot be opened", async () => {
  const error = await assertRejects(
    () => openImage("/no/such/file"),
    BlockError,
  );
  assertEquals(error.code, "ENOENT");
  assertEquals(
    error.message,
    "Could not open '/no/such/file': No such file or directory",
  );
});

inFolder("a backing file in the same folder may be opened", async (folder) => {
  await makeChain(`${folder}/base`, `${folder}/top`, "base");
  assertEquals(await firstBytes(`${folder}/top`), "base");
  await using image = await openImage(`${folder}/top`);
  assertEquals(image.node.children.backing?.readOnly, true);
  await image.write(0, text("over"));
  assertEquals(await image.read(0, 6), text("over\0\0"));
});

inFolder("the gate refuses a backing file elsewhere", async (folder) => {
  await Deno.mkdir(`${folder}/in/sub`, { recursive: true });
  await Deno.mkdir(`${folder}/in-not`);
  await makeChain(`${folder}/in/sub/base`, `${folder}/in/a`);
  await makeChain(`${folder}/base`, `${folder}/in/b`);
  await makeChain(`${folder}/base2`, `${folder}/in/c`, "../base2");
  await makeChain(`${folder}/in-not/base`, `${folder}/in/d`);
  assertEquals(await firstBytes(`${folder}/in/a`), "base");
  for (const name of ["b", "c", "d"]) {
    const top = `${folder}/in/${name}`;
    await refused(() => firstBytes(top), "EACCES", "not permitted");
    assertEquals(await firstBytes(top, { gate: "allow" }), "base");
    assertEquals(await firstBytes(top, { gate: { below: folder } }), "base");
    assertEquals(await firstBytes(top, { backing: false }), "\0\0\0\0");
  }
  await refused(
    () => firstBytes(`${folder}/in/a`, { gate: "deny" }),
    "EACCES",
    "not permitted",
  );
});

inFolder("the gate follows links", async (folder) => {
  await Deno.mkdir(`${folder}/in`);
  await makeChain(`${folder}/secret`, `${folder}/in/top`, "link");
  await Deno.symlink("../secret", `${folder}/in/link`);
  await refused(
    () => firstBytes(`${folder}/in/top`),
    "EACCES",
    "not permitted",
  );

  await Deno.symlink("..", `${folder}/in/up`);
  await makeOverlay(`${folder}/in/top2`, "up/secret", "raw");
  await refused(
    () => firstBytes(`${folder}/in/top2`),
    "EACCES",
    "not permitted",
  );

  // A link that leads back inside is fine, and so is a folder that is a link.
  await makeChain(`${folder}/in/base`, `${folder}/in/top3`, "up/in/base");
  assertEquals(await firstBytes(`${folder}/in/top3`), "base");
  await Deno.symlink("in", `${folder}/alias`);
  assertEquals(await firstBytes(`${folder}/alias/top3`), "base");
});

inFolder("the gate is not fooled by protocols", async (folder) => {
  await Deno.mkdir(`${folder}/in`);
  await makeChain(`${folder}/secret`, `${folder}/in/x`);
  const names = [
    `file:${folder}/secret`,
    `json:{"driver":"raw","file":{"driver":"file","filename":"${folder}/secret"}}`,
    `json:{"driver":"file","filename":"${folder}/secret"}`,
    `raw:${folder}/secret`,
  ];
  for (const [i, name] of names.entries()) {
    const top = `${folder}/in/top${i}`;
    await makeOverlay(top, name, "raw").catch(() =>
      makeOverlayUnchecked(top, name)
    );
    await refused(() => firstBytes(top), "EACCES", "not permitted");
  }
});

/** An overlay whose header was patched to name another backing file. */
async function makeOverlayUnchecked(top: string, name: string): Promise<void> {
  await createImage("qcow2", top, { size: SIZE });
  const bytes = await Deno.readFile(top);
  const view = new DataView(bytes.buffer);
  view.setUint32(8 + 4, 4096);
  view.setUint32(16, name.length);
  bytes.set(text(name), 4096);
  await Deno.writeFile(top, bytes);
}

inFolder("a gate is told which image wants what", async (folder) => {
  await makeChain(`${folder}/base`, `${folder}/top`, "base");
  const requests: ImplicitOpen[] = [];
  const gate = (answer: boolean) => (request: ImplicitOpen) => {
    requests.push(request);
    return Promise.resolve(answer);
  };
  assertEquals(await firstBytes(`${folder}/top`, { gate: gate(true) }), "base");
  assertEquals(requests, [{
    filename: `${folder}/base`,
    format: "raw",
    namedBy: `${folder}/top`,
    role: "backing",
  }]);
  await refused(
    () => firstBytes(`${folder}/top`, { gate: gate(false) }),
    "EACCES",
    `'${folder}/top' names '${folder}/base'`,
  );
});

inFolder("a chain may be long, but not exceed the limit", async (folder) => {
  await createImage("raw", `${folder}/0`, { size: SIZE });
  for (let i = 1; i < 8; i++) {
    await makeOverlay(`${folder}/${i}`, `${i - 1}`, i === 1 ? "raw" : "qcow2");
  }
  const top = `${folder}/7`;
  assertEquals(await firstBytes(top, { maxChain: 8 }), "\0\0\0\0");
  await refused(
    () => firstBytes(top, { maxChain: 7 }),
    "ELOOP",
    "longer than 7 images",
  );
});

inFolder("a cyclic chain is refused", async (folder) => {
  await createImage("qcow2", `${folder}/a`, { size: SIZE });
  await makeOverlay(`${folder}/b`, "a", "qcow2");
  await makeOverlay(`${folder}/c`, "./b", "qcow2");
  // Now `a` gets `c` as its base, under another name.
  await Deno.symlink("c", `${folder}/link`);
  await makeOverlayUnchecked(`${folder}/a`, "link");
  for (const name of ["a", "b", "c", "link"]) {
    await refused(
      () => firstBytes(`${folder}/${name}`),
      "ELOOP",
      "infinite loop",
    );
  }
  await makeOverlayUnchecked(`${folder}/self`, "./self");
  await refused(() => firstBytes(`${folder}/self`), "ELOOP", "infinite loop");
});
