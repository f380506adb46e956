import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { Image } from "../../../core/image.ts";
import { convert } from "../../../core/jobs/convert.ts";
import { measure } from "../../../core/jobs/measure.ts";
import { openNode } from "../../../core/open.ts";
import type { OpenOptions } from "../../../core/open_options.ts";
import type { OptionValues } from "../../../core/options.ts";
import type { StackObject } from "../../../core/spec.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance, generator } from "../../conformance.ts";
import { PowerLog } from "../../power_log.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";

const MIB = 1024 * 1024;
const secrets = { s0: "correct horse battery", s1: "staple", s2: "" };
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
  const fast = { "iter-time": 0 };
  const all = { size, ...KEY, ...fast, ...options };
  await createImage("luks", file, all, { secrets });
}

async function open(
  file: File,
  others: StackObject = {},
  options: OpenOptions = {},
): Promise<Image> {
  const stack = { driver: "luks", ...KEY, file, ...others };
  return new Image(await openNode(stack, { secrets, ...options }));
}

function bytes(length: number, seed: number): Uint8Array<ArrayBuffer> {
  const random = generator(seed);
  return Uint8Array.from({ length }, () => 1 + random(255));
}

const VARIANTS: { readonly [name: string]: OptionValues } = {
  "": {},
  ", cbc and essiv": {
    "cipher-alg": "aes-128",
    "cipher-mode": "cbc",
    "ivgen-alg": "essiv",
  },
};

for (const [name, options] of Object.entries(VARIANTS)) {
  conformance(`luks${name}`, {
    async open(size) {
      const file = memory();
      await make(file, size, options);
      const node = async () => (await open(file)).node;
      const first = await node();
      // A new disk holds whatever the file's zeroes decrypt to.
      await first.writev!(0, [new Uint8Array(size)]);
      return { node: first, reopen: node };
    },
  });
}

Deno.test("a luks disk exposes neither plaintext nor offsets in its file", async () => {
  const file = memory();
  await make(file, MIB);
  {
    await using image = await open(file);
    await image.write(70_000, new Uint8Array(100_000).fill(0x55));
    const extent = await image.node.status(0, MIB);
    assertEquals(extent.hostOffset, undefined);
    assertEquals([extent.allocated, extent.zero], [true, false]);
  }
  const node = await openNode({ driver: "raw", file }, { readOnly: true });
  const content = new Uint8Array(node.size);
  await node.readv(0, [content]);
  await node.close();
  const text = new TextDecoder("latin1").decode(content);
  assert(!text.includes("UUUUUUUU"));
});

Deno.test("amend() adds passphrases to a luks disk and erases them", async () => {
  const file = memory();
  await make(file, 4096);
  const slots = async () => {
    await using image = await open(file, {}, { purpose: "info" });
    const { slots } = (await image.info()).specific!.data as {
      slots: { active: boolean }[];
    };
    return slots.flatMap(({ active }, i) => active ? [i] : []);
  };
  {
    await using image = await open(file);
    await image.write(0, bytes(4096, 1));
    const amend = image.node.image!.amend!;
    const add = { state: "active", "iter-time": 0 };
    await amend({ ...add, "new-secret": "s1" });
    await amend({ ...add, "new-secret": "s2", keyslot: 7 });
    assertEquals(await slots(), [0, 1, 7]);
    await amend({ state: "inactive", "old-secret": "s0" });
    // The key is in memory, although the passphrase that led to it is gone.
    await amend({ ...add, "new-secret": "s1", keyslot: 3 });
    assertEquals(await slots(), [1, 3, 7]);
    await amend({ state: "inactive", "old-secret": "s1" });
    assertEquals(await slots(), [7]);
    const last = { state: "inactive", keyslot: 7 };
    await assertRejects(() => amend(last), BlockError, "the only active");
    await assertRejects(
      () => amend({ state: "inactive", "old-secret": "s2" }),
      BlockError,
      "All the active keyslots",
    );
  }
  await assertRejects(() => open(file), BlockError, "Invalid password");
  {
    await using image = await open(file, { "key-secret": "s2" });
    assertEquals(await image.read(0, 4096), bytes(4096, 1));
    const last = { state: "inactive", keyslot: 7 };
    await image.node.image!.amend!(last, { force: true });
  }
  assertEquals(await slots(), []);
});

