import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { Image } from "../../../core/image.ts";
import { convert } from "../../../core/jobs/convert.ts";
import type { BlockNode } from "../../../core/node.ts";
import { openNode } from "../../../core/open.ts";
import type { OptionValues } from "../../../core/options.ts";
import type { SecretSource } from "../../../core/secrets.ts";
import type { StackObject } from "../../../core/spec.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { conformance, generator } from "../../conformance.ts";
import { qemuTest, run, runOk, TempDir } from "../../qemu.ts";
import { kindOf } from "../../extents.ts";

const KIB = 1024;
const secrets = { s0: "correct horse battery", s1: "x" };
const AES = { "encrypt.format": "aes", "encrypt.key-secret": "s0" } as const;
const KEY = { "key-secret": "s0" };
const OBJECT = ["--object", `secret,id=s0,data=${secrets.s0}`];

type File = string | { driver: string; store: MemoryStore };

function memory(): File {
  return { driver: "memory", store: new MemoryStore() };
}

async function make(
  file: File,
  size: number,
  options: OptionValues = {},
): Promise<void> {
  await createImage("qcow2", file, { size, ...AES, ...options }, { secrets });
}

async function open(
  file: File,
  others: StackObject = {},
  readOnly = false,
): Promise<Image> {
  const stack = { driver: "qcow2", encrypt: KEY, file, ...others };
  return new Image(
    await openNode(stack, { secrets, readOnly, gate: "allow" }),
  );
}

function bytes(length: number, seed: number): Uint8Array<ArrayBuffer> {
  const random = generator(seed);
  return Uint8Array.from({ length }, () => 1 + random(255));
}

/** The whole content of a file. */
async function fileContent(file: File): Promise<Uint8Array> {
  const node = await openNode({ driver: "raw", file }, { readOnly: true });
  const content = new Uint8Array(node.size);
  await node.readv(0, [content]);
  await node.close();
  return content;
}

const VARIANTS: { readonly [name: string]: OptionValues } = {
  "": {},
  ", smallest clusters": { cluster_size: 512 },
  ", version 2": { compat: "v2", encryption: undefined },
  ", preallocated": { preallocation: "metadata" },
  ", version 2 preallocated": { compat: "v2", preallocation: "metadata" },
};

for (const [name, options] of Object.entries(VARIANTS)) {
  conformance(`encrypted qcow2${name}`, {
    async open(size) {
      const file = memory();
      await make(file, size, options);
      const node = async () => (await open(file)).node;
      return { node: await node(), reopen: node };
    },
  });
}

Deno.test("an encrypted image has no plaintext in its file", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  {
    await using image = await open(file);
    await image.write(70_000, new Uint8Array(100_000).fill(0x55));
    await image.write(300_000, new Uint8Array(10));
    const info = await image.info();
    assertEquals(info.encrypted, true);
    assertEquals(info.specific?.data.encrypt, { format: "aes" });
  }
  const content = await fileContent(file);
  const text = new TextDecoder("latin1").decode(content);
  assert(!text.includes("UUUUUUUU"));
  // Data, and the zeroes around it: no two blocks of a data cluster are equal.
  const data = content.subarray(5 * 64 * KIB);
  const blocks = new Set<string>();
  for (let at = 0; at < data.length; at += 16) {
    blocks.add(data.subarray(at, at + 16).join());
  }
  assertEquals(blocks.size, data.length / 16);
});

Deno.test("writing to an encrypted image leaves the caller's buffers alone", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  await using image = await open(file);
  const parts = [bytes(512, 1), bytes(100, 2), bytes(65_000, 3), bytes(436, 4)];
  const copies = parts.map((part) => part.slice());
  await image.writev(1024, parts);
  await image.writev(1024 * KIB - 66_048, parts);
  await image.writev(1024, parts);
  assertEquals(parts, copies);
});

Deno.test("the extents of an encrypted image have no offset in the file", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  await using image = await open(file);
  await image.write(0, bytes(64 * KIB, 1));
  const extent = await image.node.status(0, 64 * KIB);
  assertEquals([kindOf(extent), extent.length], ["data", 64 * KIB]);
  assertEquals([extent.hostOffset, extent.file], [undefined, undefined]);
});

Deno.test("an encrypted image refuses compressed writes", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  await using image = await open(file);
  const error = await assertRejects(
    () => image.node.writeCompressed!(0, [new Uint8Array(64 * KIB)]),
    BlockError,
  );
  assertEquals(error.code, "ENOTSUP");
});

