/**
 * Our server with foreign clients.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";
import { makeCertificates, ServerProcess, uriOf } from "./nbd_peers.ts";

const MIB = 1 << 20;

/** An image with data, zeroes and a snapshot. */
async function makeImage(dir: TempDir): Promise<string> {
  const image = dir.file("disk.qcow2");
  await runOk(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"]);
  await runOk(["qemu-io", "-c", "write -P 1 1M 2M", image]);
  await runOk(["qemu-img", "snapshot", "-c", "before", image]);
  await runOk([
    ...["qemu-io", "-c", "write -P 2 2M 3M", "-c", "write -z 8M 1M"],
    image,
  ]);
  return image;
}

async function serve(
  dir: TempDir,
  ...args: string[]
): Promise<[server: ServerProcess, uri: string]> {
  const socket = dir.file("socket");
  const command = [...BDRV, "qemu-nbd", "-k", socket, ...args];
  return [await ServerProcess.start(command, socket), uriOf(socket)];
}

/** The arguments for the credentials of an end, from a folder. */
function tlsObject(endpoint: string, folder: string): string[] {
  const id = "tls-creds-x509,id=tls0";
  return ["--object", `${id},endpoint=${endpoint},dir=${folder}`];
}

qemuTest("qemu-img and qemu-io read and write what we serve", async () => {
  await using dir = new TempDir();
  const image = await makeImage(dir);
  const [server, uri] = await serve(dir, "-t", "-f", "qcow2", "-e", "4", image);
  await using _ = server;
  const raw = dir.file("copy.raw");
  await runOk(["qemu-img", "convert", "-f", "raw", uri, raw]);
  await runOk([
    "qemu-img",
    "compare",
    "-U",
    "-f",
    "raw",
    "-F",
    "qcow2",
    raw,
    image,
  ]);
  await runOk([
    ...["qemu-io", "-f", "raw", "-c", "read -P 2 2M 3M"],
    ...["-c", "write -f -P 3 5M 12345", "-c", "read -P 3 5M 12345"],
    ...["-c", "write -z 2M 64k", "-c", "read -P 0 2M 64k"],
    ...["-c", "discard 3M 64k", "-c", "flush", uri],
  ]);
  const { code, errors } = await server.end();
  assertEquals([code, errors], [0, ""]);
  await runOk(["qemu-img", "check", image]);
  await runOk([
    ...["qemu-io", "-c", "read -P 3 5M 12345", "-c", "read -P 0 2M 64k"],
    image,
  ]);
}, ["qemu-img", "qemu-io"]);

qemuTest("nbdinfo and nbdcopy see the right content", async () => {
  await using dir = new TempDir();
  const image = await makeImage(dir);
  const args = ["-t", "-A", "-D", "a disk", "-f", "qcow2", "-e", "0", image];
  const [server, uri] = await serve(dir, ...args);
  await using _ = server;
  const { exports: [listed] } = JSON.parse(
    await runOk(["nbdinfo", "--list", "--json", uri]),
  );
  assertEquals(listed["export-name"], "");
  assertEquals(listed.description, "a disk");
  assertEquals(listed["export-size"], 16 * MIB);
  assertEquals(listed.contexts, ["base:allocation", "qemu:allocation-depth"]);
  const map = (context: string) =>
    runOk(["nbdinfo", `--map=${context}`, "--json", uri]).then(JSON.parse);
  const simple = (
    extents: { offset: number; length: number; type: number }[],
  ) =>
    extents.map((
      { offset, length, type },
    ) => [offset / MIB, length / MIB, type]);
  assertEquals(simple(await map("base:allocation")), [
    [0, 1, 3],
    [1, 4, 0],
    [5, 11, 3],
  ]);
  assertEquals(simple(await map("qemu:allocation-depth")), [
    [0, 1, 0],
    [1, 4, 1],
    [5, 3, 0],
    [8, 1, 1],
    [9, 7, 0],
  ]);
  const raw = dir.file("copy.raw");
  await runOk(["nbdcopy", uri, raw]);
  await runOk([
    "qemu-img",
    "compare",
    "-U",
    "-f",
    "raw",
    "-F",
    "qcow2",
    raw,
    image,
  ]);
  const source = dir.file("source.raw");
  await Deno.writeFile(source, new Uint8Array(16 * MIB).map((_, i) => i >> 12));
  await runOk(["nbdcopy", "--flush", source, uri]);
  assertEquals((await server.end()).code, 0);
  await runOk([
    "qemu-img",
    "compare",
    "-f",
    "raw",
    "-F",
    "qcow2",
    source,
    image,
  ]);
}, ["qemu-img", "qemu-io", "nbdinfo", "nbdcopy"]);

qemuTest(
  "snapshots, parts and overlays are served as requested",
  async () => {
    await using dir = new TempDir();
    const image = await makeImage(dir);
    const before = await Deno.readFile(image);
    const trials: [options: string[], commands: string[]][] = [
      [["-l", "before"], ["read -P 1 1M 2M", "read -P 0 3M 2M"]],
      [["-l", "snapshot.name=before"], ["read -P 1 2M 1M"]],
      [["-o", "1048576"], ["read -P 1 0 1M", "read -P 2 1M 3M"]],
      [["-s"], ["write -P 9 0 4M", "read -P 9 0 4M", "read -P 2 4M 1M"]],
      [["-r"], ["read -P 2 2M 3M"]],
    ];
    for (const [options, commands] of trials) {
      const [server, uri] = await serve(
        dir,
        "-t",
        "-f",
        "qcow2",
        ...options,
        image,
      );
      await using _ = server;
      const readOnly = options[0] === "-s" ? [] : ["-r"];
      const args = commands.flatMap((command) => ["-c", command]);
      await runOk(["qemu-io", "-f", "raw", ...readOnly, ...args, uri]);
      assertEquals((await server.end("SIGINT")).code, 0);
    }
    assertEquals(await Deno.readFile(image), before);
  },
  ["qemu-img", "qemu-io"],
);

qemuTest("our bitmaps are exported as by qemu-nbd", async () => {
  await using dir = new TempDir();
  const image = dir.file("disk.qcow2");
  await runOk([...BDRV, "create", "-q", "-f", "qcow2", image, "16M"]);
  await runOk([...BDRV, "bitmap", "--add", image, "since"]);
  await runOk([...BDRV, "qemu-io", "-c", "write 3M 100k", image]);
  await runOk([...BDRV, "bitmap", "--disable", image, "since"]);
  const socket = dir.file("socket");
  const args = ["-t", "-r", "-k", socket, "-f", "qcow2", "-B", "since", image];
  const maps: string[] = [];
  for (const program of [["qemu-nbd"], [...BDRV, "qemu-nbd"]]) {
    await using _ = await ServerProcess.start([...program, ...args], socket);
    maps.push(
      await runOk([
        ...["qemu-img", "map", "--output=json", "--image-opts"],
        `driver=nbd,server.type=unix,server.path=${socket},` +
        "x-dirty-bitmap=qemu:dirty-bitmap:since",
      ]),
    );
  }
  assertEquals(maps[1], maps[0]);
  assertEquals(JSON.parse(maps[1])[1].start, 3 * MIB);
}, ["qemu-img", "qemu-nbd"]);

qemuTest("it ends with the last client, unless told to stay", async () => {
  await using dir = new TempDir();
  const image = await makeImage(dir);
  const socket = dir.file("socket");
  const pidFile = dir.file("pid");
  const { code, stdout, stderr } = await run([
    ...BDRV,
    ...["qemu-nbd", "--fork", "--pid-file", pidFile, "-k", socket],
    ...["-f", "qcow2", image],
  ]);
  assertEquals([code, stdout, stderr], [0, "", ""]);
  const pid = Number(await Deno.readTextFile(pidFile));
  // Merely listing exports does not count as a client.
  assertMatch(
    await runOk(["qemu-nbd", "-L", "-k", socket]),
    /size: {2}16777216\n {2}flags: 0xced /,
  );
  await runOk(["qemu-io", "-f", "raw", "-c", "read -P 1 1M 1M", uriOf(socket)]);
  for (let tries = 0; tries < 100 && isRunning(pid); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert(!isRunning(pid));
  const failed = await run([
    ...BDRV,
    ...["qemu-nbd", "--fork", "-k", socket, dir.file("nothing")],
  ]);
  assertEquals(failed.code, 1);
  assertMatch(
    failed.stderr,
    /^qemu-nbd: Failed to blk_new_open .*No such file/,
  );
}, ["qemu-img", "qemu-io", "qemu-nbd"]);

function isRunning(pid: number): boolean {
  try {
    Deno.kill(pid, "SIGCONT");
    return !Deno.readTextFileSync(`/proc/${pid}/stat`).includes(") Z ");
  } catch {
    return false;
  }
}

qemuTest(
  "bdrv serve offers a disk read-only, unless told otherwise",
  async () => {
    await using dir = new TempDir();
    const image = await makeImage(dir);
    const socket = dir.file("own socket");
    const command = [...BDRV, "serve", "-k", socket];
    const uri = uriOf(encodeURIComponent(socket));
    {
      await using server = await ServerProcess.start(
        [...command, image],
        socket,
      );
      await runOk(["qemu-io", "-r", "-f", "raw", "-c", "read -P 1 1M 1M", uri]);
      const { code } = await run([
        "qemu-io",
        "-f",
        "raw",
        "-c",
        "write 0 1k",
        uri,
      ]);
      assertEquals(code, 1);
      const second = await run([...command, image]);
      assertEquals(second.code, 1);
      assertMatch(second.stderr, /Another program listens on/);
      assertEquals((await server.end()).code, 0);
    }
    await using server = await ServerProcess.start(
      [...command, "-w", image],
      socket,
    );
    await runOk(["qemu-io", "-f", "raw", "-c", "write -P 5 0 1k", uri]);
    assertEquals((await server.end("SIGHUP")).code, 0);
    await runOk(["qemu-io", "-c", "read -P 5 0 1k", image]);
  },
  ["qemu-img", "qemu-io"],
);

qemuTest("TLS, and only for clients with a certificate", async () => {
  await using dir = new TempDir();
  const image = await makeImage(dir);
  const folder = await makeCertificates(dir);
  const object = (endpoint: string, from = folder) => tlsObject(endpoint, from);
  const args = [
    "-t",
    "-f",
    "qcow2",
    ...object("server"),
    "--tls-creds",
    "tls0",
  ];
  const [server, uri] = await serve(dir, ...args, image);
  await using _ = server;
  const source = `driver=nbd,path=${dir.file("socket")},tls-creds=tls0,` +
    "tls-hostname=localhost";
  const read = (from?: string) =>
    run([
      ...["qemu-io", "-r", ...object("client", from)],
      ...["-c", "read -P 2 2M 3M", "--image-opts", source],
    ]);
  assertEquals((await read()).code, 0);
  const stranger = dir.file("stranger");
  await Deno.mkdir(stranger);
  await Deno.copyFile(`${folder}/ca-cert.pem`, `${stranger}/ca-cert.pem`);
  assertEquals((await read(stranger)).code, 1);
  const plain = await run(["qemu-img", "info", uri]);
  assertEquals(plain.code, 1);
  assertMatch(plain.stderr, /TLS negotiation required before option 7 \(go\)/);
  const { code, errors } = await server.end();
  assertEquals(code, 0);
  assertMatch(errors, /Verify failed: No certificate was found/);
}, ["qemu-img", "qemu-io", "openssl"]);

qemuTest("a client with another authority's certificate", async () => {
  await using dir = new TempDir();
  await using elsewhere = new TempDir();
  const image = await makeImage(dir);
  const folder = await makeCertificates(dir);
  const stranger = await makeCertificates(elsewhere);
  // It trusts the server, which does not trust it.
  const authority = await Deno.readFile(`${folder}/ca-cert.pem`);
  const append = { append: true };
  await Deno.writeFile(`${stranger}/ca-cert.pem`, authority, append);
  const source = `driver=nbd,path=${dir.file("socket")},tls-creds=tls0,` +
    "tls-hostname=localhost";
  const client = ["info", ...tlsObject("client", stranger), "--image-opts"];
  for (const program of [["qemu-nbd"], [...BDRV, "qemu-nbd"]]) {
    await using server = await ServerProcess.start([
      ...[...program, "-t", "-f", "qcow2", "-k", dir.file("socket")],
      ...[...tlsObject("server", folder), "--tls-creds", "tls0", image],
    ], dir.file("socket"));
    const { code, stderr } = await run([...BDRV, ...client, source]);
    assertEquals(code, 1);
    const why =
      "Cannot read from TLS channel: Software caused connection abort";
    assert(stderr.endsWith(`Failed to read option reply: ${why}\n`), stderr);
    const { errors } = await server.end();
    const log = "option negotiation failed: The certificate ";
    assert(errors.includes(log), errors);
  }
}, ["qemu-img", "qemu-nbd", "openssl"]);

qemuTest(
  "a client that does not accept the server's name is logged as by qemu-nbd",
  async () => {
    await using dir = new TempDir();
    const image = await makeImage(dir);
    const folder = await makeCertificates(dir);
    const object = (endpoint: string) => tlsObject(endpoint, folder);
    const source = `driver=nbd,path=${dir.file("socket")},tls-creds=tls0,` +
      "tls-hostname=other";
    for (const program of [["qemu-nbd"], [...BDRV, "qemu-nbd"]]) {
      await using server = await ServerProcess.start([
        ...[...program, "-t", "-f", "qcow2", "-k", dir.file("socket")],
        ...[...object("server"), "--tls-creds", "tls0", image],
      ], dir.file("socket"));
      const client = ["qemu-img", "info", ...object("client"), "--image-opts"];
      const { stderr } = await run([...client, source]);
      assert(stderr.includes("does not match the hostname other"), stderr);
      const { errors } = await server.end();
      const log = "Failed to read opts magic: Cannot read from TLS channel: " +
        "Software caused connection abort";
      assert(errors.includes(log), errors);
    }
  },
  ["qemu-img", "qemu-nbd", "openssl"],
);

qemuTest(
  "certificates that can accept nobody are refused as by qemu-nbd",
  async () => {
    await using dir = new TempDir();
    await using elsewhere = new TempDir();
    const image = await makeImage(dir);
    const folder = await makeCertificates(dir);
    const stranger = await makeCertificates(elsewhere);
    const wrong: [name: string, (path: (file: string) => string) => unknown][] =
      [
        [
          "garbage",
          (path) => Deno.writeTextFile(path("server-cert.pem"), "garbage"),
        ],
        ["no authority", (path) => Deno.writeTextFile(path("ca-cert.pem"), "")],
        [
          "another authority",
          (path) =>
            Deno.copyFile(`${stranger}/ca-cert.pem`, path("ca-cert.pem")),
        ],
        [
          "another key",
          (path) =>
            Deno.copyFile(`${folder}/client-key.pem`, path("server-key.pem")),
        ],
        [
          "no key",
          (path) => Deno.writeTextFile(path("server-key.pem"), "garbage"),
        ],
        ["an authority's", async (path) => {
          await Deno.copyFile(`${folder}/ca-cert.pem`, path("server-cert.pem"));
          await Deno.copyFile(`${folder}/ca-key.pem`, path("server-key.pem"));
        }],
        ["out of date", async (path) => {
          const sign = [
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca-cert.pem",
          ];
          await runOk([
            ...["openssl", ...sign, "-CAkey", "ca-key.pem", "-CAcreateserial"],
            ...["-days", "-1", "-out", path("server-cert.pem")],
          ], { cwd: folder });
        }],
      ];
    for (const [name, spoil] of wrong) {
      const path = (file: string) => `${dir.file("wrong")}/${file}`;
      await Deno.mkdir(dir.file("wrong"));
      for (const file of ["ca-cert.pem", "server-cert.pem", "server-key.pem"]) {
        await Deno.copyFile(`${folder}/${file}`, path(file));
      }
      await spoil(path);
      const args = [
        ...["--object", `tls-creds-x509,id=t,endpoint=server,dir=${path(".")}`],
        ...["--tls-creds", "t", "-f", "qcow2", "-k", dir.file("socket"), image],
      ];
      const theirs = await run(["qemu-nbd", ...args]);
      const ours = await run([...BDRV, "qemu-nbd", ...args]);
      assertEquals(ours.stderr, theirs.stderr, name);
      assertEquals([ours.code, theirs.code], [1, 1], name);
      await Deno.remove(dir.file("wrong"), { recursive: true });
    }
  },
  ["qemu-nbd", "openssl"],
);

qemuTest("--tls-authz admits those whom an object names", async () => {
  await using dir = new TempDir();
  const image = await makeImage(dir);
  const folder = await makeCertificates(dir);
  const object = (endpoint: string) => tlsObject(endpoint, folder);
  const source = `driver=nbd,path=${dir.file("socket")},tls-creds=tls0,` +
    "tls-hostname=localhost";
  const tls = [...object("server"), "--tls-creds", "tls0"];
  for (
    const [authz, isLetIn] of [
      ["authz-simple,id=a,identity=CN=client", true],
      ["authz-simple,id=a,identity=CN=other", false],
      [
        "authz-list,id=a,rules.0.match=CN=c*,rules.0.policy=allow," +
        "rules.0.format=glob",
        true,
      ],
      ["authz-list,id=a,rules.0.match=CN=c*,rules.0.policy=allow", false],
    ] as const
  ) {
    const args = ["--object", authz, "--tls-authz", "a"];
    const [server] = await serve(
      dir,
      "-f",
      "qcow2",
      "-t",
      ...tls,
      ...args,
      image,
    );
    const info = ["info", ...object("client"), "--image-opts", source];
    assertEquals(
      (await run(["qemu-img", ...info])).code,
      isLetIn ? 0 : 1,
      authz,
    );
    const { errors } = await server.end();
    const denied = "TLS x509 authz check for CN=client is denied";
    assertEquals(errors.includes(denied), !isLetIn, authz);
  }
}, ["qemu-img", "openssl"]);

qemuTest("mistakes are reported as by qemu-nbd", async () => {
  await using dir = new TempDir();
  await makeImage(dir);
  const socket = ["-k", dir.file("socket")];
  const cases = [
    [],
    ["disk.qcow2", "another"],
    ["--nonsense"],
    ["-e", "x", "disk.qcow2"],
    ["-k", "relative", "disk.qcow2"],
    ["-o", "8M", "disk.qcow2"],
    [...socket, "-o", "99999999999", "-f", "qcow2", "disk.qcow2"],
    [...socket, "-l", "nothing", "disk.qcow2"],
    ["-l", "snapshot.foo=1", "disk.qcow2"],
    ["-n", "--cache=none", "disk.qcow2"],
    ["--cache=x", "disk.qcow2"],
    ["--discard=x", "disk.qcow2"],
    ["--detect-zeroes=unmap", "disk.qcow2"],
    [...socket, "--image-opts", "-f", "raw", "disk.qcow2"],
    [...socket, "nothing"],
    [...socket, "-B", "nothing", "disk.qcow2"],
    ["-L", "disk.qcow2"],
    ["-L", "-k", "/nowhere/at/all"],
    ["--tls-creds", "nothing", "disk.qcow2"],
    ["--tls-hostname", "x", "disk.qcow2"],
    ["-k", "/nowhere/at/all", "disk.qcow2"],
    ["-p", "nonsense", "disk.qcow2"],
  ];
  const options = { cwd: dir.path };
  for (const args of cases) {
    const theirs = await run(["qemu-nbd", ...args], options);
    const ours = await run([...BDRV, "qemu-nbd", ...args], options);
    assertEquals(ours, theirs, args.join(" "));
  }
}, ["qemu-img", "qemu-io", "qemu-nbd"]);

/** Starts a program with a socket as its descriptor 3, as systemd does. */
const ACTIVATION = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(5)
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "1"
os.execvp(sys.argv[2], sys.argv[2:])
`;

qemuTest("a socket passed by the system is used", async () => {
  await using dir = new TempDir();
  const image = await makeImage(dir);
  const socket = dir.file("socket");
  const wrapped = ["python3", "-c", ACTIVATION, socket, ...BDRV, "qemu-nbd"];
  const server = await ServerProcess.start(
    [...wrapped, "-f", "qcow2", image],
    socket,
  );
  await using _ = server;
  await runOk([
    ...["qemu-io", "-f", "raw", "-c", "read -P 2 2M 3M", uriOf(socket)],
  ]);
  assertEquals(await server.end("SIGCONT"), { code: 0, errors: "" });
  const { stderr } = await run([
    ...["python3", "-c", ACTIVATION, dir.file("other"), ...BDRV],
    ...["qemu-nbd", "-p", "1", image],
  ]);
  assertEquals(
    stderr,
    "qemu-nbd: TCP port number can't be set when using socket activation\n",
  );
}, ["qemu-img", "qemu-io", "python3"]);
