/**
 * Nothing changes unasked: commands that fail or write nothing leave alone an
 * image that has bitmaps, an unknown feature, and a longer backing file.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** Commands that fail, or have nothing to do; tildes stand for blanks. */
const CALLS = [
  "qemu-io -c length X",
  "qemu-io -c flush -c read~0~1k X",
  "qemu-io -c write~2M~1k X",
  "qemu-io -c discard~1k~1k X",
  "qemu-io -c write~-c~0~64k X",
  "qemu-io -c truncate~5 X",
  "qemu-io -c write~-s~nothing~0~1k X",
  "qemu-img resize X 512k",
  "qemu-img resize X 1M",
  "qemu-img resize --preallocation=full --shrink X 512k",
  "qemu-img amend -o foo=1 X",
  "qemu-img amend -o compat=0.9 X",
  "qemu-img amend -o refcount_bits=3 X",
  "qemu-img snapshot -d none X",
  "qemu-img snapshot -a none X",
  "qemu-img rebase -b none -F qcow2 X",
  "qemu-img rebase -u -b none -F foo X",
  "qemu-img commit -b none X",
  "qemu-img check -r foo X",
  "qemu-img create -f qcow2 -o cluster_size=1000 X 1M",
  "qemu-img create -f qcow2 -o compat=0.10,lazy_refcounts=on X 1M",
  "qemu-img create -f qcow2 -b none -F raw X",
  "qemu-img create -f qcow2 X",
  "qemu-img create -f raw X 8E",
  "qemu-img create -f raw -o preallocation=full X 7E",
  "qemu-img create -f vpc -o subformat=fixed X 3T",
  "qemu-img convert -O qcow2 none X",
  "qemu-img convert -O qcow2 -o refcount_bits=3 base X",
  "qemu-img convert -O qcow2 -B none -F raw base X",
  "qemu-img convert -O qcow2 -o backing_file=base,backing_fmt=vdi base X",
  "qemu-img convert -O qcow2 -B X -F qcow2 base X",
  "qemu-img convert -O raw -c base X",
  "qemu-img convert -O raw --bitmaps base X",
  "qemu-img convert -n -O qcow2 -l none base X",
  "qemu-img dd if=none of=X",
];

async function makeImages(
  cwd: string,
  hasUnknown = true,
): Promise<Uint8Array> {
  const commands = [
    "qemu-img create -q -f qcow2 base 2M",
    "qemu-img create -q -f qcow2 -b base -F qcow2 X 1M",
    "qemu-img bitmap --add X one",
    "qemu-img bitmap --add X two",
  ];
  for (const command of commands) await runOk(command.split(" "), { cwd });
  await runOk(["qemu-io", "-c", "write 0 64k", "X"], { cwd });
  const bytes = await Deno.readFile(`${cwd}/X`);
  if (hasUnknown) bytes[88] |= 0x80; // An autoclear feature.
  await Deno.writeFile(`${cwd}/X`, bytes);
  return bytes;
}

const NEEDED = ["qemu-img", "qemu-io"];

qemuTest(
  "commands that fail or write nothing leave an image as it was",
  async (t) => {
    await using dir = new TempDir();
    const cwd = dir.path;
    // One image has its bitmaps marked as in use, the other does not.
    for (const hasUnknown of [true, false]) {
      const bytes = await makeImages(cwd, hasUnknown);
      for (const call of CALLS) {
        await t.step(call, async () => {
          const words = call.split(" ").map((word) =>
            word.replaceAll("~", " ")
          );
          const { stderr } = await run([...BDRV, ...words], { cwd });
          assertEquals(await Deno.readFile(`${cwd}/X`), bytes, stderr);
        });
      }
    }
  },
  NEEDED,
);

/** The file's autoclear features. */
async function features(path: string): Promise<number> {
  const bytes = await Deno.readFile(path);
  return bytes[95] + bytes[88] * 256;
}

qemuTest(
  "the first change clears unknown autoclear features, but not that of bitmaps",
  async (t) => {
    await using dir = new TempDir();
    const cwd = dir.path;
    const bytes = await makeImages(cwd);
    const changes = [
      "qemu-io -c write~0~1k -c write~700k~1k X", // In place first.
      "qemu-io -c discard~0~64k X",
      "qemu-img resize -q X 3M",
      "qemu-img snapshot -c new X",
      "qemu-img rebase -u -b  X",
      "qemu-img amend -o lazy_refcounts=on X",
      "qemu-img check -q -r leaks X",
      "qemu-img check -q -r all X",
      "qemu-img commit -q X",
      "qemu-img bitmap --clear X two",
    ];
    const damaged = bytes.slice();
    damaged[79] |= 1; // Dirty.
    const runs = changes.map((call) => ({ call, start: bytes }));
    runs.push({ call: "qemu-img check -q -r all X", start: damaged });
    for (const { call, start } of runs) {
      await t.step(call, async () => {
        await Deno.writeFile(`${cwd}/X`, start);
        const words = call.split(" ").map((word) => word.replaceAll("~", " "));
        const { code, stderr } = await run([...BDRV, ...words], { cwd });
        assertEquals({ code, stderr }, { code: 0, stderr: "" });
        assertEquals(await features(`${cwd}/X`), 1);
        // QEMU loads the bitmaps of an image that it opens.
        const info = JSON.parse(
          await runOk(["qemu-img", "info", "--output=json", "X"], { cwd }),
        );
        assertEquals(info["format-specific"].data.bitmaps, [
          { flags: ["auto"], name: "one", granularity: 65536 },
          { flags: ["auto"], name: "two", granularity: 65536 },
        ]);
        await runOk(["qemu-img", "check", "-q", "X"], { cwd });
      });
    }
  },
  NEEDED,
);