Deno.test("VM state of an encrypted image is encrypted, at any offset", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  const state = bytes(100_001, 5);
  {
    await using image = await open(file);
    await image.node.vmState!.save(0, [state.subarray(0, 777)]);
    await image.node.vmState!.save(777, [state.subarray(777)]);
  }
  await using image = await open(file);
  const back = new Uint8Array(state.length);
  await image.node.vmState!.load(0, [back.subarray(0, 5000)]);
  await image.node.vmState!.load(5000, [back.subarray(5000)]);
  assertEquals(back, state);
  const text = new TextDecoder("latin1").decode(await fileContent(file));
  const needle = new TextDecoder("latin1").decode(state.subarray(600, 616));
  assert(!text.includes(needle));
});

Deno.test("snapshots of an encrypted image keep their content", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  const before = bytes(200_000, 6);
  const after = bytes(1000, 7);
  await using image = await open(file);
  await image.write(1000, before);
  await image.node.snapshots!.create({ name: "one" });
  await image.write(50_001, after);
  assertEquals(await image.read(50_001, 1000), after);
  assertEquals(
    await image.read(51_001, 100),
    before.subarray(50_001, 50_101),
  );
  await image.node.snapshots!.apply("one");
  assertEquals(await image.read(1000, before.length), before);
});

Deno.test("an encrypted image keeps its key when its metadata is reloaded", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  await using image = await open(file);
  await image.write(1, bytes(1000, 14));
  await image.node.invalidate!();
  assertEquals(await image.read(1, 1000), bytes(1000, 14));
});

Deno.test("encrypted and plain images can be each other's backing files", async (t) => {
  const size = 1024 * KIB;
  const lower = bytes(300_000, 8);
  const upper = bytes(30_000, 9);
  for (const [below, above] of [[true, false], [false, true], [true, true]]) {
    await t.step(`${below ? "encrypted" : "plain"} below`, async () => {
      const [base, overlay] = [memory(), memory()];
      const none = {
        "encrypt.format": undefined,
        "encrypt.key-secret": undefined,
      };
      await make(base, size, below ? {} : none);
      await make(overlay, 2 * size, above ? {} : none);
      const backing = { driver: "qcow2", encrypt: KEY, file: base };
      {
        await using image = await open(base);
        await image.write(size - lower.length, lower);
      }
      await using image = await open(overlay, { backing });
      const expected = new Uint8Array(2 * size);
      expected.set(lower, size - lower.length);
      for (const offset of [size - 200_000, size - 7, 3]) {
        await image.write(offset, upper);
        expected.set(upper, offset);
      }
      assertEquals(await image.read(0, 2 * size), expected);
    });
  }
});

Deno.test("convert() encrypts, and decrypts", async () => {
  const size = 1024 * KIB;
  const plain = new MemoryStore(size);
  const [encrypted, back] = [memory(), new MemoryStore(size)];
  const disk = (store: MemoryStore): Promise<BlockNode> =>
    openNode({ driver: "raw", file: { driver: "memory", store } });
  const data = bytes(123_456, 10);
  const source = await disk(plain);
  await source.writev!(54_321, [data]);
  await make(encrypted, size);
  {
    await using image = await open(encrypted);
    await convert([source], image.node, { targetIsZero: true });
  }
  const target = await disk(back);
  {
    await using image = await open(encrypted, {}, true);
    await convert([image.node], target);
  }
  const found = new Uint8Array(size);
  await target.readv(0, [found]);
  const expected = new Uint8Array(size);
  expected.set(data, 54_321);
  assertEquals(found, expected);
});

Deno.test("info on an encrypted image needs no key", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  const node = await openNode({ driver: "qcow2", file }, { purpose: "info" });
  assertEquals((await node.info!()).encrypted, true);
  await node.close();
});

Deno.test("a function can supply the secret, even one without a name", async () => {
  const file = memory();
  await make(file, 1024 * KIB);
  {
    await using image = await open(file);
    await image.write(0, bytes(512, 11));
  }
  const asked: unknown[] = [];
  const node = await openNode({ driver: "qcow2", file }, {
    secrets: (request) => {
      asked.push(request);
      return Promise.resolve(new TextEncoder().encode(secrets.s0));
    },
  });
  const sector = new Uint8Array(512);
  await node.readv(0, [sector]);
  assertEquals(sector, bytes(512, 11));
  assertEquals(asked, [{ id: undefined, filename: node.filename }]);
  await node.close();
});

