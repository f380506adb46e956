/**
 * VHD and VHDX images go both ways between QEMU and here: each subformat with
 * each kind of content.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

/** Disks by name: their size, and where there is data. */
const DISKS: readonly [
  name: string,
  size: number,
  data: readonly (readonly [offset: number, length: number])[],
][] = [
  ["empty", 8 * MIB, []],
  ["sparse", 40 * MIB, [[0, 512], [3 * MIB - 700, 1500], [39 * MIB, MIB]]],
  ["full", 9 * MIB, [[0, 9 * MIB]]],
  ["odd size", 5 * MIB + 512, [[100, 70_000], [5 * MIB, 512]]],
  ["past 4 GiB", 4098 * MIB, [[0, 10], [4096 * MIB - 9, 5000], [
    4098 * MIB - 512,
    512,
  ]]],
];

const SUBFORMATS: readonly [format: string, options: string][] = [
  ["vpc", "subformat=dynamic"],
  ["vpc", "subformat=dynamic,force_size=on"],
  ["vpc", "subformat=fixed"],
  ["vpc", "subformat=fixed,force_size=on"],
  ["vhdx", "subformat=dynamic"],
  ["vhdx", "subformat=dynamic,block_size=1M"],
  ["vhdx", "subformat=dynamic,block_state_zero=off"],
  ["vhdx", "subformat=fixed,log_size=2M"],
  ["vhdx", "subformat=fixed,block_state_zero=off"],
];

for (const [name, size, data] of DISKS) {
  qemuTest(`VHD and VHDX go both ways: ${name}`, async () => {
    await using folder = new TempDir();
    const options = { cwd: folder.path };
    const sh = (command: string) => runOk(["bash", "-c", command], options);
    const bdrv = BDRV.map((word) => `'${word}'`).join(" ");
    await Deno.writeFile(folder.file("raw"), new Uint8Array(0));
    await Deno.truncate(folder.file("raw"), size);
    {
      using file = await Deno.open(folder.file("raw"), { write: true });
      for (const [offset, length] of data) {
        await file.seek(offset, Deno.SeekMode.Start);
        await file.write(new Uint8Array(length).map((_, i) => i % 251 + 1));
      }
    }
    for (const [format, how] of SUBFORMATS) {
      if (size > 100 * MIB && how !== "subformat=dynamic") continue;
      const compare = `compare -f raw -F ${format} raw`;
      await sh(`qemu-img convert -f raw -O ${format} -o ${how} raw theirs`);
      const same = await sh(`${bdrv} ${compare} theirs`);
      assert(same.includes("identical"), same);
      await sh(`${bdrv} convert -f raw -O ${format} -o ${how} raw ours`);
      const back = await sh(`qemu-img ${compare} ours`);
      assert(back.includes("identical"), back);
      const change = `io -f ${format} -c 'write -P 7 1M 3k' -c 'read 0 1M'`;
      for (const file of ["ours", "theirs"]) {
        await sh(`${bdrv} ${change} ${file}`);
        await sh(`qemu-io -f ${format} -c 'read -P 7 1M 3k' ${file}`);
        const { size: bytes } = await Deno.stat(folder.file(file));
        await sh(`qemu-${change} ${file}`);
        await sh(`${bdrv} io -f ${format} -c 'read -P 7 1M 3k' ${file}`);
        assertEquals((await Deno.stat(folder.file(file))).size, bytes);
        if (format !== "vhdx") continue;
        const check = await run(["qemu-img", "check", folder.file(file)]);
        assertEquals([check.code, check.stderr], [0, ""]);
        assert((await sh(`${bdrv} check ${file}`)).includes("No errors"));
      }
      await sh(`qemu-img compare -f ${format} -F ${format} ours theirs`);
    }
  }, ["qemu-img", "qemu-io"]);
}
