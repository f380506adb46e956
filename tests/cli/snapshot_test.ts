/** `snapshot` and `convert -l`, compared with qemu-img's. @module */
import { assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** Calls, in order, on an image in each of two folders. */
const CALLS = [
  "snapshot -l disk.qcow2",
  "snapshot -c one disk.qcow2",
  "write 1 0 1M",
  "snapshot -c two disk.qcow2",
  "snapshot -c one disk.qcow2",
  "write 2 512k 2M",
  "snapshot -q -c three disk.qcow2",
  "convert -l two -O raw disk.qcow2 two.raw",
  "convert -l 1 -O raw disk.qcow2 one.raw",
  "convert -l snapshot.id=3,snapshot.name=one -O qcow2 disk.qcow2 o.qcow2",
  "convert -l snapshot.id=3,snapshot.name=two -O raw disk.qcow2 none.raw",
  "convert -l nothing -O raw disk.qcow2 none.raw",
  "convert -l one -O raw disk.qcow2 disk.qcow2 none.raw",
  "snapshot -l -c two disk.qcow2",
  "snapshot -a nothing disk.qcow2",
  "snapshot -d nothing disk.qcow2",
  "snapshot -d 2 disk.qcow2",
  "snapshot -a two disk.qcow2",
  "snapshot -d two disk.qcow2",
  "snapshot -d one disk.qcow2",
  "snapshot disk.qcow2",
  "snapshot",
  "check disk.qcow2",
];

qemuTest("snapshot does what qemu-img's does", async () => {
  await using ours = new TempDir();
  await using theirs = new TempDir();
  const tools = [
    { command: [...BDRV, "qemu-img"], cwd: ours.path },
    { command: ["qemu-img"], cwd: theirs.path },
  ];
  const create = ["qemu-img", "create", "-q", "-f", "qcow2"];
  for (const { cwd } of tools) {
    await runOk([...create, "disk.qcow2", "4M"], { cwd });
  }
  for (const call of CALLS) {
    const words = call.split(" ");
    const outcomes = [];
    for (const { command, cwd } of tools) {
      const [, pattern, offset, length] = words;
      const write = `write -q -P ${pattern} ${offset} ${length}`;
      outcomes.push(
        await run(
          words[0] === "write"
            ? ["qemu-io", "-c", write, "disk.qcow2"]
            : [...command, ...words],
          { cwd },
        ),
      );
    }
    assertEquals(outcomes[0], outcomes[1], call);
    const disks = tools.map(({ cwd }) => `${cwd}/disk.qcow2`);
    await runOk(["qemu-img", "compare", "-q", ...disks]);
  }
  for (const name of ["one.raw", "two.raw", "o.qcow2"]) {
    await runOk([
      "qemu-img",
      "compare",
      "-q",
      ours.file(name),
      theirs.file(name),
    ]);
  }
  const list = ["snapshot", "-l", "disk.qcow2"];
  const [own, qemu] = await Promise.all(
    tools.map(({ command, cwd }) => runOk([...command, ...list], { cwd })),
  );
  assertEquals(
    own.replace(/\d\d:\d\d:\d\d /g, ""),
    qemu.replace(/\d\d:\d\d:\d\d /g, ""),
  );
}, ["qemu-img", "qemu-io"]);

qemuTest(
  "snapshots of an empty disk take no cluster for its table",
  async () => {
    await using dir = new TempDir();
    const path = dir.file("empty.qcow2");
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", path, "0"]);
    const snapshot = [...BDRV, "qemu-img", "snapshot"];
    const check = () => runOk(["qemu-img", "check", path]);
    for (const name of ["one", "two"]) {
      await runOk([...snapshot, "-c", name, path]);
      await check();
    }
    await runOk(["qemu-img", "resize", "-q", path, "1M"]);
    await runOk(["qemu-io", "-c", "write 0 1M", path]);
    await runOk([...snapshot, "-a", "one", path]);
    await check();
    await runOk([...snapshot, "-d", "one", path]);
    await check();
  },
  ["qemu-img", "qemu-io"],
);

qemuTest(
  "a snapshot that would overflow a refcount is refused in qemu-img's words",
  async () => {
    await using dir = new TempDir();
    const path = dir.file("narrow.qcow2");
    const options = ["-o", "refcount_bits=2", path, "1M"];
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", ...options]);
    await runOk(["qemu-io", "-c", "write 0 1M", path]);
    for (const name of ["one", "two"]) {
      await runOk(["qemu-img", "snapshot", "-c", name, path]);
    }
    const copy = dir.file("copy.qcow2");
    for (const call of ["-c three", "-a one"]) {
      await Deno.copyFile(path, copy);
      const words = ["snapshot", ...call.split(" "), copy];
      const own = await run([...BDRV, "qemu-img", ...words]);
      await runOk(["qemu-img", "compare", "-q", path, copy]);
      assertEquals(own, await run(["qemu-img", ...words]), call);
    }
  },
  ["qemu-img", "qemu-io"],
);