const WRONG_TO_OPEN: readonly [
  message: string,
  stack: StackObject,
  secrets?: SecretSource,
][] = [
  ["Parameter 'encrypt.key-secret' is required for cipher", {}],
  ["Parameter 'encrypt.key-secret' is required for cipher", {
    encrypt: { format: "aes" },
  }],
  ["No secret with id 's2'", { encrypt: { "key-secret": "s2" } }],
  ["No secret with id 's0'", { encrypt: KEY }, {}],
  ["No secret with id 'toString'", { encrypt: { "key-secret": "toString" } }],
  ["Data from secret bad is not valid UTF-8", {
    encrypt: { "key-secret": "bad" },
  }, { bad: new Uint8Array([0x78, 0xff]) }],
  ["Data from secret bad is not valid UTF-8", {
    encrypt: { "key-secret": "bad" },
  }, { bad: "with a \0" }],
  ["Header reported 'aes' encryption format but options specify 'luks'", {
    encrypt: { format: "luks", "key-secret": "s0" },
  }],
  ["Header reported 'aes' encryption format but options specify 'rot13'", {
    encrypt: { format: "rot13", "key-secret": "s0" },
  }],
];

for (const [message, stack, source] of WRONG_TO_OPEN) {
  Deno.test(`opening an encrypted image: ${message}, ${JSON.stringify(stack)}`, async () => {
    const file = memory();
    await make(file, 1024 * KIB);
    const error = await assertRejects(
      () =>
        openNode(
          { driver: "qcow2", file, ...stack },
          { secrets: source ?? secrets },
        ),
      BlockError,
    );
    assertEquals(error.message, message);
    assertEquals(error.code, "EINVAL");
  });
}

Deno.test("for a plain image, a key is accepted, but an encryption format is refused", async () => {
  const file = memory();
  await createImage("qcow2", file, { size: 1024 });
  await (await open(file)).close();
  const error = await assertRejects(
    () => open(file, { encrypt: { format: "aes", ...KEY } }),
    BlockError,
  );
  assertEquals(
    error.message,
    "No encryption in image header, but options specified format 'aes'",
  );
});

const WRONG_TO_CREATE: readonly [message: string, options: OptionValues][] = [
  ["Parameter 'encrypt.key-secret' is required for cipher", {
    "encrypt.format": "aes",
  }],
  ["Parameter 'encrypt.key-secret' is required for cipher", {
    encryption: true,
  }],
  ["Parameter 'encrypt.format' is missing", { "encrypt.key-secret": "s0" }],
  ["Parameter 'encrypt.format' is missing", {
    encryption: false,
    "encrypt.key-secret": "s0",
  }],
  [
    "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    { encryption: true, ...AES },
  ],
  ["No secret with id 's2'", { ...AES, "encrypt.key-secret": "s2" }],
  [
    "Parameter 'format' does not accept value 'rot13'; it must be one of aes, luks",
    {
      "encrypt.format": "rot13",
    },
  ],
  ["Parameter 'encrypt.iter-time' is unexpected", {
    ...AES,
    "encrypt.iter-time": 10,
  }],
];

for (const [message, options] of WRONG_TO_CREATE) {
  Deno.test(`creating an encrypted image: ${message}, ${JSON.stringify(options)}`, async () => {
    const file = { driver: "memory", store: new MemoryStore(100) };
    const error = await assertRejects(
      () => createImage("qcow2", file, { size: 1024, ...options }, { secrets }),
      BlockError,
    );
    assertEquals(error.message, message);
    assertEquals(file.store.size, 100);
  });
}

Deno.test("the old option `encryption` stands for AES", async () => {
  const file = memory();
  const options = { size: 1024, encryption: true, "encrypt.key-secret": "s0" };
  await createImage("qcow2", file, options, { secrets });
  await using image = await open(file);
  assertEquals((await image.info()).encrypted, true);
});

/** Offsets and lengths of writes, made by both QEMU and us. */
const WRITES = [
  [0, 512],
  [65_535, 2],
  [131_072, 65_536],
  [200_001, 300_003],
  [1_048_575, 1],
] as const;

function writeCommands(): string[] {
  return WRITES.flatMap(([offset, length], i) => [
    "-c",
    `write -P ${i + 1} ${offset} ${length}`,
  ]);
}

function expectedContent(): Uint8Array<ArrayBuffer> {
  const content = new Uint8Array(1024 * KIB);
  WRITES.forEach(([offset, length], i) =>
    content.fill(i + 1, offset, offset + length)
  );
  return content;
}

const QEMU_VARIANTS = [
  "cluster_size=64k",
  "cluster_size=512",
  "cluster_size=2M",
  "compat=0.10",
  "preallocation=metadata",
  "preallocation=full",
];

