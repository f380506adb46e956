/** What messages say under our own name, beyond QEMU's words. @module */
import { assert, assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** What each call's message must include. */
const SAID: { readonly [call: string]: string } = {
  "create -f qcow2 new 10GB": "'10GB'",
  "create -f qcow2 new 1,5G": "'1,5G'",
  "create -f qcow2 new 10Gi": "'10Gi'",
  "create -f qcow2 -o size=10GB new": "'10GB'",
  "create -f qcow2 -o cluster_size=64KB new 1G": "'64KB'",
  "create -f qcow2 -o refcount_bits=many new 1G": "'many'",
  "create -f qcow2 -o lazy_refcounts=maybe new 1G": "'maybe'",
  "resize disk.qcow2 +10GB": "'10GB'",
  "resize --preallocation=some disk.qcow2 2M":
    "one of off, metadata, falloc, full",
  "convert -S 10kB disk.qcow2 new": "'10kB'",
  "convert -m 99 disk.qcow2 new": "'99'",
  "convert -r 10MBs disk.qcow2 new": "'10MBs'",
  "convert -t some disk.qcow2 new": "one of writeback, writethrough",
  "dd bs=10MB if=disk.qcow2 of=new": "'10MB'",
  "measure --size 10GB -O qcow2": "'10GB'",
  "map -s 10GB disk.qcow2": "'10GB'",
  "bench -c 1,5 disk.qcow2": "'1,5'",
  "bench -i some disk.qcow2": "one of threads, native, io_uring",
  "create -f qcow2 -o preallocation=some new 1G":
    "one of off, metadata, falloc, full",
  "create -f qcow2 -o compression_type=lz4 new 1G": "one of zlib, zstd",
  "create -f qcow2 -o compat=2 new 1G": "one of 0.10, 1.1, v2, v3",
  "info --image-opts driver=raw,offset=1,,5k,file.filename=disk.qcow2":
    "'1,5k'",
  "info --image-opts driver=qcow2,discard=some,file.filename=disk.qcow2":
    "one of ignore, unmap, off, on",
  "info --image-opts driver=qcow2,file.aio=some,file.filename=disk.qcow2":
    "one of threads, native, io_uring",
};

qemuTest(
  "only our own name's messages say which values were refused",
  async (t) => {
    await using dir = new TempDir();
    const cwd = dir.path;
    await runOk([...BDRV, "create", "-f", "qcow2", "disk.qcow2", "1M"], {
      cwd,
    });
    for (const [call, words] of Object.entries(SAID)) {
      await t.step(call, async () => {
        // In sequence: an image is locked while it is written to.
        const args = call.split(" ");
        const ours = await run([...BDRV, ...args], { cwd });
        const standIn = await run([...BDRV, "qemu-img", ...args], { cwd });
        const theirs = await run(["qemu-img", ...args], { cwd });
        assertEquals(
          [ours.code, ours.stderr.includes(words)],
          [1, true],
          ours.stderr,
        );
        assertEquals(standIn, theirs);
      });
    }
  },
);

/** A valid value for each kind of option. */
const FITTING: { readonly [name: string]: string } = {
  backing_file: "disk.qcow2",
  backing_fmt: "qcow2",
  cluster_size: "64k",
  compat: "1.1",
  compression_type: "zlib",
  data_file: "data",
  data_file_raw: "off",
  "encrypt.cipher-alg": "aes-128",
  "encrypt.cipher-mode": "cbc",
  "encrypt.format": "aes",
  "encrypt.hash-alg": "sha1",
  "encrypt.iter-time": "0",
  "encrypt.ivgen-alg": "plain",
  "encrypt.ivgen-hash-alg": "sha256",
  "encrypt.key-secret": "sec",
  encryption: "on",
  extended_l2: "on",
  lazy_refcounts: "on",
  preallocation: "off",
  refcount_bits: "16",
  size: "1M",
};

/** The options that a program's `-o help` offers. */
async function offered(command: string): Promise<string[]> {
  const text = await runOk([...BDRV, ...command.split(" "), "-o", "help"]);
  return [...text.matchAll(/^ {2}(\S+)=</gm)].map(([, name]) => name);
}

Deno.test("-o help offers what is accepted", async (t) => {
  await using dir = new TempDir();
  const cwd = dir.path;
  await runOk([...BDRV, "create", "-f", "qcow2", "disk.qcow2", "1M"], { cwd });
  const overlay = ["-b", "disk.qcow2", "-F", "qcow2", "top.qcow2"];
  await runOk([...BDRV, "create", "-f", "qcow2", ...overlay], { cwd });
  const secret = ["--object", "secret,id=sec,data=abc"];
  const luks = "encrypt.format=luks,encrypt.key-secret=sec,encrypt.iter-time=0";
  const needs: { readonly [name: string]: string } = {
    backing_file: "backing_fmt=qcow2",
    backing_fmt: "backing_file=disk.qcow2",
    "encrypt.cipher-alg": luks,
    "encrypt.cipher-mode": luks,
    "encrypt.format": "encrypt.key-secret=sec",
    "encrypt.hash-alg": luks,
    "encrypt.iter-time": luks,
    "encrypt.ivgen-alg": luks,
    "encrypt.ivgen-hash-alg": luks,
    "encrypt.key-secret": "encrypt.format=aes",
    encryption: "encrypt.key-secret=sec",
  };
  for (
    const [command, target] of [["create -f qcow2", "new"], [
      "create -f raw",
      "new",
    ], ["amend -f qcow2", "top.qcow2"]]
  ) {
    const names = await offered(command);
    assert(names.includes("size"));
    for (const name of names) {
      // Only for images that have one.
      if (name === "data_file" && command.startsWith("amend")) continue;
      // These need an image with LUKS, and its key: see interop/luks_test.ts.
      if (command.startsWith("amend") && name.startsWith("encrypt.")) continue;
      await t.step(`${command} -o ${name}`, async () => {
        const option = [`${name}=${FITTING[name]}`, needs[name]].filter(
          Boolean,
        );
        const size = command.startsWith("create") && name !== "size"
          ? ["1M"]
          : [];
        await runOk([
          ...[...BDRV, ...command.split(" "), ...secret, "-o"],
          ...[option.join(","), target, ...size],
        ], { cwd });
      });
    }
  }
});

Deno.test("a suggestion never repeats what was typed", async (t) => {
  await using dir = new TempDir();
  const cwd = dir.path;
  await runOk([...BDRV, "create", "-q", "-f", "qcow2", "disk.qcow2", "1M"], {
    cwd,
  });
  for (
    const call of [
      "create -f qcow2 -o keep_data_file=on new 1M",
      "create -f raw -o cluster_size=4k new 1M",
      "create -f raw -o preallocation=metadata new 1M",
      "amend -o preallocation=off disk.qcow2",
      "info --image-opts driver=raw,cache-size=1M,file.filename=disk.qcow2",
    ]
  ) {
    await t.step(call, async () => {
      const { code, stderr } = await run([...BDRV, ...call.split(" ")], {
        cwd,
      });
      assertEquals([code, stderr.includes("did you mean")], [1, false], stderr);
    });
  }
});

qemuTest(
  "qemu-io calls an access past the end an input/output error",
  async () => {
    await using dir = new TempDir();
    const cwd = dir.path;
    await runOk(
      ["qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M"],
      { cwd },
    );
    const commands = [
      "read 1M 512",
      "readv 1023k 4k",
      "write 1M 1",

      "discard 1M 512",
      "write -z 1M 1",
    ];
    const args = [
      "-f",
      "qcow2",
      ...commands.flatMap((command) => ["-c", command]),
      "disk.qcow2",
    ];
    const theirs = await run(["qemu-io", ...args], { cwd });
    assertEquals(await run([...BDRV, "qemu-io", ...args], { cwd }), theirs);
  },
  ["qemu-img", "qemu-io"],
);

/** The offset of an image's bitmap directory, and the fields of its entry. */
function damaged(
  bytes: Uint8Array,
  change: (view: DataView, extension: number, directory: number) => void,
): Uint8Array {
  const copy = bytes.slice();
  const view = new DataView(copy.buffer);
  let at = view.getUint32(100);
  while (view.getUint32(at) !== 0x23852875) {
    at += 8 + Math.ceil(view.getUint32(at + 4) / 8) * 8;
  }
  change(view, at + 8, Number(view.getBigUint64(at + 24)));
  return copy;
}

qemuTest(
  "info reports a damaged bitmap directory, and everything else as usual",
  async (t) => {
    await using dir = new TempDir();
    const cwd = dir.path;
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"], {
      cwd,
    });
    for (const name of ["one", "two"]) {
      await runOk([
        "qemu-img",
        "bitmap",
        "--add",
        "a",
        name,
      ], { cwd });
    }
    const bytes = Deno.readFileSync(dir.file("a"));
    const damages: Record<string, Parameters<typeof damaged>[1]> = {
      "too few": (view, extension) => view.setUint32(extension, 3),
      "too many": (view, extension) => view.setUint32(extension, 1),
      "no size": (view, extension) => view.setBigUint64(extension + 8, 0n),
      "short": (view, extension) => view.setBigUint64(extension + 8, 8n),
      "elsewhere": (view, extension) =>
        view.setBigUint64(extension + 16, 1n << 30n),
      "a table at an odd place": (view, _, at) => view.setBigUint64(at, 12345n),
      "flags": (view, _, at) => view.setUint32(at + 12, 0xf0),
      "a kind": (view, _, at) => view.setUint8(at + 16, 9),
      "a granularity": (view, _, at) => view.setUint8(at + 17, 60),
      "a long name": (view, _, at) => view.setUint16(at + 18, 5000),
      "extra data": (view, _, at) => view.setUint32(at + 20, 8),
    };
    for (const [name, change] of Object.entries(damages)) {
      await t.step(name, async () => {
        Deno.writeFileSync(dir.file("b"), damaged(bytes, change));
        const { code, stdout, stderr } = await run([...BDRV, "info", "b"], {
          cwd,
        });
        assertEquals(code, 0);
        assert(stdout.includes("refcount bits: 16"));
        const theirs = await run(["qemu-img", "info", "b"], { cwd });
        const why = theirs.stderr.replace("qemu-img: Could not open 'b': ", "");
        assertEquals(
          stderr,
          `bdrv: warning: 'b': the bitmaps cannot be listed: ${why}`,
        );
      });
    }
  },
);
