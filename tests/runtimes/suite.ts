/**
 * The core of the tests, without any runtime's test runner: the conformance
 * suite on drivers for files and memory, compression by workers, and the file
 * driver's messages about files that it cannot open. It is bundled, lowered and
 * run elsewhere by `runtimes_test.ts`, and ends with a line such as
 * `70 passed, 0 failed`.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  compare,
  convert,
  createImage,
  MemoryStore,
  openImage,
} from "../../mod.ts";
import { openNode, openProtocol } from "../../core/open.ts";
import { platform } from "../../core/platform/mod.ts";
import { conformance, type ConformanceTest } from "../conformance.ts";

/**
 * What the tests themselves need from the runtime: both have `node:` modules.
 */
interface Runtime {
  process: {
    getBuiltinModule(name: "node:fs"): FileSystem;
    getBuiltinModule(name: "node:http"): Http;
    exitCode?: number;
  };
}

interface FileSystem {
  mkdtempSync(prefix: string): string;
  rmSync(path: string, options: { recursive: true }): void;
  writeFileSync(path: string, bytes: Uint8Array): void;
  readFileSync(path: string): Uint8Array;
  symlinkSync(target: string, path: string): void;
}

interface Http {
  createServer(
    answer: (request: HttpRequest, response: HttpResponse) => void,
  ): HttpServer;
}

interface HttpServer {
  listen(port: number, host: string, ready: () => void): void;
  address(): { port: number };
  close(): void;
  closeAllConnections(): void;
}

interface HttpRequest {
  url: string;
  headers: { [name: string]: string | undefined };
}

interface HttpResponse {
  socket: { destroy(): void };
  writeHead(status: number, headers: Record<string, string | number>): void;
  write(bytes: Uint8Array): void;
  end(bytes?: Uint8Array): void;
}

const { process } = globalThis as unknown as Runtime;
const fs = process.getBuiltinModule("node:fs");
const folder = fs.mkdtempSync("/tmp/bdrv-runtimes-");
const KIB = 1024;
const MIB = 1024 * KIB;

const tests: ConformanceTest[] = [];
const test = (name: string, fn: () => Promise<void>) =>
  void tests.push({ name, fn });
const register = (it: ConformanceTest) => void tests.push(it);

let files = 0;
const newFile = () => `${folder}/${files++}`;

for (const driver of ["raw", "qcow2", "vdi"]) {
  conformance(`${driver} on a file`, {
    async open(size) {
      const file = newFile();
      await createImage(driver, file, { size });
      const open = () => openNode({ driver, file });
      return { node: await open(), reopen: open };
    },
  }, register);
}

conformance("qcow2 in memory", {
  async open(size) {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("qcow2", file, { size });
    const open = () => openNode({ driver: "qcow2", file });
    return { node: await open(), reopen: open };
  },
}, register);

for (const options of [{}, { aio: "threads" }]) {
  conformance(`file ${Object.values(options)}`, {
    async open(size) {
      const filename = newFile();
      fs.writeFileSync(filename, new Uint8Array(size));
      const open = () => openProtocol({ driver: "file", filename, ...options });
      return { node: await open(), reopen: open };
    },
  }, register);
}

test("the file driver uses the runtime's own files", () => {
  assert(platform().files !== undefined);
  return Promise.resolve();
});

test("files that cannot be opened are named, with the reason", async () => {
  const file = newFile();
  fs.writeFileSync(file, new Uint8Array(MIB));
  fs.symlinkSync("loop", `${folder}/loop`);
  const cases = [
    [`${folder}/missing`, "ENOENT", "No such file or directory"],
    [`${file}/below`, "ENOTDIR", "Not a directory"],
    [`${folder}/loop`, "ELOOP", "Too many levels of symbolic links"],
    [`${folder}/${"x".repeat(300)}`, "ENAMETOOLONG", "File name too long"],
  ];
  for (const [filename, code, text] of cases) {
    const error = await assertRejects(() => openImage(filename), BlockError);
    assertEquals(error.code, code);
    assertEquals(error.message, `Could not open '${filename}': ${text}`);
  }
  const readOnly = { readOnly: true };
  const error = await assertRejects(
    () => openImage(folder, readOnly),
    BlockError,
  );
  assertEquals(
    error.message,
    `Could not open '${folder}': 'file' driver requires '${folder}' to be ` +
      "a regular file",
  );
});

test("disks in Ceph need FFI, which only Deno has", async () => {
  const { message } = await assertRejects(
    () => openImage("rbd:pool/disk"),
    BlockError,
  );
  const needs = "Driver 'rbd' needs Ceph's librbd.so.1, which this runtime " +
    "cannot call: Deno on Linux can";
  assertEquals(message, `Could not open 'rbd:pool/disk': ${needs}`);
});

