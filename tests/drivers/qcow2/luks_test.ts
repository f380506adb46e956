import { assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { Image } from "../../../core/image.ts";
import { measure } from "../../../core/jobs/measure.ts";
import { openNode } from "../../../core/open.ts";
import type { OpenOptions } from "../../../core/open_options.ts";
import type { OptionValues } from "../../../core/options.ts";
import type { StackObject } from "../../../core/spec.ts";
import { createImage, MemoryStore, type UnlockProgress } from "../../../mod.ts";
import { conformance, generator } from "../../conformance.ts";
import { put32, put64 } from "./bytes.ts";

const MIB = 1024 * 1024;
const secrets = { s0: "correct horse battery", s1: "staple" };
const LUKS = {
  "encrypt.format": "luks",
  "encrypt.key-secret": "s0",
  "encrypt.iter-time": 0,
} as const;
const KEY = { "key-secret": "s0" };

type File = { driver: string; store: MemoryStore };

function memory(): File {
  return { driver: "memory", store: new MemoryStore() };
}

async function make(
  file: File,
  size: number,
  options: OptionValues = {},
): Promise<void> {
  await createImage("qcow2", file, { size, ...LUKS, ...options }, { secrets });
}

async function open(
  file: File,
  others: StackObject = {},
  options: OpenOptions = {},
): Promise<Image> {
  const stack = { driver: "qcow2", encrypt: KEY, file, ...others };
  return new Image(await openNode(stack, { secrets, ...options }));
}

function bytes(length: number, seed: number): Uint8Array<ArrayBuffer> {
  const random = generator(seed);
  return Uint8Array.from({ length }, () => 1 + random(255));
}

/** The bytes of a file, to be read or changed. */
async function patch(
  file: File,
  change: (content: Uint8Array) => void,
): Promise<void> {
  const node = await openNode({ driver: "raw", file });
  const content = new Uint8Array(node.size);
  await node.readv(0, [content]);
  change(content);
  await node.writev!(0, [content]);
  await node.close();
}

const VARIANTS: { readonly [name: string]: OptionValues } = {
  "": {},
  ", smallest clusters": {
    cluster_size: 512,
    "encrypt.cipher-alg": "aes-128",
    "encrypt.cipher-mode": "cbc",
  },
  ", version 2 preallocated": { compat: "v2", preallocation: "metadata" },
};

for (const [name, options] of Object.entries(VARIANTS)) {
  conformance(`qcow2 with LUKS${name}`, {
    async open(size) {
      const file = memory();
      await make(file, size, options);
      const node = async () => (await open(file)).node;
      return { node: await node(), reopen: node };
    },
  });
}

Deno.test("LUKS in qcow2 encrypts sectors by their offset in the file", async () => {
  const file = memory();
  await make(file, MIB);
  await using image = await open(file);
  const data = bytes(65_536, 1);
  await image.write(0, data);
  await image.node.snapshots!.create({ name: "one" });
  // The same guest data, at another host offset.
  await image.write(0, data);
  await image.flush();
  await patch(file, (content) => {
    const [first, second] = [content.length - 131_072, content.length - 65_536];
    assertNotEquals(
      content.slice(first, first + 512),
      content.slice(second, second + 512),
    );
  });
  assertEquals(await image.read(0, data.length), data);
  await image.node.snapshots!.apply("one");
  assertEquals(await image.read(0, data.length), data);
});

Deno.test("LUKS in qcow2: copy-on-write encrypts data again", async () => {
  const file = memory();
  await make(file, MIB);
  await using image = await open(file);
  const before = bytes(200_000, 2);
  await image.write(1000, before);
  await image.node.snapshots!.create({ name: "one" });
  await image.write(50_001, bytes(1000, 3));
  assertEquals(await image.read(1000, 49_001), before.subarray(0, 49_001));
  assertEquals(
    await image.read(51_001, 100_000),
    before.slice(50_001, 150_001),
  );
  await image.node.image!.makeEmpty!();
  assertEquals(await image.read(0, 4096), new Uint8Array(4096));
  await image.node.snapshots!.apply("one");
  assertEquals(await image.read(1000, before.length), before);
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("amend() adds a passphrase to qcow2, next to other changes", async () => {
  const file = memory();
  await make(file, MIB);
  {
    await using image = await open(file);
    await image.write(0, bytes(1000, 4));
    await image.node.image!.amend!({
      "encrypt.state": "active",
      "encrypt.new-secret": "s1",
      "encrypt.iter-time": 0,
      compat: "0.10",
    });
    const info = (await image.info()).specific!.data;
    const encrypt = info.encrypt as { format: string; slots: unknown[] };
    assertEquals([info.compat, encrypt.format], ["0.10", "luks"]);
    assertEquals((encrypt.slots[1] as { active: boolean }).active, true);
  }
  await using image = await open(file, { encrypt: { "key-secret": "s1" } });
  assertEquals(await image.read(0, 1000), bytes(1000, 4));
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("requests proceed while a key is derived for a new passphrase", async () => {
  const file = memory();
  await make(file, MIB);
  await using image = await open(file);
  const ended: string[] = [];
  const amending = image.node.image!.amend!({
    "encrypt.state": "active",
    "encrypt.new-secret": "s1",
    "encrypt.iter-time": 300,
    lazy_refcounts: true,
  }).then(() => ended.push("amend"));
  for (let at = 0; at < MIB; at += 65_536) {
    await image.write(at, bytes(100, at));
    await image.node.snapshots!.create({ name: `${at}` });
  }
  ended.push("writes");
  await image.node.invalidate!();
  ended.push("invalidate");
  await amending;
  assertEquals(ended, ["writes", "invalidate", "amend"]);
  assertEquals((await image.check()).corruptions, 0);
  assertEquals((await image.info()).specific!.data["lazy-refcounts"], true);
});

Deno.test("an image closed while a passphrase is added has it afterwards", async () => {
  for (const driver of ["qcow2", "luks"]) {
    const file = memory();
    const prefix = driver === "qcow2" ? "encrypt." : "";
    const key = { [`${prefix}key-secret`]: "s0" };
    await createImage(driver, file, {
      size: MIB,
      ...key,
      [`${prefix}iter-time`]: 0,
      ...(driver === "qcow2" && { "encrypt.format": "luks" }),
    }, { secrets });
    const image = new Image(
      await openNode({ driver, file, ...key }, { secrets }),
    );
    const amending = image.node.image!.amend!({
      [`${prefix}state`]: "active",
      [`${prefix}new-secret`]: "s1",
      [`${prefix}iter-time`]: 50,
    });
    await image.close();
    await amending;
    const other = { [`${prefix}key-secret`]: "s1" };
    await (await openNode({ driver, file, ...other }, { secrets })).close();
  }
});

Deno.test("opening reports the progress of the search for the key, and can be aborted", async () => {
  const file = memory();
  await make(file, MIB);
  {
    await using image = await open(file);
    await image.node.image!.amend!({
      "encrypt.state": "active",
      "encrypt.new-secret": "s1",
      "encrypt.iter-time": 0,
    });
  }
  const reports: UnlockProgress[] = [];
  const onUnlocking = (progress: UnlockProgress) => void reports.push(progress);
  const other = { encrypt: { "key-secret": "s1" } };
  await (await open(file, other, { onUnlocking })).close();
  const { total, filename } = reports[0];
  assertEquals(
    reports,
    [0, total / 2, total].map((done) => ({
      filename,
      done,
      total,
    })),
  );
  // Some seconds' worth.
  await patch(file, (b) => put32(b, 262_144 + 212, 3_000_000));
  const signal = AbortSignal.timeout(20);
  const error = await assertRejects(
    () => open(file, {}, { signal }),
    BlockError,
  );
  assertEquals(error.code, "ECANCELED");
});

Deno.test("amend() sees the slots that another program changed", async () => {
  const file = memory();
  await make(file, MIB);
  await using image = await open(file);
  const add = {
    "encrypt.state": "active",
    "encrypt.new-secret": "s1",
    "encrypt.iter-time": 0,
  };
  {
    await using other = await open(file);
    await other.node.image!.amend!(add);
  }
  await image.node.invalidate!();
  await image.node.image!.amend!(add);
  const { encrypt } = (await image.info()).specific!.data as {
    encrypt: { slots: { active: boolean }[] };
  };
  const active = encrypt.slots.filter(({ active }) => active);
  assertEquals(active.length, 3);
});

/** The extension's data, right after the header. */
const EXTENSION = 112 + 8;

const HOSTILE: readonly [message: string, (content: Uint8Array) => void][] = [
  ["Unsupported encryption method 3", (b) => put32(b, 32, 3)],
  [
    "CRYPTO header extension only expected with LUKS encryption method",
    (b) => put32(b, 32, 1),
  ],
  [
    "Encryption header offset '262145' is not a multiple of cluster size '65536'",
    (b) => put64(b, EXTENSION, 262_145),
  ],
  [
    "Could not read encryption header: Input/output error",
    (b) => put32(b, EXTENSION, 0x80000000),
  ],
  ["Volume is not in LUKS format", (b) => put32(b, EXTENSION, 0x1000)],
  ["Volume is not in LUKS format", (b) => put64(b, EXTENSION, 1 << 30)],
  [
    "Request for data outside of extension header",
    (b) => put64(b, EXTENSION + 8, 591),
  ],
  [
    "Request for data outside of extension header",
    (b) => put64(b, EXTENSION + 8, 10_000),
  ],
  ["LUKS version 2 is not supported", (b) => b[262_144 + 7] = 2],
];

for (const [message, change] of HOSTILE) {
  Deno.test(`qcow2 with LUKS is refused: ${message}`, async () => {
    const file = memory();
    await make(file, MIB);
    await patch(file, change);
    const error = await assertRejects(() => open(file), BlockError);
    assertEquals(error.message, message);
  });
}

Deno.test("the payload offset of a LUKS header in qcow2 matters only for its slots", async () => {
  const file = memory();
  await make(file, MIB);
  await patch(file, (b) => put32(b, 262_144 + 104, 100_001));
  await (await open(file)).close();
});

Deno.test("measure() adds the clusters of the LUKS header", async () => {
  const sizes = await measure("qcow2", { size: MIB, ...LUKS }, undefined, {
    secrets,
  });
  assertEquals(sizes, { required: 2_424_832, fullyAllocated: 3_473_408 });
});
