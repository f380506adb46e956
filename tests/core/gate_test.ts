import { assert, assertEquals, assertRejects } from "@std/assert";
import { type ImplicitOpen, passesByDefault } from "../../core/gate.ts";
import { openNode } from "../../core/open.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  type OpenOptions,
  type Source,
} from "../../mod.ts";
import { mustSkip, run, runOk } from "../qemu.ts";

const SIZE = 1 << 20;

/** A folder below the working folder, and its relative name. */
async function inFolder(
  use: (folder: string, name: string) => Promise<void>,
): Promise<void> {
  const name = (await Deno.makeTempDir({ dir: ".", prefix: "gate-test-" }))
    .replace(/^.*\//, "");
  try {
    await use(await Deno.realPath(name), name);
  } finally {
    await Deno.remove(name, { recursive: true });
  }
}

/** A new image in memory that names `backing`. */
async function overlayInMemory(backing: string, format = "raw") {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, {
    size: SIZE,
    backing_file: backing,
    backing_fmt: format,
  });
  return file;
}

async function overlay(
  filename: string,
  backing: string,
  format = "raw",
): Promise<string> {
  await createImage("qcow2", filename, {
    size: SIZE,
    backing_file: backing,
    backing_fmt: format,
  });
  return filename;
}

/** Whether a source whose image names a file can be opened. */
async function opens(
  source: Source,
  options: OpenOptions = {},
): Promise<boolean> {
  try {
    await using _ = await openImage(source, { readOnly: true, ...options });
    return true;
  } catch (error) {
    assert(error instanceof BlockError);
    // EINVAL: there is no folder that a relative name could be relative to.
    const isRefused = error.code === "EACCES" ||
      error.message.includes("Cannot generate a base directory");
    assert(isRefused, error.message);
    return false;
  }
}

Deno.test("an image without a folder cannot have a file opened", async () => {
  await inFolder(async (folder, name) => {
    await createImage("raw", `${folder}/secret`, { size: SIZE });
    const described = JSON.stringify({
      driver: "raw",
      file: { driver: "file", filename: `${name}/secret` },
    });
    const names = [
      `${folder}/secret`,
      `file:${folder}/secret`,
      `file:${name}/secret`,
      `file:./${name}/secret`,
      `${name}/secret`,
      `./${name}/secret`,
      `json:${described}`,
      `raw:${name}/secret`,
      `FILE:${name}/secret`,
      `/proc/self/cwd/${name}/secret`,
    ];
    for (const backing of names) {
      const image = async () => ({
        driver: "qcow2",
        file: await overlayInMemory(backing),
      });
      const inMemory = await image();
      const node = await openNode(inMemory.file);
      const sources: [what: string, source: Source][] = [
        ["memory", inMemory],
        ["memory, probed", { file: inMemory.file }],
        ["a node", { driver: "qcow2", file: node }],
        ["a window", {
          driver: "qcow2",
          file: { driver: "raw", file: inMemory.file },
        }],
        ["a filter", { driver: "compress", file: inMemory }],
        ["a quorum", {
          driver: "quorum",
          "vote-threshold": 1,
          children: [inMemory, await image()],
        }],
        ["qcow2 on a quorum", {
          driver: "qcow2",
          file: {
            driver: "quorum",
            "vote-threshold": 1,
            children: [inMemory.file],
          },
        }],
      ];
      for (const [what, source] of sources) {
        assertEquals(await opens(source), false, `${what}: ${backing}`);
      }
      const [, source] = sources[0];
      assertEquals(await opens(source, { backing: false }), true);
    }
    const file = await overlayInMemory(`${folder}/secret`);
    const source = { driver: "qcow2", file };
    assertEquals(await opens(source, { gate: "allow" }), true);
    assertEquals(await opens(source, { gate: { below: folder } }), true);
    const error = await assertRejects(() => openImage(source), BlockError);
    assert(error.message.includes("the image names '"), error.message);
  });
});

Deno.test("an image with a folder may use its files, however it is opened", async () => {
  await inFolder(async (folder, name) => {
    await createImage("raw", `${folder}/base`, { size: SIZE });
    const top = await overlay(`${folder}/top`, "base");
    const node = await openNode(
      { driver: "file", filename: top },
      { readOnly: true },
    );
    const sources: Source[] = [
      top,
      `${name}/top`,
      `./${name}/../${name}/top`,
      `file:${name}/top`,
      `blkdebug::${top}`,
      new URL(`file://${top}`),
      { filename: top },
      { file: { filename: top } },
      { driver: "qcow2", file: top },
      { driver: "qcow2", file: `file:${top}` },
      { driver: "qcow2", filename: top },
      { driver: "qcow2", file: { driver: "file", filename: top } },
      { driver: "compress", file: top },
      { driver: "blkdebug", image: top },
      `json:{"driver":"qcow2","file":{"driver":"file","filename":"${top}"}}`,
      { driver: "qcow2", file: node },
    ];
    for (const source of sources) {
      assertEquals(await opens(source), true, JSON.stringify(source));
    }
    // Under other names of files in its folder.
    const names = [
      `file:${name}/base`,
      `${folder}/base`,
      `../${name}/base`,
      `/proc/self/cwd/${name}/base`,
    ];
    for (const [i, backing] of names.entries()) {
      const image = await overlay(`${folder}/top${i}`, backing);
      assertEquals(await opens(image), true, backing);
    }
  });
});

