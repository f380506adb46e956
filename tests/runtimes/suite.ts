/**
 * The core of the tests, without a runner of any runtime's: the conformance
 * suite on drivers that reach files and memory, compression by workers, and
 * what the file driver says of files that it cannot open. It is bundled,
 * lowered and run elsewhere by `runtimes_test.ts`, and ends with a line such
 * as `70 passed, 0 failed`.
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

/** What the tests themselves need of the runtime: both have `node:` modules. */
interface Runtime {
  process: {
    getBuiltinModule(name: "node:fs"): FileSystem;
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

test("the file driver goes by the runtime's own files", () => {
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

test("disks in Ceph need what only Deno has", async () => {
  const { message } = await assertRejects(
    () => openImage("rbd:pool/disk"),
    BlockError,
  );
  const needs = "Driver 'rbd' needs Ceph's librbd.so.1, which this runtime " +
    "cannot call: Deno on Linux can";
  assertEquals(message, `Could not open 'rbd:pool/disk': ${needs}`);
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

for (const type of ["zlib", "zstd"]) {
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
