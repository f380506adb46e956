/** The command line on S3, against a service in this process. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { BUCKET, KEYS, Service } from "../drivers/s3/service.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 ** 2;

function urlOf(key: string): string {
  return `s3://${BUCKET}/${key}`;
}

/** A raw disk with holes, and its path. */
async function rawDisk(dir: TempDir): Promise<string> {
  const path = dir.file("disk.raw");
  const file = await Deno.open(path, { create: true, write: true });
  await file.truncate(40 * MIB);
  for (const at of [0, 3, 17, 39]) {
    await file.seek(at * MIB, Deno.SeekMode.Start);
    await file.write(new Uint8Array(MIB).map((_, i) => (i >> 9) + at));
  }
  file.close();
  return path;
}

/** Run bdrv against the service, and return its output. */
async function bdrv(
  service: Service,
  args: readonly string[],
  expected = 0,
): Promise<string> {
  const { code, stdout, stderr } = await run([...BDRV, ...args], {
    env: service.env,
  });
  assertEquals(code, expected, `${args}: ${stdout}${stderr}`);
  const said = stdout + stderr;
  assert(!said.includes(KEYS.secret), said);
  return said;
}

async function save(service: Service, key: string, path: string) {
  await Deno.writeFile(path, service.objects.get(key)!.body);
}

qemuTest(
  "convert stores images that qemu-img agrees with, and reads them back",
  async () => {
    await using service = new Service();
    await using dir = new TempDir();
    const source = await rawDisk(dir);
    const there = dir.file("there");
    const back = dir.file("back.qcow2");
    for (
      const [format, options] of [
        ["raw", []],
        ["qcow2", []],
        ["qcow2", ["-o", "compat=0.10"]],
        ["vmdk", ["-o", "subformat=streamOptimized"]],
      ] as [string, string[]][]
    ) {
      const url = urlOf(`new.${format}`);
      await bdrv(service, ["convert", "-O", format, ...options, source, url]);
      await save(service, `new.${format}`, there);
      const formats = ["-f", "raw", "-F", format];
      await runOk(["qemu-img", "compare", ...formats, source, there]);
      if (format === "qcow2") await runOk(["qemu-img", "check", there]);
      await bdrv(service, ["convert", "-f", format, "-O", "qcow2", url, back]);
      await runOk(["qemu-img", "compare", "-f", "raw", source, back]);
      await bdrv(service, ["compare", "-f", "raw", source, url]);
    }
    assertEquals(service.uploads.size, 0);
  },
);

qemuTest("convert stores standard input as it arrives", async () => {
  await using service = new Service();
  const stdin = "x".repeat(1000);
  const args = ["convert", "-f", "raw", "-O", "raw", "-", urlOf("piped")];
  const { env } = service;
  assertEquals((await run([...BDRV, ...args], { stdin, env })).code, 0);
  const { body } = service.objects.get("piped")!;
  assertEquals(new TextDecoder().decode(body), stdin + "\0".repeat(24));
  args[4] = "qcow2";
  const { code, stderr } = await run([...BDRV, ...args], { stdin, env });
  assertEquals(code, 1);
  assertMatch(stderr, /only as raw data/);
}, []);

qemuTest(
  "qcow2 in blocks is written and checked, and can be an overlay",
  async () => {
    await using service = new Service();
    await using dir = new TempDir();
    const source = await rawDisk(dir);
    const [base, overlay] = ["vm/base", "vm/overlay"].map(urlOf);
    const blocks = "object-size=256k";
    await bdrv(service, ["convert", "-O", "qcow2", "-o", blocks, source, base]);
    const made = ["-f", "qcow2", "-b", "base", "-F", "qcow2", "-o", blocks];
    const line = await bdrv(service, ["create", ...made, overlay]);
    assertMatch(line, /object-size=256k/);
    const io = ["qemu-io", "-c", "write -P 9 5M 2M", "-c", "read -P 9 5M 2M"];
    assertMatch(await bdrv(service, [...io, overlay]), /wrote 2097152/);
    await bdrv(service, ["check", overlay]);
    const copy = dir.file("copy.qcow2");
    await bdrv(service, ["convert", "-O", "qcow2", overlay, copy]);
    await runOk(["qemu-io", "-f", "raw", "-c", "write -P 9 5M 2M", source]);
    await runOk(["qemu-img", "compare", "-f", "raw", source, copy]);
    assertMatch(
      await bdrv(service, ["info", overlay]),
      /actual path: s3:.*base/,
    );
    assert(!service.objects.has("vm/overlay/lease"));
  },
  ["qemu-img", "qemu-io"],
);

