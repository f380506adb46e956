/** Files that an image names: extents and parents, and the gate. @module */
import { assertEquals, assertRejects } from "@std/assert";
import { BlockError, createImage, openImage } from "../../../mod.ts";
import { PowerLog } from "../../power_log.ts";
import { TempDir } from "../../qemu.ts";
import { descriptor, stackOf } from "./make.ts";

const MIB = 1024 * 1024;

/** A folder with a descriptor that names one flat extent in this way. */
async function describing(folder: TempDir, name: string): Promise<string> {
  await Deno.mkdir(folder.file("images/parts"), { recursive: true });
  for (const file of ["secret", "images/own", "images/parts/own"]) {
    await Deno.writeFile(folder.file(file), new Uint8Array(4096).fill(1));
  }
  const path = folder.file("images/disk.vmdk");
  await Deno.writeTextFile(path, descriptor([`RW 8 FLAT "${name}" 0`]));
  return path;
}

Deno.test("extents below the image's own folder are opened", async () => {
  await using folder = new TempDir();
  const own = folder.file("images/own");
  for (const name of ["own", "parts/own", "parts/../own", own]) {
    const path = await describing(folder, name);
    await using image = await openImage(path, { readOnly: true });
    assertEquals((await image.read(0, 1))[0], 1);
    await using by = await openImage(path, {
      gate: "allow",
      readOnly: true,
    });
    assertEquals((await by.read(0, 1))[0], 1);
  }
});

Deno.test("an extent from elsewhere is opened only if permitted", async () => {
  await using folder = new TempDir();
  const secret = folder.file("secret");
  await describing(folder, "own");
  await Deno.symlink("../secret", folder.file("images/link"));
  for (const name of [secret, "../secret", "parts/../../secret", "link"]) {
    const path = await describing(folder, name);
    for (const purpose of ["io", "info", "check"] as const) {
      const error = await assertRejects(
        () => openImage(path, { purpose }),
        BlockError,
        "which is not permitted",
      );
      assertEquals(error.code, "EACCES");
    }
    await using image = await openImage(path, {
      gate: "allow",
      readOnly: true,
    });
    assertEquals((await image.read(0, 1))[0], 1);
    const asked: string[] = [];
    const gate = ({ filename }: { filename: string }) => {
      asked.push(filename);
      return true;
    };
    await using seen = await openImage(path, { gate, readOnly: true });
    assertEquals(seen.size, 4096);
    assertEquals(asked.length, 1);
  }
  for (
    const gate of ["deny", { below: folder.file("images/parts") }] as const
  ) {
    const path = await describing(folder, "own");
    await assertRejects(() => openImage(path, { gate }), BlockError);
  }
});

Deno.test("names of other kinds are refused", async () => {
  await using folder = new TempDir();
  for (
    const name of [
      "/dev/zero",
      "/etc/hostname",
      "nbd://127.0.0.1:1/x",
      "null-co://",
      "blkdebug::own",
      "json:{}",
      "x".repeat(5000),
      ".",
      "parts",
    ]
  ) {
    const path = await describing(folder, name);
    await assertRejects(() => openImage(path), BlockError);
  }
  const text = descriptor(['RW 8 FLAT "/etc/hostname" 0']);
  const bytes = new TextEncoder().encode(text);
  await assertRejects(() => openImage(stackOf(bytes)), BlockError);
});

Deno.test("what looks like a URL in an extent line is a path, whatever the gate permits", async () => {
  await using folder = new TempDir();
  let requests = 0;
  const listen = { hostname: "127.0.0.1", port: 0, onListen() {} };
  await using server = Deno.serve(listen, () => {
    requests++;
    return new Response(null, { status: 404 });
  });
  const names = [
    `http://127.0.0.1:${server.addr.port}/x`,
    `nbd://127.0.0.1:${server.addr.port}/x`,
    `file:${folder.file("images/own")}`,
    "null-co://",
  ];
  for (const name of names) {
    const path = await describing(folder, name);
    const open = () => openImage(path, { gate: "allow", readOnly: true });
    await assertRejects(open, BlockError, "No such file or directory");
  }
  assertEquals(requests, 0);
  const path = await describing(folder, "own:1");
  await Deno.writeFile(folder.file("images/own:1"), new Uint8Array(4096));
  await using image = await openImage(path, { readOnly: true });
  assertEquals(image.size, 4096);
});

Deno.test("an image may be its own extent, raw, but not a sparse one", async () => {
  await using folder = new TempDir();
  const path = await describing(folder, "disk.vmdk");
  await using image = await openImage(path, { readOnly: true });
  assertEquals((await image.read(0, 1))[0], "#".charCodeAt(0));
  await Deno.writeTextFile(path, descriptor(['RW 8 SPARSE "disk.vmdk"']));
  await assertRejects(
    () => openImage(path, { readOnly: true }),
    BlockError,
    "Image not in VMDK format",
  );
});

