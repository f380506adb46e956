/**
 * Images of formats that either QEMU or we lack, and how QEMU treats them.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { openImage } from "../../mod.ts";
import { fileOf, HEADERS, RAW_DISKS } from "../core/headers.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

qemuTest("a fixed VHD is raw, with a warning", async () => {
  await using folder = new TempDir();
  const file = folder.file("disk.vhd");
  const options = ["-f", "vpc", "-o", "subformat=fixed,force_size=on"];
  await runOk(["qemu-img", "create", "-q", ...options, file, "1M"]);
  const warnings: string[] = [];
  await using image = await openImage(file, {
    readOnly: true,
    warn: (message) => warnings.push(message),
  });
  assertEquals([image.format, image.size], ["raw", 1024 * 1024 + 512]);
  assert(warnings[0].includes("VHD"), warnings[0]);
});

qemuTest("no command takes a broken image for a disk", async () => {
  await using folder = new TempDir();
  const cwd = { cwd: folder.path };
  const sh = (line: string) => runOk(["bash", "-c", line], cwd);
  const asif = fileOf([[0, "shdw\0\0\0\x01\0\0\x02\0"]], 4 * 1024 * 1024);
  await Deno.writeFile(folder.file("x.asif"), asif);
  await Deno.writeFile(folder.file("before"), asif);
  await sh("qemu-img create -q -f raw disk 4M");
  await sh("qemu-img create -q -f qcow2 -b disk -F raw top");
  // An image that does not record its backing file's format.
  await sh("qemu-img create -q -f qcow2 -o compat=0.10 over 4M");
  const over = await Deno.readFile(folder.file("over"));
  const view = new DataView(over.buffer);
  view.setUint32(12, 1000);
  view.setUint32(16, 6);
  over.set(new TextEncoder().encode("x.asif"), 1000);
  await Deno.writeFile(folder.file("over"), over);
  const calls = [
    "convert -O raw x.asif out",
    "convert -O raw disk x.asif out",
    "convert -O raw - out < x.asif",
    "convert -O raw over out",
    "dd if=x.asif of=out",
    "map over",
    "resize x.asif +1M",
    "create -f qcow2 -b x.asif out",
    "rebase -b x.asif top",
    "map --image-opts file.filename=x.asif",
    "io -c 'write 0 512' x.asif",
    "qemu-img convert -O raw x.asif out",
  ];
  for (const call of calls) {
    const bdrv = BDRV.map((word) => `'${word}'`).join(" ");
    const { code, stdout, stderr } = await run(
      ["bash", "-c", `${bdrv} ${call}`],
      cwd,
    );
    assert(code !== 0, call);
    assert(
      /ASIF|'asif'|format of asif|is read-only/.test(stdout + stderr),
      `${call}: ${stderr}`,
    );
    assert(!stderr.includes("    at "), stderr);
    await assertRejects(() => Deno.stat(folder.file("out")), call);
  }
  await sh("cmp x.asif before");
  const { code, stderr } = await run([...BDRV, "info", "x.asif"], cwd);
  assertEquals([code, stderr], [
    1,
    "bdrv: Could not open 'x.asif': Invalid ASIF sector size 0\n",
  ]);
});

qemuTest(
  "probing finds the same as QEMU's, and refuses the same writes",
  async () => {
    await using folder = new TempDir();
    const [file, disk] = [folder.file("head"), folder.file("disk")];
    await Deno.writeFile(disk, new Uint8Array(65536));
    for (const [format, ...pieces] of [...HEADERS, ...RAW_DISKS]) {
      const bytes = fileOf(pieces, 65536);
      await Deno.writeFile(file, bytes);
      const info = await run(["qemu-img", "info", "--output=json", file]);
      const found = info.code === 0
        ? JSON.parse(info.stdout).format
        : undefined;
      const isRaw = await openImage(file, { purpose: "info" }).then(
        async (image) => {
          await using _ = image;
          if (found !== undefined && found !== "raw") {
            assertEquals(image.format, found);
          }
          return image.format === "raw";
        },
        () => false, // The format's driver misses the rest of the image.
      );
      const write = `write -s ${file} 0 512`;
      const { stdout } = await run(["qemu-io", "-c", write, disk]);
      const isRefused = stdout.includes("Operation not permitted");
      assert(
        !(isRaw && (isRefused || info.code !== 0)),
        `${format}: ${stdout}`,
      );
      await Deno.writeFile(disk, new Uint8Array(65536));
      await using image = await openImage(disk);
      const ours = await image.write(0, bytes.subarray(0, 512)).then(
        () => false,
        ({ code }) => code === "EPERM",
      );
      assert(ours || !isRefused, `${format} is refused by QEMU`);
    }
  },
  ["qemu-img", "qemu-io"],
);