Deno.test("an image without a folder does not inherit that of its overlay", async () => {
  await inFolder(async (folder) => {
    await createImage("raw", `${folder}/base`, { size: SIZE });
    await createImage("qcow2", `${folder}/top`, { size: SIZE });
    const source = {
      driver: "qcow2",
      file: `${folder}/top`,
      backing: {
        driver: "qcow2",
        file: await overlayInMemory(`${folder}/base`),
      },
    };
    assertEquals(await opens(source), false);
    assertEquals(await opens(source, { gate: "allow" }), true);
  });
});

Deno.test("only regular files are opened, wherever they lie", async () => {
  await inFolder(async (folder) => {
    await runOk(["mkfifo", `${folder}/fifo`]);
    await Deno.symlink("/dev/zero", `${folder}/zero`);
    await Deno.symlink("/dev", `${folder}/dev`);
    await Deno.symlink("/proc/self/fd", `${folder}/fd`);
    const names = [
      "fifo",
      "zero",
      "dev/zero",
      "fd/0",
      "/dev/stdin",
      "/dev/fd/0",
    ];
    for (const backing of names) {
      const image = await overlay(`${folder}/top`, backing);
      assertEquals(await opens(image), false, backing);
    }
    const device = await run(["mknod", `${folder}/device`, "c", "1", "5"]);
    if (device.code === 0) {
      const image = await overlay(`${folder}/top`, "device");
      assertEquals(await opens(image), false);
    }
  });
});

Deno.test("a device, or an open file, has no folder", () => {
  const request = (filename: string, format?: string): ImplicitOpen => ({
    filename,
    format,
    namedBy: "",
  });
  const sources = [
    "/dev/null",
    "/dev/zero",
    "/dev/stdin",
    "/dev/fd/0",
    "/proc/self/fd/0",
    "/dev/../dev/zero",
  ];
  const names = [
    "/dev/null",
    "/dev/zero",
    "/dev/shm/image",
    "/dev/no/such/device",
    "/proc/self/fd/1",
    "/proc/self/environ",
    "file:/dev/zero",
  ];
  for (const source of sources) {
    for (const name of names) {
      for (const described of [source, { driver: "file", filename: source }]) {
        const passes = passesByDefault(described, described, request(name));
        assertEquals(passes, false, `${source} names ${name}`);
      }
    }
  }
  // Among the devices, a folder of regular files still counts as one.
  const image = "/dev/shm/images/top";
  assert(passesByDefault(image, image, request("/dev/shm/images/base")));
  assert(!passesByDefault(image, image, request("/dev/shm/base")));
  // It does not lend that folder to an image that has none.
  for (const file of ["/dev/zero", { driver: "memory" }, undefined]) {
    assert(!passesByDefault(image, file, request("/dev/shm/images/base")));
  }
});

Deno.test("an image does not choose what opens the file it names", async () => {
  await inFolder(async (folder) => {
    await createImage("raw", `${folder}/base`, { size: SIZE });
    for (const format of ["blkdebug", "null-co", "memory", "throttle"]) {
      const image = await overlay(`${folder}/top`, "base", format);
      assertEquals(await opens(image), false, format);
    }
    for (const format of ["file", "raw"]) {
      const image = await overlay(`${folder}/top`, "base", format);
      assertEquals(await opens(image), true, format);
    }
  });
});

Deno.test({
  name: "an image on a block device cannot have another device opened",
  ignore: mustSkip({ loop: true }),
  fn: () =>
    inFolder(async (folder) => {
      await createImage("raw", `${folder}/base`, { size: SIZE });
      const devices: string[] = [];
      const attach = async (file: string) => {
        const args = ["losetup", "--find", "--show", "--read-only", file];
        const device = (await runOk(args)).trim();
        devices.push(device);
        return device;
      };
      try {
        const base = await attach(`${folder}/base`);
        const names = [base, base.replace("/dev/", ""), `${folder}/base`];
        for (const [i, backing] of names.entries()) {
          const top = await overlay(`${folder}/top${i}`, backing);
          const device = await attach(top);
          await Deno.symlink(device, `${folder}/link${i}`);
          for (const name of [device, `${folder}/link${i}`]) {
            assertEquals(await opens(name), false, `${name}: ${backing}`);
          }
          assertEquals(await opens(device, { gate: "allow" }), true);
          assertEquals(await opens(device, { backing: false }), true);
        }
      } finally {
        for (const device of devices) await run(["losetup", "-d", device]);
      }
    }),
});

Deno.test("a gate is told a file's role in the image that names it", async () => {
  await inFolder(async (folder) => {
    await createImage("raw", `${folder}/base`, { size: SIZE });
    const filename = `${folder}/image`;
    await createImage("qcow2", filename, {
      size: SIZE,
      data_file: `${folder}/data`,
      backing_file: "base",
      backing_fmt: "raw",
    });
    const seen: ImplicitOpen[] = [];
    await using _ = await openImage(filename, {
      readOnly: true,
      gate: (request) => seen.push(request) > 0,
    });
    assertEquals(
      seen.map(({ role, filename, namedBy }) => ({
        role,
        filename,
        namedBy,
      })),
      [
        { role: "data-file", filename: `${folder}/data`, namedBy: filename },
        { role: "backing", filename: `${folder}/base`, namedBy: filename },
      ],
    );
    assertEquals(
      await opens(filename, { gate: "deny", backing: false }),
      false,
    );
    // Files that the user names pass no gate.
    const stack = { driver: "qcow2", file: filename };
    const given = { ...stack, backing: null, "data-file": `${folder}/data` };
    assertEquals(await opens(given, { gate: "deny" }), true);
  });
});
