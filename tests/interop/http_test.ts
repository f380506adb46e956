import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";
import { Nginx } from "./nginx.ts";

const TOOLS = ["qemu-img", "qemu-io", "nginx"];
const QEMU_IMG = [...BDRV, "qemu-img"];
const QEMU_IO = [...BDRV, "qemu-io"];

/** The command line without permission to use the network. */
const OFFLINE = BDRV.map((part) =>
  part === "--allow-all" ? "--allow-read" : part
);

/** An image of each format, and the disk that all of them contain. */
async function makeImages(nginx: Nginx): Promise<void> {
  const raw = nginx.file("disk.raw");
  const bytes = new Uint8Array(3 * 1024 * 1024 + 512);
  for (let at = 0; at < bytes.length; at += 65_536) {
    if (at % 3 === 0) crypto.getRandomValues(bytes.subarray(at, at + 65_536));
  }
  await Deno.writeFile(raw, bytes);
  const convert = ["qemu-img", "convert", "-f", "raw"];
  for (const format of ["qcow2", "vmdk", "vdi", "vhdx"]) {
    await runOk([...convert, "-O", format, raw, nginx.file(`disk.${format}`)]);
  }
  const compressed = nginx.file("small.qcow2");
  await runOk([...convert, "-c", "-O", "qcow2", raw, compressed]);
}

qemuTest(
  "http: images on nginx read correctly, in every format",
  async () => {
    await using nginx = await Nginx.start();
    await makeImages(nginx);
    const names = ["raw", "qcow2", "vmdk", "vdi", "vhdx"].map((it) =>
      `disk.${it}`
    );
    for (const name of [...names, "small.qcow2"]) {
      const url = `${nginx.url}/${name}`;
      const file = nginx.file("disk.raw");
      await runOk([...QEMU_IMG, "compare", url, file]);
      await runOk([...QEMU_IMG, "compare", `${nginx.url}/moved/${name}`, file]);
      // qemu-img reads through its own driver, where that is installed.
      const theirs = await run(["qemu-img", "info", url]);
      if (theirs.stderr.includes("Unknown protocol")) continue;
      assertEquals(await run([...QEMU_IMG, "info", url]), theirs, name);
      await runOk(["qemu-img", "compare", url, file]);
      const check = ["check", url];
      assertEquals(
        await run([...QEMU_IMG, ...check]),
        await run(["qemu-img", ...check]),
      );
    }
  },
  TOOLS,
);

qemuTest("http: convert, with secrets and without ranges", async () => {
  await using nginx = await Nginx.start();
  await using folder = new TempDir();
  await makeImages(nginx);
  const out = folder.file("out.raw");
  const compare = async () => {
    await runOk(["qemu-img", "compare", nginx.file("disk.raw"), out]);
    await Deno.remove(out);
  };
  const convert = [...QEMU_IMG, "convert", "-O", "raw"];
  await runOk([...convert, `${nginx.url}/disk.qcow2`, out]);
  await compare();
  // Encoded, unless the client asks for no encoding.
  await runOk([...convert, `${nginx.url}/gzip/disk.qcow2`, out]);
  await compare();
  const url = (path: string) => `file.driver=http,file.url=${nginx.url}${path}`;
  const auth = `driver=qcow2,${url("/auth/disk.qcow2")}`;
  const denied = await run([...QEMU_IMG, "info", "--image-opts", auth]);
  assertStringIncludes(denied.stderr, "returned error: 401");
  const secret = ["--object", "secret,id=pw,data=pass word", "--image-opts"];
  const given = `${auth},file.username=user,file.password-secret=pw`;
  await runOk([...convert, ...secret, given, out]);
  await compare();
  const named = `http://user:pass%20word@${nginx.url.slice(7)}/auth/disk.qcow2`;
  await runOk([...convert, named, out]);
  await compare();
  const whole = `driver=qcow2,${url("/whole/disk.qcow2")}`;
  for (const command of [["info"], ["convert", "-O", "raw"]]) {
    const target = command.length > 1 ? [out] : [];
    const args = [...command, "--image-opts", whole, ...target];
    const refused = await run([...BDRV, ...args]);
    assertEquals(refused.code, 1);
    const why = "CURL: Error opening file: Server does not support 'range'";
    assertStringIncludes(refused.stderr, `Could not open '${whole}': ${why}`);
    assertStringIncludes(refused.stderr, "download=memory");
  }
  await runOk([
    ...convert,
    "--image-opts",
    `${whole},file.download=memory`,
    out,
  ]);
  await compare();
}, TOOLS);

