/**
 * Our client with foreign servers.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../core/runtime.ts";
import { BlockError, openImage, TlsCredentials } from "../../mod.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";
import { makeCertificates, ServerProcess, uriOf } from "./nbd_peers.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

function pattern(length: number, seed: number): Uint8Array {
  return new Uint8Array(length).map((_, i) => (i * 31 + seed) >> 3);
}

async function nbdkit(dir: TempDir, ...args: string[]) {
  const socket = dir.file("socket");
  const command = ["nbdkit", "--foreground", "--exit-with-parent"];
  const server = await ServerProcess.start(
    [...command, "--unix", socket, ...args],
    socket,
  );
  return { server, source: { driver: "nbd", path: socket } };
}

/** Write, zero, read and query, whatever a server can do. */
async function exercise(source: object): Promise<void> {
  await using disk = await openImage({ driver: "raw", file: source });
  const model = new Uint8Array(disk.size);
  for (const [offset, length] of [[0, 4096], [1000, 70_001], [MIB, 2 * MIB]]) {
    const data = pattern(length, offset);
    await disk.write(offset, data, { fua: offset === 1000 });
    model.set(data, offset);
  }
  await disk.writeZeroes(3000, 10_000, { unmap: true });
  model.fill(0, 3000, 13_000);
  await disk.writeZeroes(2 * MIB, 65536);
  model.fill(0, 2 * MIB, 2 * MIB + 65536);
  await disk.discard(3 * MIB, MIB);
  await disk.flush();
  assert(isEqual(await disk.read(0, disk.size), model));
  let end = 0;
  for await (const { offset, length, zero } of disk.extents()) {
    assertEquals(offset, end);
    end += length;
    if (!zero) continue;
    assert(model.subarray(offset, end).every((byte) => byte === 0));
  }
  assertEquals(end, disk.size);
}

const KITS: Record<string, string[]> = {
  "all features": ["memory", "4M"],
  "no options": ["--mask-handshake=0", "memory", "4M"],
  "simple replies": ["--no-sr", "memory", "4M"],
  "no zeroing, no extents": [
    ...["--filter=nozero", "--filter=noextents", "memory", "4M"],
  ],
  "no FUA": ["--filter=fua", "memory", "4M"],
  "large blocks only": [
    ...["--filter=blocksize-policy", "memory", "4M"],
    ...["blocksize-minimum=4096", "blocksize-preferred=65536"],
    ...["blocksize-maximum=1M", "blocksize-error-policy=error"],
  ],
  "delays": [
    ...["--filter=delay", "memory", "4M", "delay-read=5ms", "delay-write=3ms"],
  ],
};

for (const [what, args] of Object.entries(KITS)) {
  qemuTest(`nbdkit with ${what}`, async () => {
    await using dir = new TempDir();
    const { server, source } = await nbdkit(dir, ...args);
    await using _ = server;
    await exercise(source);
  }, ["nbdkit"]);
}

qemuTest("nbdkit with the oldest protocol", async () => {
  await using dir = new TempDir();
  // It announces itself as writable, and refuses writes.
  const { server, source } = await nbdkit(dir, "--oldstyle", "pattern", "1M");
  await using _ = server;
  await using disk = await openImage({ driver: "raw", file: source }, {
    readOnly: true,
  });
  assertEquals(disk.size, MIB);
  assertEquals([...await disk.read(4096, 8)], [0, 0, 0, 0, 0, 0, 0x10, 0]);
  const named = { ...source, export: "name" };
  const error = await assertRejects(
    () => openImage({ driver: "raw", file: named }),
    BlockError,
  );
  assert(
    error.message.endsWith("Server does not support non-empty export names"),
  );
}, ["nbdkit"]);

