/**
 * The `s3` driver on Ceph's gateway, together with other programs that use the
 * same objects: nbdkit's S3 plugin, and s3backer.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { AwsClient } from "aws4fetch";
import {
  BDRV,
  isInstalled,
  type Requirements,
  run,
  runOk,
  TempDir,
} from "../qemu.ts";
import { serviceTest } from "./service.ts";

const env = (name: string) => Deno.env.get(name) ?? "";
const ENDPOINT = env("S3_ENDPOINT");
const ENV = { AWS_ENDPOINT_URL: ENDPOINT };
const MIB = 1024 ** 2;

/** A test with a bucket of its own. */
function s3Test(
  name: string,
  fn: (bucket: string, dir: TempDir) => Promise<void>,
  requirements: Requirements = { tools: ["qemu-img", "qemu-io"] },
): void {
  serviceTest(
    name,
    async () => {
      const bucket = `bdrv-${crypto.randomUUID()}`;
      const { ok } = await request("PUT", bucket);
      assert(ok);
      await using dir = new TempDir();
      await fn(bucket, dir);
    },
    ["S3_ENDPOINT", "AWS_ACCESS_KEY_ID"],
    requirements,
  );
}

async function request(method: string, path: string): Promise<Response> {
  const client = new AwsClient({
    accessKeyId: env("AWS_ACCESS_KEY_ID"),
    secretAccessKey: env("AWS_SECRET_ACCESS_KEY"),
    region: env("AWS_REGION"),
    service: "s3",
  });
  return await client.fetch(`${ENDPOINT}/${path}`, { method });
}

async function textOf(path: string): Promise<string> {
  return await (await request("GET", path)).text();
}

async function bdrv(...args: string[]): Promise<string> {
  return await runOk([...BDRV, ...args], { env: ENV });
}

/** A raw disk with random data and holes, and its path. */
async function rawDisk(dir: TempDir, size = 40 * MIB): Promise<string> {
  const path = dir.file("disk.raw");
  using file = await Deno.open(path, { create: true, write: true });
  await file.truncate(size);
  for (const at of [0, 3, 17, 18, 19, 39].map((at) => at * MIB)) {
    if (at >= size) continue;
    await file.seek(at, Deno.SeekMode.Start);
    const bytes = new Uint8Array(MIB);
    for (let i = 0; i < MIB; i += 65536) {
      crypto.getRandomValues(bytes.subarray(i, i + 65536));
    }
    await file.write(bytes);
  }
  return path;
}

for (const format of ["raw", "qcow2"]) {
  s3Test(
    `S3: ${format} there and back, and QEMU reads the same`,
    async (bucket, dir) => {
      const source = await rawDisk(dir);
      const url = `s3://${bucket}/folder/disk ü+%.${format}`;
      await bdrv("convert", "-f", "raw", "-O", format, source, url);
      const there = await request(
        "GET",
        `${bucket}/folder/${encodeURIComponent(`disk ü+%.${format}`)}`,
      );
      const path = dir.file("there");
      await Deno.writeFile(path, there.body!);
      const formats = ["-f", "raw", "-F", format];
      await runOk(["qemu-img", "compare", ...formats, source, path]);
      const back = dir.file("back");
      await bdrv("convert", "-f", format, "-O", "qcow2", url, back);
      await runOk(["qemu-img", "check", back]);
      await runOk(["qemu-img", "compare", "-f", "raw", source, back]);
      assertMatch(await bdrv("info", url), /virtual size: 40 MiB/);
      assert(!(await textOf(`${bucket}?uploads`)).includes("<Upload>"));
    },
  );
}

s3Test(
  "S3: qcow2 in blocks is created, written, checked and read",
  async (bucket, dir) => {
    const url = `s3://${bucket}/disk`;
    const blocks = ["-f", "qcow2", "-o", "object-size=1M"];
    await bdrv("create", ...blocks, url, "100M");
    const writes = ["-c", "write -P 3 10M 20M", "-c", "write -P 4 77M 100k"];
    await bdrv("qemu-io", ...writes, "-c", "discard 12M 4M", url);
    await bdrv("qemu-io", "-c", "write -P 5 77M 1k", url);
    await bdrv("check", url);
    const copy = dir.file("copy.qcow2");
    await bdrv("convert", "-O", "qcow2", url, copy);
    await runOk(["qemu-img", "check", copy]);
    const reads = ["-c", "read -P 3 16M 14M", "-c", "read -P 5 77M 1k"];
    const said = await runOk(["qemu-io", ...reads, copy]);
    assert(!said.includes("failed"), said);
  },
);