qemuTest("http: a remote base, a local overlay, copy-on-read", async () => {
  await using nginx = await Nginx.start();
  await using folder = new TempDir();
  await makeImages(nginx);
  const base = `${nginx.url}/disk.qcow2`;
  const overlay = folder.file("overlay.qcow2");
  const create = ["create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay];
  await runOk([...QEMU_IMG, ...create]);
  await runOk([...QEMU_IO, "-c", "write -P 7 1M 64k", overlay]);
  const cor = "driver=copy-on-read,file.driver=qcow2,file.file.filename=";
  await runOk([
    ...QEMU_IO,
    "--image-opts",
    "-c",
    "read 0 512k",
    `${cor}${overlay}`,
  ]);
  await runOk(["qemu-img", "check", "-U", overlay]);
  // The data read is in the overlay now.
  const map = await runOk([...QEMU_IMG, "map", "--output=json", overlay]);
  assertEquals(JSON.parse(map)[0].depth, 0);
  await Deno.remove(nginx.file("disk.qcow2"));
  const gone = await run([...QEMU_IMG, "info", "--backing-chain", overlay]);
  assertEquals(gone.code, 1);
  assertStringIncludes(gone.stderr, "returned error: 404");
  const alone = ["--image-opts", "-r"];
  const local =
    `driver=qcow2,backing.driver=null-co,backing.size=4M,file.filename=${overlay}`;
  const read = ["-c", "read -P 7 1M 64k", "-c", "read 0 512k"];
  await runOk([...QEMU_IO, ...alone, ...read, local]);
}, TOOLS);

qemuTest("http: writes are refused in QEMU's words", async () => {
  await using nginx = await Nginx.start();
  await makeImages(nginx);
  const url = `${nginx.url}/disk.qcow2`;
  const commands = [
    ["qemu-io", "-c", "write 0 512", url],
    ["qemu-img", "resize", url, "10M"],
    ["qemu-img", "snapshot", "-c", "x", url],
    ["qemu-img", "create", "-f", "raw", `${nginx.url}/new`, "1M"],
    ["qemu-img", "convert", "-n", "-O", "raw", nginx.file("disk.raw"), url],
  ];
  for (const command of commands) {
    const theirs = await run(command);
    if (theirs.stderr.includes("Unknown protocol")) return;
    assertEquals(await run([...BDRV, ...command]), theirs, command.join(" "));
  }
}, TOOLS);

Deno.test("http: without --allow-net, one line names the flag", async () => {
  const { code, stderr } = await run([
    ...OFFLINE,
    "info",
    "http://h.invalid/x",
  ]);
  assertEquals(code, 1);
  assertEquals(stderr.trim().split("\n").length, 1, stderr);
  assertStringIncludes(stderr, "--allow-net");
});

Deno.test("http: secrets in a URL are never shown", async () => {
  await using folder = new TempDir();
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const urls = [
    `http://us3r:s3cret@127.0.0.1:${port}/x`,
    `http://127.0.0.1:${port}/x?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret`,
    `json:{"driver":"http","url":"http://us3r:s3cret@127.0.0.1:${port}/x"}`,
    `http://us3r:s3cret@127.0.0.1:${port}/${"long/".repeat(500)}`,
  ];
  const overlay = folder.file("overlay.qcow2");
  for (const url of urls) {
    const commands = [
      ["info", url],
      ["info", "--output=json", url],
      ["check", "--output=json", url],
      ["map", url],
      ["compare", url, overlay],
      ["convert", "-O", "qcow2", url, overlay],
      ["create", "-f", "qcow2", "-b", url, "-F", "raw", overlay],
      ["create", "-f", "qcow2", "-u", "-b", url, "-F", "raw", overlay, "1M"],
      ["measure", "-O", "qcow2", url],
    ].slice(url === urls[0] ? 0 : 5);
    for (const [at, command] of commands.entries()) {
      const program = at % 2 === 0 ? [] : ["qemu-img"];
      const outcome = await run([...BDRV, ...program, ...command]);
      const said = outcome.stdout + outcome.stderr;
      assert(outcome.code !== 0, said);
      assert(!/s3cret|us3r/.test(said), said);
    }
  }
  // Nor are those in a name that another program has written into an image.
  const file = folder.file("theirs.qcow2");
  const named = ["-b", urls[0], "-F", "raw", file, "1M"];
  const made = await run(["qemu-img", "create", "-f", "qcow2", "-u", ...named]);
  if (made.code !== 0) return;
  for (const format of ["human", "json"]) {
    const shown = await runOk([...BDRV, "info", `--output=${format}`, file]);
    assert(!/s3cret|us3r/.test(shown), shown);
    assertStringIncludes(shown, `http://***@127.0.0.1:${port}/x`);
  }
});

Deno.test("http: secrets in a name do not swallow the message after it", async () => {
  await using server = serveDisk(undefined, () => {});
  const url = `http://127.0.0.1:${server.addr.port}/x`;
  const description = `driver=raw,file.driver=http,file.url=${url}`;
  const cases = [
    [[`${url}?sig=s3cret`], `'${url}?sig=***'`],
    [
      ["--image-opts", `${description},file.headers.x=s3cret`],
      `'${description},file.headers.x=***'`,
    ],
  ] as const;
  const named = "bdrv: Could not open NAME: ";
  for (const [name, shown] of cases) {
    const check = await run([...BDRV, "check", ...name]);
    assertEquals(
      check.stderr,
      `bdrv: ${shown}: This image format does not support checks\n`,
    );
    const wrong = name.map((part) => part.replace(url, "http://127.0.0.1:9/"));
    const { stderr } = await run([...BDRV, "info", ...wrong]);
    const start = named.replace(
      "NAME",
      shown.replace(url, "http://127.0.0.1:9/"),
    );
    assert(stderr.startsWith(start), stderr);
  }
});

/** A server of one small raw image at every path. */
function serveDisk(
  tls: { cert: string; key: string } | undefined,
  seen: (request: Request) => void,
): Deno.HttpServer<Deno.NetAddr> {
  const disk = new Uint8Array(64 * 1024).fill(7);
  const options = { hostname: "127.0.0.1", port: 0, onListen() {} };
  return Deno.serve({ ...options, ...tls }, (request) => {
    seen(request);
    const { headers } = request;
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(headers.get("range")!)!;
    const [start, end] = [Number(from), Math.min(Number(to) + 1, disk.length)];
    return new Response(disk.subarray(start, end), {
      status: 206,
      headers: {
        etag: '"1"',
        "content-range": `bytes ${start}-${end - 1}/${disk.length}`,
      },
    });
  });
}

qemuTest(
  "https: the runtime decides whether to trust a custom authority",
  async () => {
    await using folder = new TempDir();
    const openssl = (...args: string[]) =>
      runOk(["openssl", ...args], { cwd: folder.path });
    const key = ["-newkey", "rsa:2048", "-nodes", "-keyout"];
    await openssl(
      "req",
      "-x509",
      ...key,
      "ca.key",
      "-out",
      "ca",
      "-subj",
      "/CN=ca",
    );
    await openssl("req", ...key, "key", "-out", "request", "-subj", "/CN=h");
    await Deno.writeTextFile(
      folder.file("names"),
      "subjectAltName=IP:127.0.0.1",
    );
    const signing = ["-CA", "ca", "-CAkey", "ca.key", "-CAcreateserial"];
    const names = ["-extfile", "names", "-out", "certificate"];
    await openssl("x509", "-req", "-in", "request", ...signing, ...names);
    const cert = await Deno.readTextFile(folder.file("certificate"));
    const tls = { cert, key: await Deno.readTextFile(folder.file("key")) };
    await using server = serveDisk(tls, () => {});
    const { port } = server.addr;
    const info = [
      ...BDRV,
      "info",
      "-f",
      "raw",
      `https://127.0.0.1:${port}/disk`,
    ];
    const env = { DENO_CERT: folder.file("ca") };
    assertStringIncludes(await runOk(info, { env }), "64 KiB");
    const { stderr } = await run(info);
    assertStringIncludes(stderr, "certificate of 127.0.0.1");
    assertStringIncludes(stderr, "DENO_CERT");
  },
  ["openssl"],
);

Deno.test("http: the runtime's proxy is used", async () => {
  const seen: string[] = [];
  await using proxy = serveDisk(undefined, ({ url, headers }) => {
    seen.push(`${url} ${headers.get("proxy-authorization")}`);
  });
  const env = { HTTP_PROXY: `http://me:pw@127.0.0.1:${proxy.addr.port}` };
  const info = [...BDRV, "info", "-f", "raw", "http://h.invalid/disk"];
  assertStringIncludes(await runOk(info, { env }), "64 KiB");
  assertEquals(seen[0], `http://h.invalid/disk Basic ${btoa("me:pw")}`);
});