for (const variant of QEMU_VARIANTS) {
  qemuTest(
    `an encrypted image written by QEMU reads the same here (${variant})`,
    async () => {
      await using dir = new TempDir();
      const path = dir.file("a.qcow2");
      const options = Object.entries(AES).map((pair) => pair.join("="));
      await runOk([
        "qemu-img",
        "create",
        ...["-q", "-f", "qcow2", ...OBJECT, "-o"],
        [...options, variant].join(),
        path,
        "1M",
      ]);
      const description =
        `driver=qcow2,encrypt.key-secret=s0,file.filename=${path}`;
      // What QEMU preallocates decrypts to anything but zeroes.
      const wipe = ["-c", "write -P 0 0 1M"];
      await runOk([
        "qemu-io",
        ...OBJECT,
        ...wipe,
        ...writeCommands(),
        "--image-opts",
        description,
      ]);
      await using image = await open(path);
      assertEquals(await image.read(0, image.size), expectedContent());
      // After we have written to it as well, QEMU still reads it.
      await image.write(77_777, bytes(99_999, 12));
      await image.close();
      await runOk([
        "qemu-img",
        "check",
        ...OBJECT,
        "--image-opts",
        description,
      ]);
      const raw = dir.file("a.raw");
      await runOk([
        "qemu-img",
        "convert",
        ...OBJECT,
        "--image-opts",
        description,
        "-O",
        "raw",
        raw,
      ]);
      const expected = expectedContent();
      expected.set(bytes(99_999, 12), 77_777);
      assertEquals(await Deno.readFile(raw), expected);
    },
    ["qemu-img", "qemu-io"],
  );

  qemuTest(
    `an encrypted image written here reads the same in QEMU (${variant})`,
    async () => {
      await using dir = new TempDir();
      const path = dir.file("a.qcow2");
      const [name, value] = variant.split("=");
      await make(path, 1024 * KIB, { [name]: value });
      {
        await using image = await open(path);
        for (const [i, [offset, length]] of WRITES.entries()) {
          await image.write(offset, new Uint8Array(length).fill(i + 1));
        }
      }
      const description =
        `driver=qcow2,encrypt.key-secret=s0,file.filename=${path}`;
      await runOk([
        "qemu-img",
        "check",
        ...OBJECT,
        "--image-opts",
        description,
      ]);
      const raw = dir.file("a.raw");
      await runOk([
        "qemu-img",
        "convert",
        ...OBJECT,
        "--image-opts",
        description,
        "-O",
        "raw",
        raw,
      ]);
      assertEquals(await Deno.readFile(raw), expectedContent());
      const { stderr } = await run(["qemu-img", "check", path]);
      assert(stderr.includes("'encrypt.key-secret' is required"), stderr);
    },
    ["qemu-img", "qemu-io"],
  );
}

qemuTest(
  "an encrypted overlay of an encrypted image reads the same here and in QEMU",
  async () => {
    await using dir = new TempDir();
    const [base, overlay] = [dir.file("base.qcow2"), dir.file("overlay.qcow2")];
    await make(base, 1024 * KIB);
    {
      await using image = await open(base);
      await image.write(0, expectedContent());
    }
    await make(overlay, 1024 * KIB, {
      backing_file: "base.qcow2",
      backing_fmt: "qcow2",
    });
    const expected = expectedContent();
    const description = `driver=qcow2,encrypt.key-secret=s0,` +
      `file.filename=${overlay},backing.encrypt.key-secret=s0`;
    await runOk([
      "qemu-io",
      ...OBJECT,
      "-c",
      "write -P 99 70000 1000",
      "--image-opts",
      description,
    ]);
    expected.fill(99, 70_000, 71_000);
    await using image = await open(overlay, { backing: { encrypt: KEY } });
    await image.write(900_001, bytes(10, 13));
    expected.set(bytes(10, 13), 900_001);
    assertEquals(await image.read(0, image.size), expected);
    await image.close();
    const raw = dir.file("a.raw");
    await runOk([
      "qemu-img",
      "convert",
      ...OBJECT,
      "--image-opts",
      description,
      "-O",
      "raw",
      raw,
    ]);
    assertEquals(await Deno.readFile(raw), expected);
  },
  ["qemu-img", "qemu-io"],
);

qemuTest(
  "compressed clusters of an encrypted image of QEMU's can be read",
  async () => {
    await using dir = new TempDir();
    const path = dir.file("a.qcow2");
    await make(path, 1024 * KIB);
    await runOk([
      "qemu-io",
      ...OBJECT,
      "-c",
      "write -c -P 5 64k 64k",
      "--image-opts",
      `driver=qcow2,encrypt.key-secret=s0,file.filename=${path}`,
    ]);
    await using image = await open(path);
    await image.write(70_000, new Uint8Array([1, 2, 3]));
    const expected = new Uint8Array(64 * KIB).fill(5);
    expected.set([1, 2, 3], 70_000 - 64 * KIB);
    assertEquals(await image.read(64 * KIB, 64 * KIB), expected);
  },
  ["qemu-img", "qemu-io"],
);
