import { assert, assertEquals, assertThrows } from "@std/assert";
import { Secrets } from "../../cli/objects.ts";
import { BlockError } from "../../core/errors.ts";
import { findSecret } from "../../core/secrets.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

async function secretOf(definitions: string[], id = "s0"): Promise<string> {
  const secrets = new Secrets();
  for (const definition of definitions) secrets.define(definition);
  const request = { id, filename: "x" };
  const bytes = await findSecret(
    (request) => secrets.find(request, false),
    request,
  );
  return new TextDecoder().decode(bytes);
}

const KEY = "secret,id=key,format=base64," +
  "data=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const IV = "AAAAAAAAAAAAAAAAAAAAAA==";

const GOOD: readonly [value: string, definitions: string[]][] = [
  ["abc", ["secret,id=s0,data=abc"]],
  ["a,c", ["secret,data=a,,c,id=s0"]],
  ["", ["secret,id=s0,data="]],
  ["b", ["secret,id=s0,data=a,data=b"]],
  ["abc", ["secret,id=s0,format=raw,data=abc"]],
  ["abc", ["secret,id=s0,format=base64,data=YWJj"]],
  ["ab", ["secret,id=s0,format=base64,data=YWI="]],
  ["ab", ["secret,id=s0,format=base64,data=YWI"]],
  ["abc", ['{"qom-type":"secret","id":"s0","data":"abc"}']],
  ["abc", ["qom-type=secret,id=s0,data=abc"]],
  ["hello", [
    KEY,
    `secret,id=s0,keyid=key,iv=${IV},format=base64,data=wjXeJNI54DzI43fGBPymew==`,
  ]],
];

for (const [value, definitions] of GOOD) {
  Deno.test(`--object ${definitions.at(-1)}`, async () => {
    assertEquals(await secretOf(definitions), value);
  });
}

Deno.test("--object secret,file=… takes the file's bytes verbatim", async () => {
  await using dir = new TempDir();
  const file = dir.file("key");
  await Deno.writeTextFile(file, "abc\n");
  assertEquals(await secretOf([`secret,id=s0,file=${file}`]), "abc\n");
  await Deno.writeTextFile(file, "YWJj\n");
  assertEquals(
    await secretOf([`secret,id=s0,format=base64,file=${file}`]),
    "abc",
  );
});

const BAD: readonly [message: string, definition: string][] = [
  [
    "Parameter 'qom-type' does not accept value 'bogus'; it must be one of secret, throttle-group, tls-creds-x509, tls-creds-psk, authz-simple, authz-list",
    "bogus,id=s0",
  ],
  [
    "Parameter 'username' is unexpected",
    "tls-creds-x509,id=t0,dir=/nothing,username=me",
  ],
  ["Missing 'dir' property value", "tls-creds-psk,id=t0"],
  [
    "Parameter 'passwordid' is unexpected",
    "tls-creds-psk,id=t0,dir=/nothing,passwordid=s0",
  ],
  [
    "Unable to access credentials /nothing/keys.psk: No such file or directory",
    "tls-creds-psk,id=t0,dir=/nothing",
  ],
  ["Parameter 'qom-type' is missing", "id=s0,data=abc"],
  ["Parameter 'id' is missing", "secret,data=abc"],
  ["Parameter 'id' expects an identifier", "secret,id=1/s,data=abc"],
  ["Parameter 'bogus' is unexpected", "secret,id=s0,bogus=1,data=abc"],
  [
    "Parameter 'format' does not accept value 'x'; it must be one of raw, base64",
    "secret,id=s0,format=x",
  ],
  ["Either 'file' or 'data' must be provided", "secret,id=s0"],
  ["'file' and 'data' are mutually exclusive", "secret,id=s0,file=a,data=b"],
  [
    "Unable to read /nothing: Failed to open file “/nothing”: No such file or directory",
    "secret,id=s0,file=/nothing",
  ],
  [
    "Base64 data contains invalid characters",
    "secret,id=s0,format=base64,data=a!",
  ],
  [
    "Parameter 'limits.bps-totl' is unexpected",
    "throttle-group,id=g0,limits.bps-totl=1",
  ],
  [
    "Parameter 'x-iops-read' expects integer",
    "throttle-group,id=g0,x-iops-read=5k",
  ],
  [
    "bps_max/iops_max require corresponding bps/iops values",
    "throttle-group,id=g0,limits.bps-total-max=20",
  ],
  ["No secret with id 's1'", "secret,id=s0,keyid=s1,data=abc"],
  ["Key should be 32 bytes in length", "secret,id=s0,keyid=short,data=abc"],
  ["IV is required to decrypt secret", "secret,id=s0,keyid=key,data=abc"],
  [
    "IV should be 16 bytes in length not 3",
    "secret,id=s0,keyid=key,iv=AAAA,data=abc",
  ],
  [
    "Length 3 must be a multiple of block size 16",
    `secret,id=s0,keyid=key,iv=${IV},data=abc`,
  ],
  [
    "Incorrect number of padding bytes (76) found on decrypted data",
    `secret,id=s0,keyid=key,iv=${IV},data=aaaabbbbccccdddd`,
  ],
  [
    "attempt to add duplicate property 'short' to object (type 'container')",
    "secret,id=short,data=abc",
  ],
  [
    "Invalid parameter type for 'data', expected: string",
    '{"qom-type":"secret","id":"s0","data":5}',
  ],
];