test("images are read over http, and faults of servers are noticed", async () => {
  const http = process.getBuiltinModule("node:http");
  const content = new Uint8Array(2 * MIB).map((_, at) => at * 7 ^ at >> 9);
  const seen: string[] = [];
  let requests = 0;
  const server = http.createServer(({ url, headers }, response) => {
    seen.push(`${url} ${headers.authorization ?? "-"}`);
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? "")!;
    const [start, end] = [Number(from), Number(to) + 1];
    if (url === "/moved") {
      const port = server.address().port;
      response.writeHead(302, { location: `http://localhost:${port}/disk` });
      return response.end();
    }
    const encoded = url === "/encoded" && { "content-encoding": "gzip" };
    response.writeHead(206, {
      etag: url === "/changes" ? `"${requests++}"` : '"x"',
      "content-range": `bytes ${start}-${end - 1}/${content.length}`,
      "content-length": end - start,
      ...encoded,
    });
    const bytes = content.subarray(start, end);
    if (url !== "/breaks" || requests++ % 2) return response.end(bytes);
    response.write(bytes.subarray(0, bytes.length >> 1));
    setTimeout(() => response.socket.destroy(), 20);
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  const at = (path: string) => new URL(`http://me:pw@127.0.0.1:${port}${path}`);
  try {
    for (const path of ["/disk", "/breaks", "/moved"]) {
      await using image = await openImage(at(path));
      assertEquals(await image.read(0, image.size), content);
    }
    const basic = `Basic ${btoa("me:pw")}`;
    assert(seen.includes(`/moved ${basic}`));
    assertEquals(seen.at(-1), "/disk -");
    const encoded = await assertRejects(() => openImage(at("/encoded")));
    assert(/Content-Encoding: gzip/.test(`${encoded}`), `${encoded}`);
    await using changes = await openImage(at("/changes"));
    const changed = await assertRejects(() => changes.read(MIB, 512));
    assert(/has changed/.test(`${changed}`), `${changed}`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
  const refused = await assertRejects(() => openImage(at("/")));
  const { code, message } = refused as BlockError;
  assertEquals(code, "ECONNREFUSED", message);
  assert(!message.includes("pw@"), message);
});

test("overlays find their backing files, and no others", async () => {
  const base = newFile();
  const size = 4 * MIB;
  await createImage("qcow2", base, { size });
  {
    await using image = await openImage(base);
    await image.write(MIB, new Uint8Array(MIB).fill(7));
  }
  const overlay = newFile();
  await createImage("qcow2", overlay, {
    size,
    backing_file: base.slice(folder.length + 1),
    backing_fmt: "qcow2",
  });
  await using image = await openImage(overlay);
  await image.write(MIB + 5, new Uint8Array(5).fill(9));
  const bytes = await image.read(MIB + 4, 7);
  assertEquals([...bytes], [7, 9, 9, 9, 9, 9, 7]);

  const stranger = newFile();
  await createImage("qcow2", stranger, {
    size,
    backing_file: "/etc/passwd",
    backing_fmt: "raw",
  });
  const refused = await assertRejects(() => openImage(stranger), BlockError);
  assertEquals(refused.code, "EACCES");
});

for (const type of ["zlib", "zstd"] as const) {
  test(`images compressed with ${type} are written and read`, async () => {
    const size = 80 * MIB;
    const plain = newFile();
    await createImage("raw", plain, { size });
    await using source = await openImage({ driver: "raw", file: plain });
    const piece = new Uint8Array(64 * KIB);
    for (let i = 0; i < 40; i++) {
      for (let at = 0; at < piece.length; at++) piece[at] = (at * at >> i) & 15;
      await source.write(i * 2 * MIB, piece);
    }
    const target = newFile();
    const packed = { driver: "qcow2", file: target };
    await createImage("qcow2", target, { size, compression_type: type });
    {
      await using image = await openImage(packed);
      await convert([source.node], image.node, { compressed: true });
    }
    await using image = await openImage(packed);
    const result = await compare(source.node, image.node);
    assertEquals(result.outcome, "identical");
  });
}

let failed = 0;
for (const { name, fn } of tests) {
  try {
    await fn();
  } catch (error) {
    failed++;
    console.log(`FAILED ${name}\n${(error as Error).stack}`);
  }
}
fs.rmSync(folder, { recursive: true });
console.log(`${tests.length - failed} passed, ${failed} failed`);
if (failed > 0) process.exitCode = 1;