s3Test(
  "S3: of two writers, one is refused, until the lease of one that was killed ends",
  async (bucket) => {
    const url = `s3://${bucket}/disk`;
    await bdrv("create", "-f", "raw", "-o", "object-size=64k", url, "1M");
    const options = `driver=raw,file.driver=s3,file.url=${url},file.lease=3`;
    const writer = new Deno.Command(BDRV[0], {
      args: [
        ...BDRV.slice(1),
        ...["qemu-io", "--image-opts", options, "-c", "write -P 1 0 64k"],
        ...["-c", "flush", "-c", "sleep 100000"],
      ],
      env: ENV,
      stdout: "null",
    }).spawn();
    const block = `${bucket}/disk/0000000000000000`;
    while (!await isThere(block)) await new Promise((go) => setTimeout(go, 50));
    const write = [...BDRV, "qemu-io", "-f", "raw", "-c", "write 64k 1k", url];
    const second = await run(write, { env: ENV });
    assertEquals(second.code, 1);
    assertMatch(second.stderr, /Another program is writing to it/);
    writer.kill("SIGKILL");
    await writer.status;
    let outcome = await run(write, { env: ENV });
    assertEquals(outcome.code, 1, "The lease has not ended yet");
    while (outcome.code !== 0) {
      await new Promise((go) => setTimeout(go, 300));
      outcome = await run(write, { env: ENV });
    }
    await bdrv("qemu-io", "-f", "raw", "-c", "read -P 1 0 64k", url);
  },
);

function hasPlugin(): boolean {
  if (!isInstalled("nbdkit")) return false;
  return new Deno.Command("nbdkit", {
    args: ["S3", "--dump-plugin"],
    stdout: "null",
    stderr: "null",
  }).outputSync().success;
}

function hasFuse(): boolean {
  try {
    Deno.openSync("/dev/fuse", { read: true, write: true }).close();
    return true;
  } catch {
    return false;
  }
}

async function isThere(path: string): Promise<boolean> {
  const response = await request("HEAD", path);
  await response.body?.cancel();
  return response.ok;
}

s3Test("S3: nbdkit reads and writes the same blocks", async (bucket, dir) => {
  const source = await rawDisk(dir, 4 * MIB);
  const url = `s3://${bucket}/disk`;
  const blocks = ["-o", "object-size=64k"];
  await bdrv("convert", "-f", "raw", "-O", "raw", ...blocks, source, url);
  const nbdkit = async (script: string) =>
    await runOk([
      ...["timeout", "60", "nbdkit", "-U", "-", "S3"],
      `access-key=${env("AWS_ACCESS_KEY_ID")}`,
      `secret-key=${env("AWS_SECRET_ACCESS_KEY")}`,
      `endpoint-url=${ENDPOINT}`,
      ...["size=4M", "object-size=64k", `bucket=${bucket}`, "key=disk"],
      ...["--run", script],
    ], { env: { AWS_DEFAULT_REGION: env("AWS_REGION") } });
  await nbdkit(`nbdcopy "$uri" ${dir.file("there")}`);
  await runOk(["cmp", source, dir.file("there")]);
  const other = dir.file("other");
  await Deno.writeFile(other, new Uint8Array(4 * MIB).map((_, i) => i >> 14));
  await nbdkit(`nbdcopy ${other} "$uri"`);
  const raw = ["-f", "raw", "-F", "raw"];
  await bdrv("compare", ...raw, url, other);
}, {
  tools: ["nbdkit", "nbdcopy"],
  others: { "nbdkit's plugin S3": hasPlugin() },
});

s3Test("S3: s3backer reads and writes the same blocks", async (bucket, dir) => {
  const source = await rawDisk(dir, 4 * MIB);
  const keys = dir.file("keys");
  const [id, secret] = [env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")];
  await Deno.writeTextFile(keys, `${id}:${secret}\n`, { mode: 0o600 });
  const mounted = dir.file("mounted");
  await Deno.mkdir(mounted);
  const s3backer = async (use: () => Promise<void>, ...sizes: string[]) => {
    await runOk([
      ...["timeout", "60", "s3backer", `--accessFile=${keys}`, "--quiet"],
      ...[`--baseURL=${ENDPOINT}/`, "--prefix=sb/", ...sizes],
      ...[bucket, mounted],
    ]);
    try {
      await use();
    } finally {
      await runOk(["umount", mounted]);
      // It writes, and removes its mark afterwards.
      const mark = `${bucket}/sb/s3backer-mounted`;
      while (await isThere(mark)) {
        await new Promise((go) => setTimeout(go, 50));
      }
    }
  };
  const stack = `driver=raw,file.driver=s3,file.layout=s3backer,` +
    `file.bucket=${bucket},file.key=sb/`;
  await s3backer(
    async () => {
      const name = `${mounted}/file`;
      await runOk([
        ...["dd", `if=${source}`, `of=${name}`, "bs=1M", "conv=notrunc"],
      ]);
      const write = [...BDRV, "qemu-io", "-c", "write 0 1k", "--image-opts"];
      const { code, stderr } = await run([...write, stack], { env: ENV });
      assertEquals(code, 1);
      assertMatch(stderr, /s3backer has mounted it/);
    },
    "--size=4m",
    "--blockSize=128k",
  );
  const copy = dir.file("copy");
  await bdrv("convert", "--image-opts", "-O", "raw", stack, copy);
  await runOk(["cmp", source, copy]);
  const change = "write -P 9 100k 200k";
  await bdrv("qemu-io", "-c", change, "--image-opts", stack);
  await runOk(["qemu-io", "-f", "raw", "-c", change, source]);
  // It finds the sizes in what we have written.
  await s3backer(async () => {
    await runOk(["cmp", source, `${mounted}/file`]);
  });
}, { tools: ["s3backer", "umount"], privileges: { FUSE: hasFuse() } });
