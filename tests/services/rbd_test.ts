/**
 * The driver against a cluster, compared with QEMU's driver and Ceph's own
 * program.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../core/runtime.ts";
import { BlockError, createImage, openImage } from "../../mod.ts";
import { Random } from "../model.ts";
import { BDRV, type Outcome, run, runOk, TempDir } from "../qemu.ts";
import { makeImage, newName, rbd, spec } from "./rbd.ts";
import { serviceTest } from "./service.ts";

const MIB = 2 ** 20;
const OURS = [...BDRV, "qemu-img"];

/** Run QEMU's program, and our stand-in. */
async function both(...args: string[]): Promise<[Outcome, Outcome]> {
  return [
    await run(["qemu-img", ...args]),
    await run([...OURS, ...args]),
  ];
}

/** A file with data, zeroes and holes. */
async function makeFile(path: string): Promise<void> {
  const random = new Random(5);
  using file = await Deno.open(path, { create: true, write: true });
  await file.truncate(40 * MIB);
  for (const [offset, length] of [[13, 5000], [9 * MIB, 3 * MIB + 1]]) {
    await file.seek(offset, Deno.SeekMode.Start);
    await file.write(random.bytes(length));
  }
}

serviceTest(
  "disks are copied into the cluster and back, as seen by qemu-img",
  async () => {
    await using dir = new TempDir();
    const source = dir.file("source");
    await makeFile(source);
    for (const format of ["raw", "qcow2"]) {
      const [ours, theirs] = [newName(), newName()];
      await runOk([
        ...BDRV,
        "convert",
        "-f",
        "raw",
        "-O",
        format,
        source,
        ours,
      ]);
      await runOk(["qemu-img", "convert", "-O", format, source, theirs]);
      for (const [name, out] of [[ours, "a"], [theirs, "b"]]) {
        const formats = ["-f", "raw", "-F", format];
        await runOk(["qemu-img", "compare", ...formats, source, name]);
        await runOk([...OURS, "compare", ...formats, source, name]);
        const copy = dir.file(out);
        await runOk([
          ...BDRV,
          "convert",
          "-f",
          format,
          "-O",
          "raw",
          name,
          copy,
        ]);
        await runOk(["qemu-img", "compare", "-f", "raw", source, copy]);
        const [map, same] = await both("map", "--output=json", name);
        assertEquals(same, map);
      }
      if (format === "qcow2") await runOk(["qemu-img", "check", ours]);
      // No more space than QEMU's image takes.
      const used = async (name: string) =>
        JSON.parse(await rbd("du", "--format=json", spec(name))).images[0]
          .used_size;
      assert(await used(ours) <= await used(theirs));
    }
  },
);

serviceTest("an existing image is overwritten with -n", async () => {
  await using dir = new TempDir();
  const source = dir.file("source");
  await makeFile(source);
  const name = await makeImage(40 * MIB);
  {
    await using image = await openImage(name, { format: "raw" });
    for (let at = 0; at < 40; at++) {
      await image.write(at * MIB, new Uint8Array(MIB).fill(7));
    }
  }
  const [{ code, stderr }] = await both("create", "-f", "raw", name, "1M");
  assertEquals(code, 1);
  assert(stderr.includes("error rbd create: File exists"), stderr);
  await runOk([...BDRV, "convert", "-n", "-O", "raw", source, name]);
  await runOk(["qemu-img", "compare", "-f", "raw", source, name]);
});