qemuTest("nbdkit's errors are reported, and affect nothing else", async () => {
  await using dir = new TempDir();
  const { server, source } = await nbdkit(
    dir,
    ...["--filter=error", "memory", "4M", "error-pread-rate=30%"],
    ...["error-pread=EIO", "error-pwrite-rate=30%", "error-pwrite=ENOSPC"],
  );
  await using _ = server;
  await using disk = await openImage({ driver: "raw", file: source });
  const counts: Record<string, number> = {};
  await Promise.all(Array.from({ length: 400 }, async (_, i) => {
    const data = pattern(4096, i);
    const offset = i * 8192;
    let step = "write";
    try {
      await disk.write(offset, data);
      step = "read";
      assertEquals(await disk.read(offset, 4096), data);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const kind = `${step} ${error.code}`;
      counts[kind] = (counts[kind] ?? 0) + 1;
    }
  }));
  assertEquals(Object.keys(counts).sort(), ["read EIO", "write ENOSPC"]);
}, ["nbdkit"]);

qemuTest("nbdkit's data plugin: holes are reported", async () => {
  await using dir = new TempDir();
  const data = "data=@1048576 ( 1 2 3 4 )*1024";
  const { server, source } = await nbdkit(dir, "data", data, "size=8M");
  await using _ = server;
  await using disk = await openImage({ driver: "raw", file: source }, {
    readOnly: true,
  });
  const found = [];
  for await (const { offset, zero } of disk.extents()) {
    found.push([offset, zero]);
  }
  assertEquals(found[0], [0, true]);
  assertEquals(found[1], [MIB, false]);
  assertEquals([...await disk.read(MIB, 4)], [1, 2, 3, 4]);
}, ["nbdkit"]);

qemuTest(
  "nbdkit is asked for the status of whole blocks only",
  async () => {
    await using dir = new TempDir();
    const { server, source } = await nbdkit(
      dir,
      ...["--filter=blocksize-policy", "data", "size=8M"],
      // Its own pages have 32 KiB.
      ...["data=@1048676 ( 1 2 3 4 )*1024 @4194304 ( 5 )*40000"],
      ...["blocksize-minimum=65536", "blocksize-preferred=65536"],
      ...["blocksize-maximum=1M", "blocksize-error-policy=error"],
    );
    await using _ = server;
    await using disk = await openImage({ driver: "raw", file: source }, {
      readOnly: true,
    });
    const found = [];
    for await (const { offset, zero, length } of disk.extents()) {
      found.push([offset, length, zero]);
    }
    const unit = 65536;
    assertEquals(found, [
      [0, MIB, true],
      [MIB, unit, false],
      [MIB + unit, 3 * MIB - unit, true],
      [4 * MIB, unit, false],
      [4 * MIB + unit, 4 * MIB - unit, true],
    ]);
    const parts = [[MIB - 1, 1, true], [MIB, 9, false]] as const;
    for (const [offset, length, zero] of parts) {
      const [extent] = await Array.fromAsync(disk.extents(offset, length));
      assertEquals([extent.length, extent.zero], [length, zero]);
    }
  },
  ["nbdkit"],
);

qemuTest("nothing is created where nothing may be written", async () => {
  await using dir = new TempDir();
  await Deno.writeFile(dir.file("disk"), pattern(MIB, 1));
  const socket = dir.file("socket");
  await using _ = await ServerProcess.start([
    ...["qemu-nbd", "-t", "-e", "0", "-r", "-f", "raw", "-k", socket],
    dir.file("disk"),
  ], socket);
  const calls = [
    ["create", "-f", "raw", uriOf(socket), "512k"],
    ["create", "-f", "raw", uriOf(socket), "2M"],
    ["convert", "-O", "raw", dir.file("disk"), uriOf(socket)],
  ];
  for (const call of calls) {
    const [theirs, ours] = await Promise.all(
      [["qemu-img"], [...BDRV, "qemu-img"]].map((program) =>
        run([...program, ...call], { env: { BDRV_QEMU_VERSION: "7.2" } })
      ),
    );
    assertEquals(ours, theirs);
  }
}, ["qemu-img", "qemu-nbd"]);

Deno.test("nothing is left incomplete on a server that cannot be reached", async () => {
  await using dir = new TempDir();
  await Deno.writeFile(dir.file("disk"), pattern(MIB, 1));
  const target = `nbd+unix:///?socket=${dir.file("nothing")}`;
  const convert = [...BDRV, "convert", "-n", "-O", "raw", dir.file("disk")];
  const { code, stderr } = await run([...convert, target]);
  assertEquals(code, 1);
  const why = `Failed to connect to '${dir.file("nothing")}'`;
  const line = `bdrv: Could not open '${target}': ${why}: No such file or`;
  assertEquals(stderr, `${line} directory\n`);
});

