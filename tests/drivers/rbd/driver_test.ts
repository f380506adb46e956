/**
 * What the driver says where it cannot work, and what works without a cluster.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert";
import { denoPlatform } from "../../../core/platform/deno.ts";
import { usePlatform } from "../../../core/platform/mod.ts";
import type { Platform } from "../../../core/platform/platform.ts";
import { BlockError, createImage, openImage } from "../../../mod.ts";
import { BDRV, run } from "../../qemu.ts";
import { setPortable } from "../../platforms.ts";

async function failure(act: () => Promise<unknown>): Promise<string> {
  return (await assertRejects(act, BlockError)).message;
}

Deno.test("rbd says what it needs if the library cannot be called", async () => {
  const needs = "Could not open 'rbd:p/i': Driver 'rbd' needs Ceph's " +
    "librbd.so.1, ";
  const { libraries, ...others } = denoPlatform()!;
  const cases: [platform: Platform, why: string][] = [
    [others, "which this runtime cannot call: Deno on Linux can"],
    [
      { ...others, libraries: { ...libraries!, isPermitted: () => false } },
      "and the permission to call it: --allow-ffi",
    ],
    [
      {
        ...others,
        libraries: {
          ...libraries!,
          isPermitted: () => true,
          find: () => null,
        },
      },
      "which is not installed (package librbd1)",
    ],
  ];
  try {
    for (const [platform, why] of cases) {
      usePlatform(platform);
      assertEquals(await failure(() => openImage("rbd:p/i")), needs + why);
    }
    setPortable(true);
    const create = () => createImage("raw", "rbd:p/i", { size: 512 });
    assertEquals(
      await failure(create),
      "Driver 'rbd' needs Ceph's librbd.so.1, which this runtime cannot " +
        "call: Deno on Linux can",
    );
  } finally {
    usePlatform();
  }
});

Deno.test("rbd without --allow-ffi gives one line, and no prompt", async () => {
  const command = BDRV.map((word) =>
    word === "--allow-all" ? "--allow-read" : word
  );
  const { code, stdout, stderr } = await run([...command, "info", "rbd:p/i"]);
  assertEquals([code, stdout, stderr], [
    1,
    "",
    "bdrv: Could not open 'rbd:p/i': Driver 'rbd' needs Ceph's " +
    "librbd.so.1, and the permission to call it: --allow-ffi\n",
  ]);
});

Deno.test("options of new rbd images that make no sense are refused", async () => {
  const create = (options: object, name = "rbd:p/i") =>
    failure(() => createImage("raw", name, { size: 512, ...options }));
  assertEquals(
    await create({ cluster_size: 3000 }),
    "obj size needs to be power of 2",
  );
  assertEquals(await create({ cluster_size: 2048 }), "obj size too small");
  assertEquals(
    await create({ cluster_size: 4096, object_size: 8192 }),
    "'cluster_size' and 'object_size' are the same, but differ",
  );
  assertEquals(
    await create({ preallocation: "full" }),
    "Invalid parameter 'preallocation'",
  );
  assertEquals(
    await create({ "encrypt.format": "luks" }),
    "Ceph's own encryption ('encrypt.format') is not supported: use the " +
      "format 'luks' on the image",
  );
  assertEquals(
    await create({}, "rbd:p/i@s"),
    "Snapshots cannot be created like this: name the image alone",
  );
  assertEquals(await create({ foo: 1 }), "Invalid parameter 'foo'");
  assertEquals(
    await create({ "password-secret": "k" }),
    "'password-secret' is not supported: describe the image with its " +
      "'key-secret', as in json:{…}",
  );
});

Deno.test("other protocols refuse the options of rbd images", async () => {
  const { code, stderr } = await run([
    ...BDRV,
    ...["create", "-f", "raw", "-o", "object_size=4M", "/nowhere/x", "1M"],
  ]);
  assertEquals(code, 1);
  assertEquals(stderr.includes("Invalid parameter 'object_size'"), true);
});

Deno.test("a format's help lists the options of rbd images", async () => {
  const help = async (...args: string[]) =>
    (await run([...BDRV, "create", "-o", "help", "-f", ...args])).stdout
      .split("\n").map((line) => line.trim().split("=")[0]);
  const raw = await help("raw", "rbd:p/i");
  assertEquals(raw, [
    "Supported options:",
    "clone_from",
    "cluster_size",
    "object_size",
    "size",
    "",
  ]);
  const qcow2 = await help("qcow2", "rbd:p/i");
  assertEquals(qcow2.filter((name) => name === "cluster_size").length, 1);
  assertEquals((await help("raw")).includes("object_size"), false);
});