const MISTAKES: [string[], RegExp][] = [
  [["info", urlOf("nothing")], /There is no object 'nothing'/],
  [["info", "s3://other/x"], /There is no bucket 'other'/],
  [["info", "s3:x"], /not of the form s3:/],
  [["create", urlOf("x"), "1M"], /written whole/],
  [["create", "-o", "object-size=3", urlOf("x"), "1M"], /multiple of 512/],
  [["convert", "-O", "vhdx", "A", urlOf("x")], /'vhdx' cannot be used/],
  [["convert", "-c", "-O", "qcow2", "A", urlOf("x")], /-c cannot be used/],
  [["dd", "if=A", `of=${urlOf("x")}`], /written whole/],
];

for (const [args, message] of MISTAKES) {
  Deno.test(`bdrv ${args.join(" ")} is refused without changing anything`, async () => {
    await using service = new Service();
    await using dir = new TempDir();
    Deno.writeFileSync(dir.file("A"), new Uint8Array(1024));
    const real = args.map((arg) => arg.replace(/^(if=)?A$/, `$1${dir.path}/A`));
    assertMatch(await bdrv(service, real, 1), message);
    assertEquals([...service.objects.keys()], []);
    const changes = service.log.filter((line) => !/^(GET|HEAD) /.test(line));
    assertEquals(changes, []);
  });
}

Deno.test("keys come from --object secret too, and are not shown", async () => {
  await using service = new Service();
  await using dir = new TempDir();
  await service.put("disk", new Uint8Array(1024));
  Deno.writeTextFileSync(dir.file("key"), `${KEYS.secret}\n`);
  const { env } = service;
  const { AWS_ENDPOINT_URL: endpoint } = env;
  const { code, stdout, stderr } = await run([
    ...BDRV,
    "info",
    ...["--object", `secret,id=k,file=${dir.file("key")}`],
    "--image-opts",
    `driver=raw,file.driver=s3,file.url=${urlOf("disk")},file.region=x,` +
    `file.endpoint-url=${endpoint},file.access-key=${KEYS.id},` +
    "file.secret-key-secret=k",
  ]);
  assertEquals(code, 0, stderr);
  assertMatch(stdout, /virtual size: 1 KiB/);
  assert(!(stdout + stderr).includes(KEYS.secret));
});

Deno.test("keys in a profile are refused by name, unless others are given", async () => {
  await using service = new Service();
  await service.put("disk", new Uint8Array(1024));
  const info = [...BDRV, "info", urlOf("disk")];
  const env = { ...service.env, AWS_PROFILE: "prod" };
  await runOk(info, { env });
  const keys = { AWS_ACCESS_KEY_ID: "", AWS_SECRET_ACCESS_KEY: "" };
  const { code, stderr } = await run(info, { env: { ...env, ...keys } });
  assertEquals(code, 1);
  assertMatch(stderr, /AWS_PROFILE is not supported/);
  assertEquals(service.log.filter((line) => !line.includes("disk")), []);
});

Deno.test("a password before the name of a bucket is not shown", async () => {
  const { code, stderr } = await run([...BDRV, "info", "s3://me:s3cret@b/k"]);
  assertEquals(code, 1);
  assertMatch(stderr, /without a user or a password/);
  assert(!stderr.includes("s3cret"), stderr);
});

