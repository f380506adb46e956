/** Damaged images, and what QEMU's tools say about them. */
import { assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const OURS = [...BDRV, "qemu-img"];
const TOOLS = ["qemu-img", "qemu-io"];

/** Where the header stores the size and the offset of the L1 table. */
const L1_SIZE = 36;
const L1_OFFSET = 40;

/** Change a big-endian number of a file. */
async function patch(
  image: string,
  offset: number,
  change: (view: DataView) => void,
): Promise<void> {
  const bytes = await Deno.readFile(image);
  change(new DataView(bytes.buffer, offset));
  await Deno.writeFile(image, bytes);
}

function offsetAt(bytes: Uint8Array, at: number): number {
  const view = new DataView(bytes.buffer, at);
  return view.getUint32(0) % 2 ** 24 * 2 ** 32 + view.getUint32(4);
}

/** Make a compressed cluster of an image undecodable. */
async function damageCluster(image: string, cluster: number): Promise<void> {
  const bytes = await Deno.readFile(image);
  const clusterBits = new DataView(bytes.buffer).getUint32(20);
  const entries = 2 ** clusterBits / 8;
  const l1 = offsetAt(bytes, L1_OFFSET);
  const l2 = offsetAt(bytes, l1 + 8 * Math.floor(cluster / entries));
  const at = l2 + 8 * (cluster % entries);
  const offset = offsetAt(bytes, at) % 2 ** (62 - (clusterBits - 8));
  bytes.fill(0xff, offset, offset + 32);
  await Deno.writeFile(image, bytes);
}

async function assertSameOutput(
  args: readonly string[],
  cwd: string,
): Promise<void> {
  const theirs = await run(["qemu-img", ...args], { cwd });
  const ours = await run([...OURS, ...args], { cwd });
  assertEquals(ours, theirs);
}

qemuTest(
  "check counts the errors of an L1 table that is far too large",
  async () => {
    await using dir = new TempDir();
    const image = dir.file("large.qcow2");
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"]);
    await runOk(["qemu-io", "-c", "write -P 0xcd 0 320k", image]);
    for (const entries of [36_000, 4_194_304]) {
      await patch(image, L1_SIZE, (view) => view.setUint32(0, entries));
      await assertSameOutput(["check", image], dir.path);
    }
  },
  TOOLS,
);

qemuTest(
  "repairing an L1 table that is far too large keeps what can be read",
  async () => {
    await using dir = new TempDir();
    const { path: cwd } = dir;
    const create = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"];
    for (const entries of [1 << 12, 1 << 16, 1 << 22]) {
      await runOk(["qemu-img", ...create, "a.qcow2", "8M"], { cwd });
      await runOk(["qemu-io", "-c", "write -P 0xcd 0 320k", "a.qcow2"], {
        cwd,
      });
      await patch(dir.file("a.qcow2"), L1_SIZE, (view) => {
        view.setUint32(0, entries);
      });
      await Deno.copyFile(dir.file("a.qcow2"), dir.file("before.qcow2"));
      const repair = ["check", "-r", "all", "a.qcow2"];
      const theirs = await run(["qemu-img", ...repair], { cwd });
      await Deno.copyFile(dir.file("before.qcow2"), dir.file("a.qcow2"));
      assertEquals(await run([...OURS, ...repair], { cwd }), theirs);
      // QEMU frees the table, which extends past the end of the file, thereby
      // loses all data, and then gives up.
      await runOk(["qemu-io", "-r", "-c", "read -P 0xcd 0 320k", "a.qcow2"], {
        cwd,
      });
    }
  },
  TOOLS,
);

qemuTest("read errors name the compressed cluster", async () => {
  await using dir = new TempDir();
  const { path: cwd } = dir;
  const raw = new Uint8Array(8 * 2 ** 20);
  for (let i = 0; i < raw.length; i++) raw[i] = (i * i) >> 9;
  await Deno.writeFile(dir.file("a.raw"), raw);
  for (const size of ["512", "64k"]) {
    for (const cluster of [3, 100]) {
      const make = [
        "convert",
        "-c",
        "-O",
        "qcow2",
        "-o",
        `cluster_size=${size}`,
      ];
      await runOk(["qemu-img", ...make, "a.raw", "a.qcow2"], { cwd });
      await damageCluster(dir.file("a.qcow2"), cluster);
      await assertSameOutput(["convert", "-O", "raw", "a.qcow2", "o.raw"], cwd);
      await assertSameOutput(
        ["compare", "-f", "raw", "-F", "qcow2", "a.raw", "a.qcow2"],
        cwd,
      );
    }
  }
}, TOOLS);

qemuTest(
  "convert --salvage reports each sector below a bad L1 entry",
  async () => {
    await using dir = new TempDir();
    const { path: cwd } = dir;
    const create = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"];
    await runOk(["qemu-img", ...create, "a.qcow2", "6M"], { cwd });
    await runOk(["qemu-io", "-c", "write -P 7 0 6M", "a.qcow2"], { cwd });
    const l1 = offsetAt(await Deno.readFile(dir.file("a.qcow2")), L1_OFFSET);
    await patch(dir.file("a.qcow2"), l1 + 8, (view) => {
      view.setUint32(4, view.getUint32(4) | 0x200);
    });
    const salvage = async (program: readonly string[], to: string) => {
      const args = ["convert", "--salvage", "-O", "raw", "a.qcow2", to];
      const { code, stderr } = await run([...program, ...args], { cwd });
      return { code, lines: stderr.split("\n").sort() };
    };
    assertEquals(
      await salvage(OURS, "o.raw"),
      await salvage(["qemu-img"], "t.raw"),
    );
    await runOk(["cmp", "o.raw", "t.raw"], { cwd });
  },
  TOOLS,
);

qemuTest(
  "what does not need a table that is not aligned goes on without it",
  async () => {
    await using dir = new TempDir();
    const { path: cwd } = dir;
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "4M"], {
      cwd,
    });
    await runOk(["qemu-io", "-c", "write 0 64k", "a.qcow2"], { cwd });
    const l1 = offsetAt(await Deno.readFile(dir.file("a.qcow2")), L1_OFFSET);
    await patch(dir.file("a.qcow2"), l1, (view) => {
      view.setUint32(4, view.getUint32(4) | 0x200);
    });
    const damaged = await Deno.readFile(dir.file("a.qcow2"));
    await assertSameOutput(["measure", "-O", "qcow2", "a.qcow2"], cwd);
    const grow = ["resize", "a.qcow2", "5M"];
    const theirs = await run(["qemu-img", ...grow], { cwd });
    const grown = await Deno.readFile(dir.file("a.qcow2"));
    await Deno.writeFile(dir.file("a.qcow2"), damaged);
    assertEquals(await run([...OURS, ...grow], { cwd }), theirs);
    assertEquals(
      (await Deno.readFile(dir.file("a.qcow2"))).subarray(0, 80),
      grown.subarray(0, 80),
    );
  },
  TOOLS,
);
