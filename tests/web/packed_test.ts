/** Images in archives and compressed files, on the page. @module */
import { assertEquals, assertMatch } from "@std/assert";
import { BDRV, qemuIoIn, qemuTest, runOk, TempDir } from "../qemu.ts";
import { WebPage } from "./browser.ts";

qemuTest("the page opens what is packed, or says what it is", async () => {
  await using folder = new TempDir();
  const { path: cwd } = folder;
  const sh = (...command: string[]) => runOk(command, { cwd });
  await sh("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "4M");
  await qemuIoIn(cwd)("disk.qcow2", "write -P 5 1M 1M");
  await sh(...BDRV, "convert", "-O", "ova", "disk.qcow2", "disk.ova");
  await sh("tar", "cf", "disk.tar", "disk.qcow2");
  await sh("tar", "cf", "twice.tar", "disk.tar");
  await sh("cp", "disk.qcow2", "copy.qcow2");
  await sh("tar", "cf", "both.tar", "disk.qcow2", "copy.qcow2");
  await sh("gzip", "--keep", "disk.qcow2");
  await sh("xz", "--keep", "disk.qcow2");
  await Deno.writeTextFile(folder.file("disk.bz2"), "BZh91AY&SY".padEnd(1024));
  await using web = await WebPage.open(cwd);
  const { page } = web;
  const open = async (name: string) => {
    await page.setInputFiles("#files", folder.file(name));
    return await web.settled();
  };

  for (
    const [name, format, packing] of [
      ["disk.ova", "vmdk", "tar"],
      ["disk.tar", "qcow2", "tar"],
      ["twice.tar", "qcow2", "tar, tar"],
    ]
  ) {
    assertEquals(await open(name), "Drawing: done", name);
    const facts = await web.text("#facts");
    assertMatch(facts, new RegExp(`Format\\s+${format}\\s`), name);
    assertMatch(facts, new RegExp(`Packed in\\s+${packing}\\s+Verdict`), name);
    await web.withoutPicker();
    const copy = folder.file("copy.raw");
    await web.download("raw", copy);
    const disk = folder.file("disk.qcow2");
    await runOk(["qemu-img", "compare", "-F", "raw", disk, copy]);
  }
  const address = `${web.url}images/disk.tar`;
  assertEquals(await web.paste(address), "Drawing: done");

  assertEquals(
    await open("both.tar"),
    "Could not open 'both.tar': Which member holds the image is not clear; " +
      "the archive has 'disk.qcow2', 'copy.qcow2'",
  );
  for (
    const [name, what] of [
      ["disk.qcow2.gz", "gzip"],
      ["disk.qcow2.xz", "xz"],
      ["disk.bz2", "bzip2"],
    ]
  ) {
    assertEquals(
      await open(name),
      `'${name}' is compressed with ${what}, and has to be unpacked first`,
    );
  }
  assertEquals(web.uploads, []);
  assertEquals(web.complaints, []);
}, ["chromium", "qemu-img", "qemu-io", "tar", "gzip", "xz"]);