Deno.test("a missing permission is named, and granting that one is enough", async () => {
  await using service = new Service();
  await service.put("disk", new Uint8Array(1024));
  const using = (...flags: string[]) =>
    run(
      [
        ...BDRV.flatMap((word) => word === "--allow-all" ? flags : word),
        ...["info", "--image-opts"],
        `driver=raw,file.driver=s3,file.url=${urlOf("disk")},` +
        `file.endpoint-url=${service.endpoint}`,
      ],
      { env: service.env },
    );
  const withoutNet = await using("--allow-read", "--allow-env");
  assertEquals(withoutNet.code, 1);
  assertMatch(withoutNet.stderr, /Requires net access .*--allow-net/);
  const withoutEnv = await using("--allow-read", "--allow-net");
  assertEquals(withoutEnv.code, 1);
  assertMatch(withoutEnv.stderr, /denies access .*\n.*--allow-env/);
  const withBoth = await using("--allow-read", "--allow-net", "--allow-env");
  assertEquals(withBoth.code, 0, withBoth.stderr);
});

for (const [signal, code] of [["SIGINT", 130], ["SIGKILL", 137]] as const) {
  Deno.test(`a convert ended by ${signal} leaves no object`, async () => {
    await using service = new Service();
    await using dir = new TempDir();
    const path = dir.file("disk.raw");
    Deno.writeFileSync(path, new Uint8Array(40 * MIB).fill(1));
    const child = new Deno.Command(BDRV[0], {
      args: [...BDRV.slice(1), "convert", "-O", "raw", path, urlOf("disk")],
      env: service.env,
      stderr: "piped",
    }).spawn();
    service.fault = ({ query }) => {
      if (query.get("partNumber") === "2") child.kill(signal);
      return undefined;
    };
    const output = await child.output();
    assertEquals(output.code, code);
    assert(!service.objects.has("disk"));
    if (signal === "SIGINT") {
      assertEquals([service.uploads.size, service.objects.size], [0, 0]);
      assertEquals(new TextDecoder().decode(output.stderr), "");
    }
  });
}

/** Writes, flushes, and reports each flush as soon as it has completed. */
const WRITER = `
import { openImage } from "${new URL("../../mod.ts", import.meta.url)}";
const image = await openImage("${urlOf("disk")}", { readOnly: false });
for (let i = 0; i < 8; i++) {
  const bytes = new Uint8Array(100 * 1024).fill(i + 1);
  await image.write((i * 3 + 1) * 1024 ** 2, bytes);
  await image.flush();
  console.log("flushed", i);
}
`;

Deno.test("a writer killed at any request loses nothing that was flushed", async () => {
  await using dir = new TempDir();
  const script = dir.file("writer.ts");
  Deno.writeTextFileSync(script, WRITER);
  const before: number[] = [];
  for (const killed of [12, 25, 40, 60]) {
    await using service = new Service();
    const blocks = ["-f", "qcow2", "-o", "object-size=64k"];
    await bdrv(service, ["create", ...blocks, urlOf("disk"), "64M"]);
    let requests = 0;
    const child = new Deno.Command(BDRV[0], {
      args: [...BDRV.slice(1, -1), script],
      env: service.env,
      stdout: "piped",
    }).spawn();
    service.fault = () => {
      if (++requests === killed) child.kill("SIGKILL");
      return undefined;
    };
    const output = new TextDecoder().decode((await child.output()).stdout);
    const flushed = [...output.matchAll(/^flushed/gm)].length;
    before.push(flushed);
    service.fault = undefined;
    service.clock = 31_000;
    const check = await run([...BDRV, "check", urlOf("disk")], service);
    assert([0, 3].includes(check.code), check.stdout + check.stderr);
    const reads = Array.from(
      { length: flushed },
      (_, i) => ["-c", `read -P ${i + 1} ${i * 3 + 1}M 100k`],
    ).flat();
    if (flushed === 0) continue;
    const said = await bdrv(service, ["qemu-io", ...reads, urlOf("disk")]);
    assert(!said.includes("failed"), said);
  }
  assert(before.some((count) => count > 0 && count < 8), `${before}`);
});
