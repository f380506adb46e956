/** `dd`, compared with qemu-img's. @module */
import { assertEquals } from "@std/assert";
import { BDRV, run, runOk, TempDir } from "../qemu.ts";
import { besideQemu, words } from "./beside.ts";

async function prepare(cwd: string): Promise<void> {
  const img = (call: string) => runOk(["qemu-img", ...words(call)], { cwd });
  await img("create -q -f qcow2 a.qcow2 200k");
  await runOk(
    [
      "qemu-io",
      "-c",
      "write -P 1 1k 70000",
      "-c",
      "write -P 2 150k 50k",
      "a.qcow2",
    ],
    { cwd },
  );
  await Deno.writeFile(`${cwd}/small.raw`, new Uint8Array(700).fill(3));
}

besideQemu("dd behaves as qemu-img does", {
  prepare,
  async inspect(call, { ours, theirs }) {
    const name = /of=(\S+)/.exec(call)![1];
    const format = call.includes("-O qcow2") ? "qcow2" : "raw";
    await runOk([
      ...["qemu-img", "compare", "-s", "-f", format, "-F", format],
      ...[`${ours}/${name}`, `${theirs}/${name}`],
    ]);
    if (format === "raw") {
      const [actual, expected] = [ours, theirs]
        .map((folder) => Deno.statSync(`${folder}/${name}`).size);
      assertEquals(actual, expected);
    }
  },
  calls: [
    "dd if=a.qcow2 of=b",
    "dd of=b if=a.qcow2 -O qcow2",
    "dd -f qcow2 -O raw bs=4k if=a.qcow2 of=b",
    "dd if=a.qcow2 of=b bs=1M",
    "dd if=a.qcow2 of=b bs=1000",
    "dd if=a.qcow2 of=b bs=1000 count=3",
    "dd if=a.qcow2 of=b bs=64k count=2 skip=1 -O qcow2",
    "dd if=a.qcow2 of=b bs=0x400 skip=7",
    "dd if=a.qcow2 of=b bs=1k count=3 skip=5",
    "dd if=a.qcow2 of=b bs=1k count=5 skip=5",
    "dd if=a.qcow2 of=b skip=5000",
    "dd if=a.qcow2 of=b skip=7E",
    "dd if=a.qcow2 of=b count=7E",
    "dd if=a.qcow2 of=b count=0",
    "dd if=small.raw of=b -f raw",
    "dd -U if=a.qcow2 of=b",
    "dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=b",
    // Invalid calls.
    "dd",
    "dd if=a.qcow2",
    "dd of=b",
    "dd if=nothing of=b",
    "dd if=a.qcow2 of=nothing/b",
    "dd if=a.qcow2 of=nothing:b",
    "dd if=a.qcow2 of=b -O nothing",
    "dd if=a.qcow2 of=b -O null-co",
    "dd if=a.qcow2 of=b seek=1",
    "dd if=a.qcow2 of=b sync",
    "dd bs=0 if=a.qcow2 of=b",
    "dd bs=2G if=a.qcow2 of=b",
    "dd bs=x if=a.qcow2 of=b",
    "dd count=x if=a.qcow2 of=b",
    "dd skip=-1 if=a.qcow2 of=b",
    "dd -f raw --image-opts if=a.qcow2 of=b",
    "dd -Z",
    "dd -f",
  ],
});

Deno.test("dd leaves no incomplete target", async () => {
  await using dir = new TempDir();
  await Deno.writeFile(dir.file("a"), new Uint8Array(100_000).fill(1));
  const failing = {
    driver: "raw",
    file: {
      driver: "blkdebug",
      image: { driver: "file", filename: dir.file("a") },
      "inject-error": [{ event: "none", iotype: "read", sector: 100 }],
    },
  };
  const { code, stderr } = await run([
    ...BDRV,
    ...["qemu-img", "dd", `if=json:${JSON.stringify(failing)}`],
    `of=${dir.file("b")}`,
  ]);
  assertEquals(code, 1);
  assertEquals(
    stderr,
    "qemu-img: error while reading from input image file: Input/output error\n",
  );
  assertEquals([...Deno.readDirSync(dir.path)].map(({ name }) => name), ["a"]);
});