for (const [message, definition] of BAD) {
  Deno.test(`--object ${definition}: ${message}`, () => {
    const secrets = new Secrets();
    secrets.define(KEY);
    secrets.define("secret,id=short,data=x");
    const error = assertThrows(() => secrets.define(definition), BlockError);
    assertEquals(error.message, message);
  });
}

Deno.test("--object tls-creds-psk is refused where TLS has no keys", async () => {
  await using dir = new TempDir();
  const define = (properties: string) =>
    new Secrets().define(`tls-creds-psk,id=t0,dir=${dir.path},${properties}`);
  const refused = (properties: string) =>
    assertThrows(() => define(properties), BlockError);
  await Deno.writeTextFile(dir.file("keys.psk"), "alice:00ff\n");
  for (const properties of ["endpoint=server", "username=alice"]) {
    const { code, message } = refused(properties);
    assertEquals(code, "ENOTSUP");
    assert(message.includes("needs Node.js; Deno and Bun have only"), message);
  }
  const { message } = refused("endpoint=client");
  const path = dir.file("keys.psk");
  assertEquals(message, `Username qemu not found in PSK file ${path}`);
  await Deno.writeTextFile(dir.file("keys.psk"), "alice:00ff\nbob:secret\n");
  const malformed = refused("username=alice");
  const line = "Line 2 is not a user's name, ':', and a key";
  assertEquals(malformed.message, `${path}: ${line}`);
});

qemuTest(
  "--object help ends every program, whatever else is given",
  async () => {
    for (
      const [program, ...args] of [
        ["qemu-img", "info"],
        ["qemu-io"],
        ["qemu-nbd"],
        ["qemu-nbd", "-L"],
      ]
    ) {
      for (const object of ["help", "secret,help"]) {
        const call = [program, ...args, "--object", object];
        const [ours, theirs] = [await run([...BDRV, ...call]), await run(call)];
        assertEquals([ours.code, theirs.code], [0, 0], `${call}`);
        const first = (text: string) => text.split("\n")[0];
        assertEquals(first(ours.stdout), first(theirs.stdout));
        assertEquals(ours.stderr, "");
      }
    }
  },
  ["qemu-img", "qemu-io", "qemu-nbd"],
);

qemuTest(
  "a socket's path that is too long is reported as by qemu-nbd",
  async () => {
    const path = "/tmp/x".repeat(50);
    for (
      const args of [["-L", "-k", path], ["-k", path, "-f", "raw", "/dev/null"]]
    ) {
      const call = ["qemu-nbd", ...args];
      const [ours, theirs] = [await run([...BDRV, ...call]), await run(call)];
      assertEquals([ours.code, ours.stderr], [theirs.code, theirs.stderr]);
    }
  },
  ["qemu-nbd"],
);