serviceTest("descriptions and mistakes read as QEMU's", async () => {
  const name = await makeImage(5 * MIB);
  const image = spec(name).slice("rbd/".length);
  await rbd("snap", "create", `${spec(name)}@s1`);
  const conf = Deno.env.get("CEPH_CONF")!;
  const json = (more: object) =>
    `json:${JSON.stringify({ driver: "rbd", pool: "rbd", image, ...more })}`;
  const names = [
    name,
    `${name}@s1`,
    `${name}@s1:id=somebody`,
    `${name}:conf=${conf}`,
    `rbd:r\\bd//${image}`,
    json({}),
    json({ snapshot: "s1", user: "me", conf }),
    json({ server: [] }),
    json({ "auth-client-required": ["none"] }),
    "rbd:nopool/a",
    "rbd:rbd/nope",
    `${name}@nope`,
    "rbd:rbd",
    "rbd:",
    "rbd:rbd/",
    "rbd:/a",
    "rbd:rbd/ns/a",
    `${name}:foo`,
    `${name}:foo=bar`,
    `${name}:conf=/nope`,
    `${name}:mon_host=127.0.0.1\\:1:client_mount_timeout=1`,
    `${name}:auth_client_required=cephx:key=zzz`,
    json({ foo: 1 }),
    json({ "key-secret": "k" }),
    json({ server: [{ host: "127.0.0.1" }] }),
    json({ "auth-client-required": [] }),
  ];
  for (const name of names) {
    const [theirs, ours] = await both("info", name);
    // Our messages do not repeat a key.
    const stderr = theirs.stderr.replace("key=zzz", "key=***");
    assertEquals(ours, { ...theirs, stderr }, name);
  }
  for (const options of ["3000", "2k", "64k", "128M"]) {
    const create = async (program: readonly string[]) => {
      const name = newName();
      const args = ["create", "-f", "raw", "-o", `cluster_size=${options}`];
      const { code, stdout, stderr } = await run([
        ...program,
        ...[...args, name, "1M"],
      ]);
      return [code, stdout.replace(name, ""), stderr.replace(name, "")];
    };
    assertEquals(await create(OURS), await create(["qemu-img"]), options);
  }
});

serviceTest("snapshots are Ceph's own, as in QEMU", async () => {
  const name = await makeImage(5 * MIB);
  const write = async (byte: number) => {
    await using image = await openImage(name, { format: "raw" });
    await image.write(MIB, new Uint8Array(MIB).fill(byte));
  };
  const byteAt = async (name: string) => {
    await using image = await openImage(name, { readOnly: true });
    return (await image.read(MIB, 1))[0];
  };
  await write(1);
  await runOk([...BDRV, "snapshot", "-c", "one", name]);
  await write(2);
  await runOk(["qemu-img", "snapshot", "-c", "two", name]);
  await write(3);
  const [theirs, ours] = await both("snapshot", "-l", name);
  assertEquals(ours, theirs);
  assertEquals(ours.stdout.match(/^(one|two) /gm)?.length, 2);
  assertEquals(await byteAt(`${name}@one`), 1);
  assertEquals(await byteAt(`${name}@two`), 2);
  await runOk([...BDRV, "snapshot", "-a", "one", name]);
  assertEquals(await byteAt(name), 1);
  await runOk(["qemu-img", "snapshot", "-a", "two", name]);
  assertEquals(await byteAt(name), 2);
  for (const args of [["-c", ""], ["-a", "nope"], ["-d", "nope"]]) {
    const [theirs, ours] = await both("snapshot", ...args, name);
    assertEquals(ours.code, theirs.code);
    const lastLine = (text: string) => text.trimEnd().split("\n").pop();
    assertEquals(lastLine(ours.stderr), lastLine(theirs.stderr));
  }
  const [, again] = await both("snapshot", "-c", "one", name);
  assert(again.stderr.includes("-17 (File exists)"), again.stderr);
  await runOk([...BDRV, "snapshot", "-d", "one", name]);
  await rbd("snap", "protect", `${spec(name)}@two`);
  const busy = await run([...BDRV, "snapshot", "-d", "two", name]);
  assert(
    busy.stderr.includes("Failed to remove the snapshot: Device or resource"),
    busy.stderr,
  );
  {
    await using image = await openImage(name, { readOnly: true });
    await write(9);
    await image.node.snapshots!.loadTemporary("two");
    assertEquals((await image.read(MIB, 1))[0], 2);
  }
  const open = () => openImage(`${name}@two`, { format: "raw" });
  const { message, code } = await assertRejects(open, BlockError);
  assert(message.endsWith(": rbd snapshots are read-only"), message);
  assertEquals(code, "EACCES");
});