qemuTest("qemu-nbd: convert, map and compare as with qemu-img", async () => {
  await using dir = new TempDir();
  const image = dir.file("disk.qcow2");
  await runOk(["qemu-img", "create", "-q", "-f", "qcow2", image, "32M"]);
  await runOk([
    ...[
      "qemu-io",
      "-c",
      "write -P 7 1M 5M",
      "-c",
      "write -P 8 20M 100k",
      image,
    ],
  ]);
  const socket = dir.file("socket");
  const command = ["qemu-nbd", "-t", "-e", "5", "-f", "qcow2", "-k", socket];
  await using _ = await ServerProcess.start([...command, image], socket);
  const uri = uriOf(socket);
  for (
    const args of [
      ["map", "--output=json", "-f", "raw", uri],
      ["map", uri],
      ["info", uri],
      ["info", "-f", "raw", "--output=json", `nbd:unix:${socket}`],
      ["info", uriOf(socket, "none")],
      ["info", "nbd:unix:/nowhere/at/all"],
      ["info", "nbd:localhost"],
      ["info", "nbd://"],
      ["info", "nbd+unix:///?file=x"],
      ["create", "-f", "raw", uri, "64M"],
      ["create", "-f", "raw", "nbd:unix:/nowhere/at/all", "64M"],
      ["resize", "-f", "raw", uri, "64M"],
      ["info", "--image-opts", `driver=nbd,path=${socket},x-dirty-bitmap=foo`],
      ["info", "--image-opts", "driver=nbd,host=x,path=y"],
      ["info", "--image-opts", "driver=nbd,server.type=unix"],
    ]
  ) {
    const theirs = await run(["qemu-img", ...args]);
    assertEquals(
      await run([...BDRV, "qemu-img", ...args]),
      theirs,
      args.join(" "),
    );
  }
  const raw = dir.file("copy.raw");
  await runOk([...BDRV, "convert", "-f", "raw", uri, raw]);
  await runOk(["qemu-img", "compare", "-f", "raw", "-F", "raw", raw, uri]);
}, ["qemu-img", "qemu-io", "qemu-nbd"]);

qemuTest(
  "ranges that a bitmap shows as unallocated are not taken for zeroes",
  async () => {
    await using dir = new TempDir();
    const image = dir.file("disk.qcow2");
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", image, "10M"]);
    await runOk(["qemu-img", "bitmap", "--add", "-f", "qcow2", image, "b"]);
    await runOk(["qemu-io", "-f", "qcow2", "-c", "write -P 7 3M 1M", image]);
    const socket = dir.file("socket");
    const command = ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-B", "b"];
    await using _ = await ServerProcess.start(
      [...command, "-k", socket, image],
      socket,
    );
    const shown = `driver=nbd,server.type=unix,server.path=${socket},` +
      "x-dirty-bitmap=qemu:dirty-bitmap:b";
    const inRaw = `driver=raw,file.${shown.replaceAll(",", ",file.")}`;
    for (const source of [shown, inRaw]) {
      const map = ["map", "--output=json", "--image-opts", source];
      assertEquals(
        await runOk([...BDRV, "qemu-img", ...map]),
        await runOk(["qemu-img", ...map]),
      );
      const copy = dir.file("copy.qcow2");
      const convert = ["convert", "-O", "qcow2", "--image-opts", source, copy];
      await runOk([...BDRV, ...convert]);
      await runOk(["qemu-img", "compare", image, copy]);
      const compare = ["compare", "--image-opts", source];
      await runOk([...BDRV, ...compare, `driver=qcow2,file.filename=${image}`]);
    }
  },
  ["qemu-img", "qemu-io", "qemu-nbd"],
);