/** Calls in order, in two folders: by qemu-img, and by us. */
const CALLS = [
  "create -f qcow2 SECRET -o NEW x.qcow2 1M",
  "create -f qcow2 SECRET -o encryption=on,encrypt.key-secret=s0 y.qcow2 1M",
  "create -f qcow2 SECRET -o encryption=on z.qcow2 1M",
  // A legacy name of "aes".
  "create -f qcow2 SECRET -o encrypt.format=qcow,encrypt.key-secret=s0 v.qcow2 1M",
  "create -f qcow SECRET -o encrypt.format=qcow,encrypt.key-secret=s0 v.qcow 1M",
  "create -f qcow2 SECRET -o encrypt.format=qcow,encryption=on z.qcow2 1M",
  "info v.qcow2",
  "info v.qcow",
  "create -f qcow2 -o NEW z.qcow2 1M",
  "create -f qcow2 --object secret,id=s0 -o NEW z.qcow2 1M",
  "map x.qcow2",
  "check x.qcow2",
  "check SECRET --image-opts OPEN",
  "convert SECRET -O qcow2 -o NEW pattern.raw x.qcow2",
  "map SECRET --image-opts OPEN",
  "map --output=json SECRET --image-opts OPEN",
  "compare SECRET --image-opts OPEN driver=raw,file.filename=pattern.raw",
  "convert SECRET -c -O qcow2 -o NEW pattern.raw w.qcow2",
  "create -f qcow2 SECRET -b x.qcow2 -F qcow2 -o NEW o.qcow2",
  "convert SECRET -O raw --image-opts " +
  "OPEN2,file.filename=o.qcow2,backing.encrypt.key-secret=s0 back.raw",
  "resize SECRET --image-opts OPEN 4M",
];

qemuTest("encrypted images behave as qemu-img's do", async () => {
  await using dir = new TempDir();
  const pattern = Uint8Array.from(
    { length: 300_000 },
    (_, i) => i < 100_000 ? 0 : i * 7 + (i >> 8),
  );
  const folders = [
    ["theirs", ["qemu-img"]],
    ["ours", [...BDRV, "qemu-img"]],
  ] as const;
  for (const [folder] of folders) {
    await Deno.mkdir(dir.file(folder));
    await Deno.writeFile(dir.file(`${folder}/pattern.raw`), pattern);
    await Deno.truncate(dir.file(`${folder}/pattern.raw`), 1024 * 1024);
  }
  for (const call of CALLS) {
    const args = call
      .replace("SECRET", "--object secret,id=s0,data=abc")
      .replace("NEW", "encrypt.format=aes,encrypt.key-secret=s0")
      .replace("OPEN2", "driver=qcow2,encrypt.key-secret=s0")
      .replace(
        "OPEN",
        "driver=qcow2,encrypt.key-secret=s0,file.filename=x.qcow2",
      )
      .split(" ");
    const [theirs, ours] = await Promise.all(
      folders.map(([folder, program]) =>
        run([...program, ...args], { cwd: dir.file(folder) })
      ),
    );
    assertEquals({ call, ...ours }, { call, ...theirs });
  }
  for (const name of ["back.raw", "x.qcow2"]) {
    const [theirs, ours] = await Promise.all(
      folders.map(([folder]) => Deno.readFile(dir.file(`${folder}/${name}`))),
    );
    assertEquals(ours.length, theirs.length, name);
    assertEquals(ours.findIndex((byte, i) => byte !== theirs[i]), -1, name);
  }
  // Each program opens the other's images with the same key.
  await runOk(
    [
      "qemu-img",
      "compare",
      "--object",
      "secret,id=s0,data=abc",
      "--image-opts",
      "driver=qcow2,encrypt.key-secret=s0,file.filename=ours/x.qcow2",
      "driver=qcow2,encrypt.key-secret=s0,file.filename=theirs/x.qcow2",
    ],
    { cwd: dir.path },
  );
}, ["qemu-img"]);