serviceTest("many snapshots are listed, whatever their names", async () => {
  const name = await makeImage(MIB);
  await using image = await openImage(name, { format: "raw" });
  const { snapshots } = image.node;
  const names = Array.from({ length: 5 }, (_, i) => `snapshot ${i} ü`);
  for (const name of names) await snapshots!.create({ name });
  assertEquals((await snapshots!.list()).map(({ name }) => name), names);
  for (const name of ["x".repeat(128), "ü".repeat(64)]) {
    const create = () => snapshots!.create({ name });
    assertEquals((await assertRejects(create, BlockError)).code, "ERANGE");
  }
});

serviceTest("a clone of a protected snapshot reads the same", async () => {
  const parent = await makeImage(9 * MIB);
  {
    await using image = await openImage(parent, { format: "raw" });
    await image.write(5 * MIB, new Uint8Array(10).fill(1));
  }
  await rbd("snap", "create", `${spec(parent)}@base`);
  const from = `clone_from=${spec(parent)}@base`;
  await rbd("snap", "protect", `${spec(parent)}@base`);
  const [plain, larger] = [newName(), newName()];
  await runOk([...BDRV, "create", "-f", "rbd", "-o", from, plain]);
  await runOk([
    ...[...BDRV, "create", "-f", "raw"],
    ...["-o", `${from},object_size=64k`, larger, "12M"],
  ]);
  for (const [name, size] of [[plain, 9 * MIB], [larger, 12 * MIB]] as const) {
    await using image = await openImage(name, { format: "raw" });
    assertEquals(image.size, size);
    await image.write(5 * MIB + 5, new Uint8Array(5).fill(2));
    const both = [1, 1, 1, 1, 1, 2, 2, 2, 2, 2];
    assertEquals([...await image.read(5 * MIB, 10)], both);
    const info = await rbd("info", spec(name));
    assert(info.includes(`parent: ${spec(parent)}@base`), info);
    const [map, same] = [
      await runOk(["qemu-img", "map", "-U", "--output=json", name]),
      await runOk([...OURS, "map", "-U", "--output=json", name]),
    ];
    assertEquals(same, map);
  }
  assertEquals((await rbd("info", spec(larger))).includes("order 16"), true);
  const create = (from: string) =>
    createImage("rbd", newName(), { clone_from: from });
  for (const from of ["rbd/nope@x", `${spec(parent)}@nope`, "nopool/a@b"]) {
    const { code } = await assertRejects(() => create(from), BlockError);
    assertEquals(code, "ENOENT", from);
  }
});

serviceTest("images may be in namespaces", async () => {
  const namespace = crypto.randomUUID();
  await rbd("namespace", "create", `rbd/${namespace}`);
  const name = `rbd:rbd/${namespace}/disk`;
  await runOk([...BDRV, "create", "-f", "raw", name, "1M"]);
  assertEquals((await rbd("ls", `rbd/${namespace}`)).trim(), "disk");
  const [theirs, ours] = await both("info", name);
  assertEquals(ours, theirs);
  assertEquals(ours.code, 0);
});

serviceTest(
  "an image can be resized, and grows when written past its end",
  async () => {
    const name = await makeImage(MIB);
    await runOk([...BDRV, "resize", "-f", "raw", name, "3M"]);
    await runOk([...BDRV, "resize", "-f", "raw", "--shrink", name, "2M"]);
    const { node } = await openImage({ driver: "rbd", filename: name });
    try {
      const bytes = new Uint8Array(70_000).fill(4);
      await Promise.all(Array.from({ length: 20 }, async (_, i) => {
        await node.writev!(2 * MIB + i * bytes.length, [bytes]);
      }));
      assertEquals(node.size, 2 * MIB + 20 * bytes.length);
      const back = new Uint8Array(bytes.length);
      await node.readv(node.size - bytes.length, [back]);
      assert(isEqual(back, bytes));
      const full = () => node.truncate!(9 * MIB, { preallocation: "full" });
      const { message } = await assertRejects(full, BlockError);
      assertEquals(message, "Unsupported preallocation mode 'full'");
    } finally {
      await node.close();
    }
  },
);