Deno.test("a power cut during amend() leaves no active key slot that opens nothing", async () => {
  const passphrases = ["s0", "s1"];
  const file = memory();
  await make(file, 4096);
  const log = new PowerLog(contentOf(file.store));
  const stack = { driver: "luks", ...KEY, file: log };
  await using image = new Image(await openNode(stack, { secrets }));
  const { amend } = image.node.image!;
  await amend!({ state: "active", "new-secret": "s1", "iter-time": 0 });
  await assertUnlocks(log.durable, 2);
  await amend!({ state: "inactive", "old-secret": "s0" });
  await assertUnlocks(log.durable, 1);
  for (const { what, file } of log.reordered()) {
    await assertUnlocks(file, undefined, what);
  }

  /** Each active slot is opened by a passphrase of its own. */
  async function assertUnlocks(
    bytes: Uint8Array<ArrayBuffer>,
    count?: number,
    what?: string,
  ) {
    const cut = { driver: "memory", store: storeOf(bytes) };
    await using info = await open(cut, {}, { purpose: "info" });
    const { slots } = (await info.info()).specific!.data as {
      slots: { active: boolean }[];
    };
    const active = slots.filter(({ active }) => active).length;
    if (count !== undefined) assertEquals(active, count);
    let opened = 0;
    for (const name of passphrases) {
      try {
        await using _ = await open(cut, { "key-secret": name });
        opened++;
      } catch {
        // It is counted below.
      }
    }
    assertEquals(opened, active, what);
  }
});

const WRONG: readonly [message: string, options: OptionValues][] = [
  ["Parameter 'key-secret' is required for cipher", {
    "key-secret": undefined,
  }],
  ["No secret with id 'zz'", { "key-secret": "zz" }],
  ["Algorithm 'serpent-256' not supported", { "cipher-alg": "serpent-256" }],
  ["The requested file size is too large", { size: 2 ** 62 }],
];

for (const [message, options] of WRONG) {
  Deno.test(`creating a luks disk fails before its file is touched: ${message}`, async () => {
    const file = { driver: "memory", store: new MemoryStore(100) };
    const error = await assertRejects(
      () => make(file, MIB, options),
      BlockError,
    );
    assertEquals(error.message, message);
    assertEquals(file.store.size, 100);
  });
}

Deno.test("a missing passphrase is reported before an unsound header, as in QEMU", async () => {
  const file = { driver: "memory", store: new MemoryStore(MIB) };
  const cases: [message: string, options: OptionValues][] = [
    ["Parameter 'key-secret' is required for cipher", {
      "key-secret": undefined,
    }],
    ["No secret with id 'zz'", { "key-secret": "zz" }],
    ["Volume is not in LUKS format", {}],
  ];
  for (const [message, options] of cases) {
    const error = await assertRejects(() => open(file, options), BlockError);
    assertEquals(error.message, message);
  }
});

Deno.test("a luks disk may have its header elsewhere", async () => {
  const [header, payload] = [memory(), memory()];
  await make(header, 0, { "detached-header": true, size: undefined });
  payload.store = new MemoryStore(MIB);
  {
    await using image = await open(payload, { header });
    assertEquals(image.size, MIB);
    await image.write(0, bytes(5000, 2));
    await image.node.image!.amend!({
      state: "active",
      "new-secret": "s1",
      "iter-time": 0,
    });
    const { specific } = await image.info();
    assertEquals(specific!.data["detached-header"], true);
    assertEquals(specific!.data["payload-offset"], 0);
  }
  await using image = await open(payload, { header, "key-secret": "s1" });
  assertEquals(await image.read(0, 5000), bytes(5000, 2));
  await assertRejects(
    () => open(header),
    BlockError,
    "LUKS payload is overlapping with the header",
  );
});

Deno.test("without its key, a luks disk can be described, and nothing else", async () => {
  const file = memory();
  await make(file, MIB);
  await using image = await open(file, { "key-secret": undefined }, {
    withoutKeys: true,
  });
  assertEquals((await image.info()).encrypted, true);
  const why = "The image was opened without its key";
  await assertRejects(() => image.read(0, 1), BlockError, why);
  await assertRejects(() => image.write(0, new Uint8Array(1)), BlockError, why);
  await assertRejects(
    () => open(file, { "key-secret": undefined }),
    BlockError,
    "Parameter 'key-secret' is required for cipher",
  );
});

Deno.test("a luks disk whose data would lie past the end of its file is refused", async () => {
  const file = memory();
  await make(file, 0);
  assertEquals((await open(file)).size, 0);
  const node = await openNode({ driver: "raw", file });
  await node.truncate!(node.size - 513);
  await node.close();
  await assertRejects(
    () => open(file),
    BlockError,
    "Could not refresh total sector count: Input/output error",
  );
});

Deno.test("convert() writes the zeroes of a new luks disk", async () => {
  const [source, target] = [memory(), memory()];
  source.store = new MemoryStore(MIB);
  await make(target, MIB);
  await using from = new Image(await openNode({ driver: "raw", file: source }));
  await using to = await open(target);
  await convert([from.node], to.node);
  assertEquals(await to.read(0, MIB), new Uint8Array(MIB));
});

Deno.test("measure() counts a luks header, and asks for the key as create does", async () => {
  const sizes = await measure("luks", { size: MIB, ...KEY }, undefined, {
    secrets,
  });
  const size = 2_068_480 + MIB;
  assertEquals(sizes, { required: size, fullyAllocated: size });
  await assertRejects(
    () => measure("luks", { size: MIB }, undefined, { secrets }),
    BlockError,
    "Parameter 'key-secret' is required for cipher",
  );
});
