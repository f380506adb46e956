/**
 * Sizes of new images, compared with qemu-img's figures and with real files.
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  measure,
  MemoryStore,
  openImage,
  type OptionValues,
} from "../../../mod.ts";
import { GOLDEN, goldenBytes } from "../../drivers/qcow2/golden.ts";
import { qemuTest, runOk, TempDir } from "../../qemu.ts";

/** Options of the new image. */
const OPTIONS: readonly OptionValues[] = [
  {},
  { cluster_size: 512 },
  { cluster_size: 4096, refcount_bits: 1 },
  { cluster_size: 2 * 1024 * 1024, refcount_bits: 64 },
  { compat: "0.10" },
  { preallocation: "metadata" },
  { preallocation: "falloc" },
  { preallocation: "full", cluster_size: 16384 },
  { extended_l2: "on" },
  { backing_file: "x", backing_fmt: "raw" },
];

function list(options: OptionValues): string[] {
  const text = Object.entries(options).map(([name, value]) =>
    `${name}=${value}`
  );
  return text.length ? ["-o", text.join(",")] : [];
}

/** qemu-img's result, in our form. */
async function theirs(cwd: string, ...args: string[]) {
  const text = await runOk(
    ["qemu-img", "measure", "--output=json", ...args],
    { cwd },
  );
  const { required, "fully-allocated": fullyAllocated, bitmaps } = JSON.parse(
    text,
  );
  return {
    required,
    fullyAllocated,
    ...(bitmaps !== undefined && { bitmaps }),
  };
}

qemuTest("measure() equals qemu-img's for empty disks", async () => {
  const sizes = [0, 1, 512, 65537, 1e6, 3 * 2 ** 30, 2 ** 40 + 2 ** 20];
  for (const size of sizes) {
    assertEquals(
      await measure("raw", { size }),
      await theirs(".", "-O", "raw", "--size", `${size}`),
    );
    for (const options of OPTIONS) {
      if (options.cluster_size === 512 && size > 2 ** 36) continue;
      assertEquals(
        await measure("qcow2", { ...options, size }),
        await theirs(
          ".",
          ...["-O", "qcow2", "--size", `${size}`, ...list(options)],
        ),
        `${size} ${JSON.stringify(options)}`,
      );
    }
  }
});

qemuTest("measure() equals qemu-img's for images of every kind", async (t) => {
  await using dir = new TempDir();
  const names = new Set(
    GOLDEN.filter(({ open }) => !open?.key)
      .flatMap(({ name, open }) => [name, ...open?.backing ?? []]),
  );
  for (const name of names) {
    await Deno.writeFile(dir.file(name), await goldenBytes(name));
  }
  for (const name of names) {
    await t.step(name, async () => {
      // A data file's name is relative to the working folder.
      const dataFile = GOLDEN.find((image) => image.name === name)?.open
        ?.dataFile;
      const source = dataFile === undefined ? dir.file(name) : {
        driver: "qcow2",
        file: dir.file(name),
        "data-file": dir.file(dataFile),
      };
      await using image = await openImage(source, { readOnly: true });
      for (const format of ["raw", "qcow2"]) {
        for (const options of format === "raw" ? [{}] : OPTIONS) {
          assertEquals(
            await measure(format, options, image.node),
            await theirs(dir.path, "-O", format, ...list(options), name),
            JSON.stringify(options),
          );
        }
      }
      for (const { id } of await image.node.snapshots?.list() ?? []) {
        await using image = await openImage(dir.file(name), { readOnly: true });
        await image.node.snapshots!.loadTemporary(id);
        assertEquals(
          await measure("qcow2", {}, image.node),
          await theirs(dir.path, "-O", "qcow2", "-l", id, name),
        );
      }
    });
  }
});

Deno.test("measure() never returns less than an image takes", async () => {
  const size = 3_000_000;
  for (const options of [{}, { cluster_size: 512 }, { refcount_bits: 64 }]) {
    const store = new MemoryStore();
    const file = { driver: "memory", store };
    await createImage("qcow2", file, { ...options, size });
    await using image = await openImage({ driver: "qcow2", file });
    await image.write(0, new Uint8Array(1_000_000).fill(1));
    await image.flush();
    const part = await measure("qcow2", options, image.node);
    assert(part.required >= store.size);
    await image.write(0, new Uint8Array(image.size).fill(1));
    await image.flush();
    assert(part.fullyAllocated >= store.size);
    const { required, fullyAllocated } = await measure(
      "qcow2",
      options,
      image.node,
    );
    assertEquals(required, fullyAllocated);
  }
});

Deno.test("measure() refuses what cannot be created", async () => {
  await assertRejects(() => measure("nothing"), BlockError, "Unknown file");
  await assertRejects(() => measure("memory"), BlockError, "not support");
  await assertRejects(
    // @ts-expect-error: the compiler says so first.
    () => measure("qcow2", { nothing: 1 }),
    BlockError,
    "Invalid parameter 'nothing'",
  );
  await assertRejects(
    () => measure("qcow2", { size: 2 ** 52, cluster_size: 512 }),
    BlockError,
    "too large",
  );
});