serviceTest(
  "qcow2 overlays can have their backing files in the cluster",
  async () => {
    const [base, overlay] = [newName(), newName()];
    await createImage("raw", base, { size: 4 * MIB });
    {
      await using image = await openImage(base, { format: "raw" });
      await image.write(0, new Uint8Array(MIB).fill(6));
    }
    const backing = ["-b", base, "-F", "raw"];
    await runOk([...BDRV, "create", "-f", "qcow2", ...backing, overlay]);
    await runOk([...BDRV, "qemu-io", "-c", "write -P 7 4k 4k", overlay]);
    await runOk([
      ...["qemu-io", "-c", "read -P 6 0 4k", "-c", "read -P 7 4k 4k"],
      overlay,
    ]);
    await runOk(["qemu-img", "check", overlay]);
  },
);

serviceTest(
  "a cluster that does not respond is given up on, and requests can be aborted",
  async () => {
    const away = `${newName()}:mon_host=127.0.0.1\\:1`;
    const limited = `${away}:client_mount_timeout=2`;
    const { code, stdout, stderr } = await run([...BDRV, "info", limited]);
    assertEquals([code, stdout, stderr], [
      1,
      "",
      `bdrv: Could not open '${limited}': error connecting: Connection timed ` +
      "out\n",
    ]);
    const signal = AbortSignal.timeout(50);
    const open = () => openImage(`${away}:client_mount_timeout=1`, { signal });
    assertEquals((await assertRejects(open, BlockError)).code, "ECANCELED");
    // The library's thread ends only at its own time limit.
    await new Promise((resolve) => setTimeout(resolve, 1500));

    const name = await makeImage(8 * MIB);
    await using image = await openImage(name, { format: "raw" });
    const controller = new AbortController();
    const bytes = new Uint8Array(4 * MIB).fill(3);
    const requests = [
      image.write(0, bytes, { signal: controller.signal }),
      image.write(4 * MIB, bytes, { signal: controller.signal }),
    ];
    controller.abort();
    for (const result of await Promise.allSettled(requests)) {
      const isCanceled = result.status === "rejected" &&
        (result.reason as BlockError).code === "ECANCELED";
      assert(isCanceled || result.status === "fulfilled");
    }
    const late = () => image.read(0, 512, { signal: controller.signal });
    assertEquals((await assertRejects(late, BlockError)).code, "ECANCELED");
  },
);

serviceTest(
  "permission for librbd alone is enough, with a less detailed map",
  async () => {
    const name = await makeImage(MIB);
    const allowed = (library: string) =>
      BDRV.flatMap((word) =>
        word === "--allow-all"
          ? ["--allow-read", "--allow-env", `--allow-ffi=${library}`]
          : [word]
      );
    const places = (await runOk(["ldconfig", "-p"])).match(
      /\/\S*librbd\.so\.1/g,
    );
    const command = allowed(places!.join(","));
    const map = await runOk([...command, "map", "--output=json", name]);
    assertEquals(JSON.parse(map).map((one: { data: boolean }) => one.data), [
      true,
    ]);
  },
);

serviceTest("the key of a user is a secret", async () => {
  const name = await makeImage(MIB);
  const image = spec(name).slice("rbd/".length);
  const file = { driver: "rbd", pool: "rbd", image, "key-secret": "k" };
  const secrets = { k: new Uint8Array(28).fill(1) };
  const open = (secrets: Record<string, Uint8Array>) =>
    openImage({ driver: "raw", file }, { secrets });
  // The cluster asks for no key; Ceph itself finds out that this is none.
  await using _image = await open(secrets).catch((error) => {
    assert(error.message.includes("error connecting"), error.message);
    return null;
  });
  const { message } = await assertRejects(() => open({}), BlockError);
  assert(message.endsWith("No secret with id 'k'"), message);
});
