/** Images exchanged with QEMU in both directions. @module */
import { assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../../qemu.ts";

const SUBFORMATS = [
  "monolithicSparse",
  "monolithicFlat",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
  "streamOptimized",
];

/** Disks by creation options: their size, and the writes to them. */
const DISKS: { readonly [name: string]: readonly string[] } = {
  empty: ["3M"],
  sparse: ["20M", "write -P 1 100 5000", "write -P 2 19M 1M"],
  full: ["2M", "write -P 3 0 2M"],
  odd: ["1049088", "write -P 4 1M 512", "write -P 5 65000 1000"],
  // Across the borders of extents, and of 32-bit offsets.
  large: [
    "4296M",
    "write -P 6 2147483136 1k",
    "write -P 7 4294966784 1k",
    "write -P 8 4500M 4k",
  ].map((part) => part.replace("4500M", "4295M")),
};

for (const [name, [size, ...writes]] of Object.entries(DISKS)) {
  qemuTest(`QEMU and we read each other's disks: ${name}`, async () => {
    await using folder = new TempDir();
    const cwd = { cwd: folder.path };
    const sh = (line: string) =>
      runOk(["bash", "-ec", line.replaceAll("bdrv", BDRV.join(" "))], cwd);
    await sh(`truncate -s ${size} raw`);
    for (const write of writes) await sh(`qemu-io -f raw -c '${write}' raw`);
    for (const subformat of SUBFORMATS) {
      const options = `-f raw -O vmdk -o subformat=${subformat}`;
      await sh(`qemu-img convert ${options} raw theirs.vmdk
        bdrv compare -f raw -F vmdk raw theirs.vmdk
        bdrv check theirs.vmdk
        bdrv convert ${options} raw ours.vmdk
        qemu-img compare -f raw -F vmdk raw ours.vmdk
        qemu-img check ours.vmdk`);
      const verbs = ["info", "info --output=json", "map --output=json"];
      for (const verb of name === "sparse" ? verbs : verbs.slice(2)) {
        const [theirs, ours] = [
          await sh(`qemu-img ${verb} ours.vmdk`),
          await sh(`bdrv ${verb} ours.vmdk`),
        ];
        assertEquals(ours, theirs, `${verb}: ${subformat}`);
      }
      await sh("rm -f ours* theirs*");
    }
  });
}

qemuTest("QEMU and we write to the same image in turn", async () => {
  await using folder = new TempDir();
  const cwd = { cwd: folder.path };
  const sh = (line: string) =>
    runOk(["bash", "-ec", line.replaceAll("bdrv", BDRV.join(" "))], cwd);
  for (
    const options of [
      "subformat=monolithicSparse",
      "subformat=twoGbMaxExtentSparse,zeroed_grain=on",
    ]
  ) {
    await sh(`truncate -s 70M raw
      bdrv create -q -f vmdk -o ${options} a.vmdk 70M`);
    const writes = [
      "write -P 1 0 100k",
      "write -P 2 40M 1k",
      "write -P 3 90k 70k",
      "write -z 64k 128k",
      "write -P 4 69M 1M",
      "write -P 5 80k 3k",
    ];
    for (const [i, write] of writes.entries()) {
      const tool = i % 2 === 0 ? "qemu-io" : "bdrv io";
      await sh(`${tool} -f vmdk -c '${write}' a.vmdk
        qemu-io -f raw -c '${write}' raw
        qemu-img check a.vmdk
        qemu-img compare -f raw -F vmdk raw a.vmdk`);
    }
    await sh("bdrv compare -f raw -F vmdk raw a.vmdk");
    await sh("rm a* raw");
  }
}, ["qemu-img", "qemu-io"]);

qemuTest("QEMU and we read each other's linked clones", async () => {
  await using folder = new TempDir();
  const cwd = { cwd: folder.path };
  const sh = (line: string) =>
    runOk(["bash", "-ec", line.replaceAll("bdrv", BDRV.join(" "))], cwd);
  await sh(`qemu-img create -q -f vmdk base.vmdk 5M
    qemu-io -c 'write -P 1 100k 1M' base.vmdk
    qemu-img create -q -f vmdk -b base.vmdk -F vmdk theirs.vmdk
    bdrv create -q -f vmdk -b base.vmdk -F vmdk ours.vmdk`);
  for (const image of ["theirs.vmdk", "ours.vmdk"]) {
    await sh(`qemu-io -c 'write -P 2 70k 60k' ${image}
      bdrv io -c 'write -P 3 3M 5k' ${image}
      qemu-img convert -O raw ${image} one
      bdrv convert -O raw ${image} other
      cmp one other`);
    const [theirs, ours] = [
      await sh(`qemu-img info --backing-chain ${image}`),
      await sh(`bdrv info --backing-chain ${image}`),
    ];
    assertEquals(ours, theirs);
  }
  // Now neither program reads the clones any more.
  await sh("bdrv io -c 'write 0 1k' base.vmdk");
  for (const tool of ["qemu-img", BDRV.join(" ")]) {
    const line = `${tool} convert -O raw ours.vmdk one`;
    assertEquals((await run(["bash", "-c", line], cwd)).code, 1);
  }
}, ["qemu-img", "qemu-io"]);

qemuTest("we refuse what QEMU refuses, in its words", async () => {
  await using folder = new TempDir();
  const cwd = { cwd: folder.path, env: { BDRV_QEMU_VERSION: "7.2" } };
  const both = async (call: string) => {
    const theirs = await run(["bash", "-c", call], cwd);
    const words = `${BDRV.join(" ")} $1`;
    const ours = await run(
      ["bash", "-c", call.replace(/^(qemu-\w+)/, words)],
      cwd,
    );
    assertEquals(
      [ours.code, ours.stdout, ours.stderr],
      [theirs.code, theirs.stdout, theirs.stderr],
      call,
    );
  };
  const create = "qemu-img create -f vmdk";
  await runOk(["bash", "-c", `${create} a.vmdk 1M`], cwd);
  await runOk(["bash", "-c", "qemu-img create -f qcow2 q 1M"], cwd);
  for (
    const call of [
      `${create} -o subformat=custom x 1M`,
      `${create} -o adapter_type=scsi x 1M`,
      `${create} -o compat6=on,hwversion=9 x 1M`,
      `${create} -o subformat=monolithicFlat,zeroed_grain=on x 1M`,
      `${create} -o subformat=twoGbMaxExtentFlat -b a.vmdk -F vmdk x`,
      `${create} -b q -F qcow2 x`,
      `${create} -b q -F vmdk x`,
      `${create} -b gone -F vmdk x`,
      `${create} -u -b gone -F vmdk x 1M`,
      `${create} -o nothing=1 x 1M`,
      "qemu-img resize a.vmdk 2M",
      "qemu-img rebase -u -b q a.vmdk",
      "qemu-img amend -o compat6=on a.vmdk",
      "qemu-img measure -O vmdk a.vmdk",
      "qemu-img check -r all a.vmdk",
      "qemu-img convert -l x -O raw a.vmdk y",
      "qemu-img convert -O vmdk -o preallocation=metadata a.vmdk y",
      "qemu-img commit a.vmdk",
    ]
  ) await both(call);
}, ["qemu-img"]);
