/**
 * TLS with keys shared in advance, which only Node.js has: our server and our
 * client beside QEMU's and libnbd's.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { ServerProcess, uriOf } from "../interop/nbd_peers.ts";
import { run, runOk, type TempDir } from "../qemu.ts";

const KEYS = "alice:00112233445566778899aabbccddeeff\n" +
  "qemu:ffeeddccbbaa99887766554433221100\n";

/** What is not in `KEYS`, or differs. */
const OTHERS = "alice:00112233445566778899aabbccddeefe\neve:00ff\n";

function writeKeys(dir: TempDir): void {
  for (const [folder, keys] of [["keys", KEYS], ["others", OTHERS]]) {
    Deno.mkdirSync(dir.file(folder));
    Deno.writeTextFileSync(dir.file(`${folder}/keys.psk`), keys);
  }
}

const object = (dir: TempDir, folder: string, more: string) => [
  "--object",
  `tls-creds-psk,id=tls0,dir=${dir.file(folder)},${more}`,
];

/** On Bun, such keys are refused by name, before anything is opened. */
export async function noSharedKeys(
  bdrv: readonly string[],
  dir: TempDir,
): Promise<void> {
  writeKeys(dir);
  const keys = object(dir, "keys", "endpoint=server");
  const { code, stderr } = await run([...bdrv, "info", ...keys, "nothing"]);
  assertEquals(code, 1);
  assert(stderr.includes("(PSK) needs Node.js; Deno and Bun have"), stderr);
}

/** On Node.js, they work with every peer, and only for those who have one. */
export async function sharedKeys(
  bdrv: readonly string[],
  dir: TempDir,
): Promise<void> {
  writeKeys(dir);
  const socket = dir.file("s");
  await Deno.writeFile(
    dir.file("disk"),
    new Uint8Array(1 << 20).map((_, i) => (i * i) >> 7),
  );
  const image = `driver=nbd,path=${socket},tls-creds=tls0`;
  const served = [
    ...object(dir, "keys", "endpoint=server"),
    ...["--tls-creds=tls0", "-t", "-f", "raw", "-k", socket, dir.file("disk")],
  ];
  const qemuNbd = [...bdrv, "qemu-nbd"];
  const programs = {
    "ours": [...qemuNbd, ...served],
    "qemu-nbd": ["qemu-nbd", ...served],
    "nbdkit": [
      ...["nbdkit", "-f", "--tls=require", "-U", socket],
      ...[`--tls-psk=${dir.file("keys/keys.psk")}`],
      ...["file", dir.file("disk")],
    ],
  };
  for (const [name, program] of Object.entries(programs)) {
    await using _server = await ServerProcess.start(program, socket);
    const copy = [
      ...["convert", ...object(dir, "keys", "username=alice"), "--image-opts"],
      ...["-O", "raw", image, dir.file("copy")],
    ];
    for (const tool of name === "ours" ? [["qemu-img"], bdrv] : [bdrv]) {
      await runOk([...tool, ...copy]);
      await runOk(["cmp", dir.file("disk"), dir.file("copy")]);
    }
    // Wrong ones, unknown ones, and none.
    for (const user of ["alice", "eve", undefined]) {
      const keys = user ? object(dir, "others", `username=${user}`) : [];
      const source = user ? image : `driver=nbd,path=${socket}`;
      const info = [...bdrv, "info", ...keys, "--image-opts", source];
      const { code, stderr } = await run(info);
      assertEquals(code, 1, name);
      const why = user ? "TLS handshake failed: " : "TLS negotiation required";
      assert(stderr.includes(why), `${name}: ${stderr}`);
    }
    if (name === "nbdkit") continue;
    const list = ["-L", "-k", socket, "--tls-creds=tls0"];
    const listed = await runOk([
      ...[...qemuNbd, ...list],
      ...object(dir, "keys", "endpoint=client"),
    ]);
    assert(listed.startsWith("exports available: 1\n"), listed);
    if (name !== "ours") continue;
    const keys = `tls-psk-file=${dir.file("keys/keys.psk")}`;
    const uri = uriOf(socket).replace("nbd+unix://", "nbds+unix://alice@");
    const size = await runOk(["nbdinfo", "--size", `${uri}&${keys}`]);
    assertEquals(size, "1048576\n");
  }
}