Deno.test("a flush makes both extents and descriptor durable", async () => {
  const extent = new PowerLog(new Uint8Array(4096));
  const text = new TextEncoder().encode(descriptor(['RW 8 FLAT "own" 0']));
  const file = new PowerLog(text);
  const stack = { driver: "vmdk", file, extents: [extent] };
  await using image = await openImage(stack);
  await image.write(0, new Uint8Array(512).fill(1));
  await image.flush();
  assertEquals(extent.durable[0], 1);
  const found = new TextDecoder().decode(file.durable);
  assertEquals(/CID=12345678/.test(found), false);
  await image.write(0, new Uint8Array(512).fill(2));
  await image.close();
  assertEquals(extent.durable[0], 2);
});

Deno.test("users can say where extents are", async () => {
  await using folder = new TempDir();
  const path = await describing(folder, "gone");
  const own = folder.file("images/own");
  const described = { driver: "file", filename: own };
  await using opened = await openImage(described, { readOnly: true });
  for (
    const extents of [
      { 0: described },
      { 0: own },
      [{ filename: own }],
      [opened.node],
    ]
  ) {
    const options = { readOnly: true };
    const stack = { driver: "vmdk", file: path, extents };
    await using image = await openImage(stack, options);
    assertEquals((await image.read(0, 1))[0], 1);
  }
  const more = [{ locking: "off" }];
  await assertRejects(
    () => openImage({ driver: "vmdk", file: path, extents: more }),
    BlockError,
    "images/gone': No such file",
  );
});

/** A base with one nonzero byte in each MiB, and a linked clone of it. */
async function makeChain(folder: TempDir): Promise<[string, string]> {
  const [base, top] = ["base.vmdk", "top.vmdk"].map((n) => folder.file(n));
  await createImage("vmdk", base, { size: 4 * MIB });
  {
    await using image = await openImage(base);
    for (let i = 0; i < 4; i++) {
      await image.write(i * MIB, Uint8Array.of(i + 1));
    }
  }
  await createImage("vmdk", top, {
    size: 4 * MIB,
    backing_file: "base.vmdk",
    backing_fmt: "vmdk",
  });
  return [base, top];
}

Deno.test("a linked clone reads from its parent what it does not hold", async () => {
  await using folder = new TempDir();
  const [base, top] = await makeChain(folder);
  const before = await Deno.readFile(base);
  await using image = await openImage(top);
  const info = await image.node.info!();
  assertEquals([info.backingFile, info.backingFormat], ["base.vmdk", "vmdk"]);
  await image.write(2 * MIB + 1, Uint8Array.of(9));
  assertEquals(await image.read(2 * MIB, 3), Uint8Array.of(3, 9, 0));
  assertEquals((await image.read(3 * MIB, 1))[0], 4);
  await image.close();
  assertEquals(await Deno.readFile(base), before);
  for (const options of [{ gate: "deny" }, { maxChain: 1 }] as const) {
    await assertRejects(() => openImage(top, options), BlockError);
  }
});

Deno.test("a linked clone whose parent has changed is refused", async () => {
  await using folder = new TempDir();
  const [base, top] = await makeChain(folder);
  {
    await using image = await openImage(top);
    await image.write(0, new Uint8Array(65536).fill(7));
  }
  {
    await using image = await openImage(base);
    await image.write(MIB, Uint8Array.of(5));
  }
  await using image = await openImage(top);
  assertEquals((await image.read(0, 1))[0], 7);
  for (
    const request of [
      () => image.read(MIB, 1),
      () => image.write(MIB, Uint8Array.of(1)),
    ]
  ) {
    const error = await assertRejects(request, BlockError, "was changed");
    assertEquals(error.code, "EINVAL");
  }
  await image.check();
  assertEquals((await image.node.info!()).backingFile, "base.vmdk");
});

Deno.test("a parent must be a VMDK", async () => {
  await using folder = new TempDir();
  const options = { size: MIB, backing_file: "base" };
  await createImage("qcow2", folder.file("base"), { size: MIB });
  await assertRejects(
    () => createImage("vmdk", folder.file("top"), options),
    BlockError,
    "Invalid backing file format: qcow2. Must be vmdk",
  );
  await assertRejects(
    () => Deno.stat(folder.file("top")),
    Deno.errors.NotFound,
  );
  await assertRejects(() =>
    createImage("vmdk", folder.file("top"), {
      ...options,
      backing_file: "gone",
    })
  );
});