qemuTest("qemu-nbd: certificates at both ends", async () => {
  await using dir = new TempDir();
  const image = dir.file("disk.raw");
  await Deno.writeFile(image, pattern(MIB, 1));
  const folder = await makeCertificates(dir);
  const socket = dir.file("socket");
  await using _ = await ServerProcess.start([
    ...["qemu-nbd", "-t", "-e", "5", "-f", "raw", "-k", socket, "--object"],
    `tls-creds-x509,id=tls0,endpoint=server,dir=${folder}`,
    ...["--tls-creds", "tls0", image],
  ], socket);
  const pem = (name: string) => Deno.readTextFileSync(`${folder}/${name}.pem`);
  const ca = pem("ca-cert");
  const [certificate, key] = [pem("client-cert"), pem("client-key")];
  const open = (tls: object | undefined, hostname = "localhost") =>
    openImage({
      driver: "raw",
      file: {
        driver: "nbd",
        path: socket,
        "tls-hostname": hostname,
        ...(tls &&
          { "tls-creds": new TlsCredentials({ endpoint: "client", ...tls }) }),
      },
    });
  {
    await using disk = await open({ ca, certificate, key });
    await disk.write(5000, pattern(300_000, 7));
    assertEquals(await disk.read(5000, 300_000), pattern(300_000, 7));
  }
  const wrong = (hostname?: string, tls?: object) =>
    assertRejects(() => open(tls, hostname), BlockError);
  const named = await wrong("other.example", { ca, certificate, key });
  assert(
    named.message.endsWith(
      "Certificate does not match the hostname other.example",
    ),
    named.message,
  );
  await wrong("localhost", { ca });
  await wrong("localhost", { certificate, key });
  const plain = await wrong("localhost", undefined);
  assert(plain.message.includes("TLS negotiation required before"));
}, ["qemu-nbd", "openssl"]);

/** Whether an image has the last byte written to each unit. */
async function verify(
  image: string,
  format: string,
  total: number,
): Promise<void> {
  await using result = await openImage(image, { format, readOnly: true });
  for (let unit = 0; unit < Math.min(1024, total); unit++) {
    const last = total - 1 - ((total - 1 - unit) % 1024);
    const got = await result.read(unit * 4096, 4096);
    assert(isEqual(got, pattern(4096, last)), `unit ${unit}`);
  }
}

/** Kill a server under load, and check that everything is there in the end. */
async function killed(
  dir: TempDir,
  server: readonly string[],
  format: string,
): Promise<void> {
  const image = dir.file("disk");
  await runOk(["qemu-img", "create", "-q", "-f", format, image, "4M"]);
  const socket = dir.file("socket");
  const command = [...server, "-t", "-e", "5", "-f", format, "-k", socket];
  const start = () => ServerProcess.start([...command, image], socket);
  let running = await start();
  try {
    await using disk = await openImage({
      driver: "raw",
      file: { driver: "nbd", path: socket, "reconnect-delay": 60 },
    });
    let writing = true;
    const writes = (async () => {
      let count = 0;
      for (; writing; count++) {
        await Promise.all(Array.from({ length: 8 }, (_, i) => {
          const number = count * 8 + i;
          const data = pattern(4096, number);
          return disk.write((number % 1024) * 4096, data, { fua: i === 0 });
        }));
      }
      return count * 8;
    })();
    for (let kill = 0; kill < 4; kill++) {
      await new Promise((resolve) => setTimeout(resolve, 100 + kill * 37));
      await running.end("SIGKILL");
      running = await start();
    }
    writing = false;
    const total = await writes;
    await disk.flush();
    await running.end("SIGKILL");
    await verify(image, format, total);
    running = await start();
  } finally {
    await running.end();
  }
}

qemuTest("qemu-nbd, killed again and again, loses nothing", async () => {
  await using dir = new TempDir();
  await killed(dir, ["qemu-nbd"], "raw");
}, ["qemu-img", "qemu-nbd"]);

qemuTest(
  "nor does our own server, although qcow2 keeps tables in memory",
  async () => {
    await using dir = new TempDir();
    await killed(dir, [...BDRV, "qemu-nbd"], "qcow2");
  },
  ["qemu-img"],
);
