/**
 * Options of new images: those of files, how flags are spelled, and data files
 * that are there already.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { BDRV, FFI, isBeyond, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** Calls of `create`, `measure` and `convert`, without the tool. */
const CALLS = [
  "create -f qcow2 -o nocow=on X 1M",
  "create -f qcow2 -o nocow=yes,extent_size_hint=64k X 1M",
  "create -f raw -o nocow=off,extent_size_hint=0 X 1M",
  "create -f raw -o preallocation=falloc,nocow=n X 1M",
  "create -f raw -o preallocation=foo X 1M",
  "create -f raw -o preallocation=metadata X 1M",
  "create -f qcow2 -o extent_size_hint=4G X 1M",
  "create -f qcow2 -o extent_size_hint=foo X 1M",
  "create -f qcow2 -o data_file=D,nocow=on,extent_size_hint=2M X 1M",
  "create -f qcow2 -o nocow=on nbd:unix:/none 1M",
  "create -f vmdk -o nocow=on,preallocation=full X 1M",
  "create -f vdi -o extent_size_hint=1M X 1M",
  "create -f file -o nocow=on X 1M",
  ...["on", "off", "yes", "no", "y", "n", "true", "false", "ON", "1", ""].map(
    (value) => `create -f qcow2 -o extended_l2=${value} X 1M`,
  ),
  "create -f qcow2 -o extended_l2 X 1M",
  "create -f qcow2 -o noextended_l2 X 1M",
  "create -f qcow2 -o lazy_refcounts=yes,lazy_refcounts=no X 1M",
  // Which of two mistakes is told.
  ...[
    "preallocation=metadata,backing_file=S,backing_fmt=raw,data_file=D,data_file_raw=on",
    "compat=v2,lazy_refcounts=on,refcount_bits=8",
    "compat=v2,extended_l2=on,cluster_size=1000",
    "compat=v2,compression_type=zstd,data_file=D",
    "cluster_size=1000,backing_fmt=foo,backing_file=S",
    "data_file_raw=on,cluster_size=1000",
  ].map((options) => `create -f qcow2 -u -o ${options} X 1M`),
  "create -f qcow2 -u -b S -F foo X 1M",
  "create -f qcow2 -u -b S -F qed X 1M",
  "create -f qcow2 -b S -F file X",
  "create -f qcow2 -b S -F host_device X",
  "rebase -u -b S -F nothing S",
  "convert -f file -O qcow2 S X",
  "convert -O qcow2 -o backing_fmt=foo S X",
  "create -f qcow2 -o help X",
  "create -f raw -o help",
  "create -f raw -o help X",
  ...["vdi", "vmdk", "vhdx", "vpc", "qcow", "qed", "parallels"].map(
    (format) => `create -f ${format} -o help`,
  ),
  ...["qcow", "qed", "parallels"].flatMap((format) => [
    `create -f ${format} -o help X`,
    `create -f ${format} -o preallocation=metadata X 1M`,
    `create -f ${format} -o preallocation=foo X 1M`,
    `create -f ${format} -o preallocation=full X 1M`,
  ]),
  "create -f raw -o help nbd:unix:/none",
  "measure -O qcow2 -o nocow=on,extended_l2=y --size 1M",
  "measure -O raw -o extent_size_hint=1M,preallocation=full --size 1M",
  "measure -O raw -o foo=on --size 1M",
  "convert -O qcow2 -o nocow=on,extended_l2=y S X",
  "convert -O raw -o nocow=yes S X",
];

qemuTest("options of files and flags are qemu-img's", async (t) => {
  await using dir = new TempDir();
  const cwd = dir.path;
  await Deno.writeFile(dir.file("S"), new Uint8Array(100_000).fill(7));
  const env = { BDRV_QEMU_VERSION: "7.2" };
  for (const call of CALLS) {
    if (isBeyond(call)) continue;
    await t.step(call, async () => {
      const results = [];
      for (const tool of [["qemu-img"], [...BDRV, "qemu-img"]]) {
        const { code, stdout, stderr } = await run(
          [...tool, ...call.split(" ")],
          { cwd, env },
        );
        // A later option, which 7.2 does not list.
        const lines = stdout.split("\n").filter((line) =>
          !line.startsWith("  keep_data_file=")
        );
        results.push({ code, lines, stderr });
        for (const name of ["X", "D"]) {
          await Deno.remove(dir.file(name)).catch(() => {});
        }
      }
      assertEquals(results[1], results[0]);
    });
  }
});

qemuTest("a data file that is kept is not changed", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  const data = new Uint8Array(300_000).fill(7);
  const put = () => Deno.writeFile(dir.file("D"), data);
  const create = (options: string) =>
    run([...BDRV, "create", "-f", "qcow2", "-o", options, "X", "1M"], { cwd });
  const kept = "data_file=D,keep_data_file=on";
  for (
    const more of [
      "data_file_raw=on",
      "preallocation=metadata",
    ]
  ) {
    await put();
    const { code, stderr } = await create(`${kept},${more}`);
    assertEquals({ code, stderr }, { code: 0, stderr: "" });
    const file = await Deno.readFile(dir.file("D"));
    assertEquals([file.length, file.subarray(0, data.length)], [
      1 << 20,
      data,
    ]);
    const read = "read -P 7 0 300000";
    const out = await runOk(["qemu-io", "-r", "-c", read, "X"], { cwd });
    assert(out.startsWith("read 300000/300000"), out);
    await runOk(["qemu-img", "check", "X"], { cwd });
    await Deno.remove(dir.file("X"));
  }
  await Deno.writeTextFile(dir.file("X"), "an older one");
  const refused = {
    "keep_data_file=on": "Must not use 'keep_data_file=on' without 'data_file'",
    [kept]: "'keep_data_file=on' requires 'preallocation=metadata' or " +
      "'data_file_raw=on', or the file contents will not be visible",
    [`${kept},preallocation=full`]:
      "Preallocating more than only metadata would overwrite the external " +
      "data file's content and is therefore incompatible with " +
      "'keep_data_file=on'",
    "data_file=none,keep_data_file=on,data_file_raw=on":
      "Could not open 'none': No such file or directory",
  };
  await put();
  for (const [options, message] of Object.entries(refused)) {
    const { code, stderr } = await create(options);
    assertEquals({ code, stderr }, {
      code: 1,
      stderr: `bdrv: X: ${message}\n`,
    });
    assertEquals(await Deno.readFile(dir.file("D")), data);
    assertEquals(await Deno.readTextFile(dir.file("X")), "an older one");
  }
}, { tools: ["qemu-img"], privileges: FFI });
