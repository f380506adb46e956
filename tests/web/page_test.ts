/** The page, in Chromium. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { createImage, openImage } from "../../mod.ts";
import { qemuIoIn, qemuTest, runOk, TempDir } from "../qemu.ts";
import { WebPage } from "./browser.ts";

const NEEDS = ["chromium", "qemu-img", "qemu-io"];

/** Images: a chain with snapshots and a bitmap, and others. */
async function makeImages({ path: cwd }: TempDir): Promise<void> {
  const sh = (line: string) => runOk(line.split(" "), { cwd });
  const io = qemuIoIn(cwd);
  await sh("qemu-img create -q -f qcow2 base.qcow2 16M");
  await io("base.qcow2", "write -P 1 0 4M");
  await sh("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2");
  await io("disk.qcow2", "write -P 2 2M 2M", "write -z 12M 1M");
  await sh("qemu-img snapshot -c first disk.qcow2");
  await sh("qemu-img bitmap --add disk.qcow2 since");
  await io("disk.qcow2", "write -P 3 2M 1M");
  await sh("qemu-img convert -O qcow2 disk.qcow2 other.qcow2");
  await io("other.qcow2", "write -P 9 8M 64k");
}

qemuTest("the page shows what is in images, and converts them", async (t) => {
  await using folder = new TempDir();
  await makeImages(folder);
  await using web = await WebPage.open(folder.path);
  const { page } = web;
  const file = (name: string) => ({ name, path: folder.file(name) });

  await t.step("it starts small", async () => {
    const weight = await web.weight();
    assert(weight < 10 * 1024, `${weight}`);
    assert(!web.loaded.has("/offline.js"));
  });

  await t.step("a file is dropped whose backing file is missing", async () => {
    await web.drop([file("disk.qcow2")]);
    assertEquals(await web.settled(), "Drawing: done");
    assertMatch(
      await web.text("#facts"),
      /Format\s+qcow2\s+Verdict of inspect\s+\w+\s+Disk\s+16 MiB/,
    );
    assertMatch(await web.text("#inspection"), /^danger: .*base\.qcow2/m);
    assertMatch(
      await web.text("#tree"),
      /base\.qcow2: not at hand: drop it together with the image/,
    );
    // A copy without the backing file would lack data, but look complete.
    await web.withoutPicker();
    await page.fill("#bytes", "55");
    for (const form of ["#convert", "#edit"]) {
      await page.click(`${form} button`);
      assertMatch(
        await web.settled(),
        /Part of the data is in 'base\.qcow2', which is not at hand/,
      );
    }
  });

  await t.step("with its backing file, the tree is shown", async () => {
    const names = ["base.qcow2", "disk.qcow2"];
    await page.setInputFiles("#files", names.map((it) => folder.file(it)));
    assertEquals(await web.settled(), "Drawing: done");
    const tree = await web.text("#tree");
    assertMatch(tree, /^disk\.qcow2 \(qcow2, 16 MiB\)\n/);
    assertMatch(
      tree,
      /snapshot 1 “first”, .* UTC, 16 MiB; deleting it would free 1\.1 MiB/,
    );
    assertMatch(tree, /base\.qcow2 \(qcow2, 16 MiB\)$/);
    assertEquals(await web.text("#verdict"), "Check: No errors were found.");
    assertEquals(await page.locator("#spaces figure").count(), 2);
    const legend = await page.locator(".legend").first().innerText();
    assertMatch(legend, /zeroes: 1 MiB\s+data: 2 MiB/);
    assertMatch(legend, /shared with a snapshot: 1 MiB/);
  });

  await t.step("a cell shows its map entries, by keyboard too", async () => {
    await page.locator("#spaces canvas").first().focus();
    await page.keyboard.press("ArrowRight");
    await page.locator("#cell", { hasText: "0x10000, 64 KiB" }).waitFor();
    const map = JSON.parse(
      await runOk([
        "qemu-img",
        "map",
        "--output=json",
        folder.file("disk.qcow2"),
      ]),
    );
    const offset = map[0].offset + 0x10000;
    assertEquals(
      await web.text("#cell"),
      `Disk 0x10000, 64 KiB\n0x10000  0x10000  0x${
        offset.toString(16)
      }  base.qcow2`,
    );
    await page.locator("#spaces canvas").nth(1).focus();
    await page.locator("#cell", { hasText: "header" }).waitFor();
    await page.hover("#spaces canvas >> nth=1", { position: { x: 12, y: 4 } });
    await page.locator("#cell", { hasText: "refcounts" }).waitFor();
  });

  await t.step("the table says the same as the picture", async () => {
    await page.locator("#spaces summary").first().click();
    const rows = page.locator("#spaces table").first().locator("tr");
    await rows.nth(1).waitFor();
    assertEquals(
      (await rows.nth(1).innerText()).split("\t"),
      ["0x0", "0x200000", "in the backing file: 2 MiB"],
    );
    assertMatch(await rows.nth(2).innerText(), /^0x200000\t0x300000\tdata: 1/);
  });

  await t.step("a bitmap and the order can be chosen", async () => {
    await page.selectOption("#bitmap", "since");
    assertEquals(await web.settled(), "Drawing: done");
    await page.locator(".legend", { hasText: "dirty in the bitmap: 1 MiB" })
      .waitFor();
    await page.selectOption("#order", "hilbert");
    const box = await page.locator("#spaces canvas").first().boundingBox();
    assertEquals(Math.round(box!.width), Math.round(box!.height));
    await page.selectOption("#order", "rows");
  });

  await t.step("it is converted into a file, without an upload", async () => {
    // A picker needs a person; the file that it would yield does not.
    await page.evaluate(() => {
      // deno-lint-ignore no-explicit-any -- types of the browser
      const scope = globalThis as any;
      scope.showSaveFilePicker = async (
        { suggestedName }: { suggestedName: string },
      ) => {
        const root = await scope.navigator.storage.getDirectory();
        scope.saved = await root.getFileHandle(suggestedName, { create: true });
        return scope.saved;
      };
    });
    for (
      const [format, choice] of [
        ["qcow2", "qcow2"],
        ["raw", "raw"],
        ["zstd", "qcow2, compact (zstd)"],
        ["zlib", "qcow2, compact (zlib, for old programs)"],
      ]
    ) {
      await page.selectOption("#format", choice);
      await page.click("#convert button");
      await page.locator("#status", { hasText: "Saved" }).waitFor();
      const base64 = await page.evaluate(async () => {
        // deno-lint-ignore no-explicit-any -- types of the browser
        const scope = globalThis as any;
        const file = await scope.saved.getFile();
        return await new Promise<string>((resolve) => {
          const reader = new scope.FileReader();
          reader.onload = () => resolve(reader.result.split(",")[1]);
          reader.readAsDataURL(file);
        });
      });
      const copy = folder.file(`copy.${format}`);
      await Deno.writeFile(copy, Uint8Array.fromBase64(base64));
      const disk = folder.file("disk.qcow2");
      const driver = format === "raw" ? "raw" : "qcow2";
      await runOk(["qemu-img", "compare", "-F", driver, disk, copy]);
      if (driver === "qcow2") await runOk(["qemu-img", "check", "-q", copy]);
      if (format.startsWith("z")) {
        assertEquals(await compressionOf(copy), format);
        const size = (name: string) => Deno.statSync(folder.file(name)).size;
        assert(size(`copy.${format}`) < size("copy.qcow2") / 4);
      }
      await page.evaluate(() => {
        // deno-lint-ignore no-explicit-any -- types of the browser
        (globalThis as any).document.getElementById("status").textContent = "";
      });
    }
  });

  await t.step("without a picker it is downloaded", async () => {
    await web.withoutPicker();
    const copy = folder.file("download.qcow2");
    assertEquals(await web.download("qcow2", copy), "disk-copy.qcow2");
    await runOk(["qemu-img", "compare", folder.file("disk.qcow2"), copy]);
    await web.download("qcow2, compact (zstd)", copy);
    await runOk(["qemu-img", "compare", folder.file("disk.qcow2"), copy]);
    assertEquals(await compressionOf(copy), "zstd");
  });

  await t.step("two images are compared", async () => {
    await page.setInputFiles("#other-files", folder.file("other.qcow2"));
    await page.click("#compare button");
    assertEquals(await web.settled(), "Comparing: done");
    assertEquals(await web.text("#difference-verdict"), "64 KiB differ");
    await page.click("#ranges summary");
    assertEquals(await web.text("#ranges pre"), "0x800000  0x10000");
    assertEquals(await page.locator("#difference canvas").count(), 1);
  });

  await t.step(
    "an address is read in ranges, only as needed",
    async () => {
      const url = `${web.url}images/disk.qcow2`;
      assertEquals(await web.paste(url), "Drawing: done");
      assertMatch(
        await web.text("#tree"),
        /images\/base\.qcow2 \(qcow2, 16 MiB\)/,
      );
      assertMatch(
        await web.text("#traffic"),
        /^[\d.]+ (KiB|MiB) of [\d.]+ MiB read$/,
      );
      const { size } = await Deno.stat(folder.file("base.qcow2"));
      assert(web.sent.get("/images/base.qcow2")! < size / 4);
    },
  );

  await t.step("edits go to an overlay that survives a reload", async () => {
    await page.fill("#offset", "0x100001");
    await page.fill("#bytes", "55 aa");
    await page.click("#edit button");
    assertEquals(await web.settled(), "Drawing: done");
    assertMatch(await web.text("#tree"), /^your edits, kept in this browser/);
    await page.reload();
    // The open image is opened again.
    assertEquals(await web.settled(), "Drawing: done");
    assertMatch(
      await web.text("#tree"),
      /^your edits.*\n.*\/disk\.qcow2 .*\nsnapshot 1 “first”.*would free 1\.1/,
    );
    await web.withoutPicker();
    const copy = folder.file("edited.raw");
    await web.download("raw", copy);
    const expected = folder.file("expected.raw");
    const disk = folder.file("disk.qcow2");
    await runOk(["qemu-img", "convert", "-O", "raw", disk, expected]);
    await runOk([
      "qemu-io",
      "-f",
      "raw",
      "-c",
      "write -P 0x55 0x100001 1",
      "-c",
      "write -P 0xaa 0x100002 1",
      expected,
    ]);
    await runOk(["cmp", copy, expected]);

    await page.fill("#bytes", "5");
    await page.click("#edit button");
    assertMatch(await web.settled(), /Bytes are pairs of hexadecimal digits/);
    await page.fill("#bytes", '"text"');
    await page.fill("#offset", "16777215");
    await page.click("#edit button");
    assertMatch(await web.settled(), /The disk ends at 16777216/);
    page.on("dialog", (dialog) => dialog.accept());
    await page.click("#forget");
    assertEquals(await web.settled(), "Drawing: done");
    assert(!(await web.text("#tree")).includes("your edits"));
    await page.reload();
    assertEquals(await web.settled(), "Drawing: done");
    assert(!(await web.text("#tree")).includes("your edits"));
  });

  assertEquals(web.uploads, []);
  assertEquals(web.complaints, []);
}, NEEDS);

/** The compression of an image's clusters, all of which must be compressed. */
async function compressionOf(path: string): Promise<string> {
  const print = async (...args: string[]) =>
    JSON.parse(await runOk(["qemu-img", ...args, "--output=json", path]));
  const info = await print("info");
  const map: { data: boolean; compressed?: boolean }[] = await print("map");
  const data = map.filter((extent) => extent.data);
  assert(data.length > 0);
  // Releases before 8.2 do not report it.
  assert(data.every(({ compressed = true }) => compressed));
  return info["format-specific"].data["compression-type"];
}

qemuTest("the page says what it cannot open, and keeps working", async () => {
  await using folder = new TempDir();
  await makeImages(folder);
  const bad = folder.file("bad.qcow2");
  await Deno.copyFile(folder.file("base.qcow2"), bad);
  await using raw = await Deno.open(bad, { write: true });
  await raw.seek(20, Deno.SeekMode.Start);
  await raw.write(new Uint8Array([0, 0, 0, 60])); // cluster_bits
  const name = "<img src=x onerror=alert(1)>.qcow2";
  await Deno.copyFile(folder.file("disk.qcow2"), folder.file("odd"));
  await using web = await WebPage.open(folder.path);
  await web.drop([{ name: "bad.qcow2", path: bad }]);
  assertMatch(await web.settled(), /bad\.qcow2.*Unsupported cluster size/);
  assert(!await web.page.locator("#result").isVisible());
  assertMatch(await web.paste(`${web.url}images/none.qcow2`), /404/);
  assertMatch(
    await web.paste("http://127.0.0.1:1/x"),
    /'http:\/\/127\.0\.0\.1:1\/x': .*It cannot be fetched: 127\.0\.0\.1:1 /,
  );
  for (const url of ["ftp://example.org/x", "data:,x", "blob:http://a/b"]) {
    assertEquals(
      await web.paste(url),
      `'${url}' is no address of a web server`,
    );
  }
  web.complaints.length = 0; // The browser logs these.
  await web.drop([{ name, path: folder.file("odd") }]);
  assertEquals(await web.settled(), "Drawing: done");
  assert((await web.text("#facts")).includes(name));
  assertEquals(await web.page.locator("#result img").count(), 0);
  assertEquals(web.complaints, []);
}, NEEDS);

qemuTest("the page's main thread is never busy for long", async () => {
  await using folder = new TempDir();
  const path = folder.file("chequered.qcow2");
  await createImage("qcow2", path, { size: 2 ** 30 });
  {
    await using image = await openImage(path, { cache: "unsafe" });
    // The most there can be to draw: no cell looks like the previous one.
    for (let at = 0; at < image.size; at += 2 ** 17) {
      await image.writeZeroes(at, 2 ** 16);
    }
  }
  await using web = await WebPage.open(folder.path);
  const { page } = web;
  const longest = await web.longestTask(async () => {
    await page.setInputFiles("#files", path);
    await page.selectOption("#cells", "16384");
    assertEquals(await web.settled(), "Drawing: done");
    await page.locator("#spaces canvas").first().waitFor();
    await page.selectOption("#order", "hilbert");
    await page.locator("#spaces summary").first().click();
    await page.locator("#spaces p", { hasText: "more ranges" }).waitFor();
    for (let x = 0; x < 512; x += 32) {
      await page.hover("#spaces canvas", { position: { x, y: x } });
    }
  });
  assert(longest < 50, `${longest} ms`);
}, ["chromium"]);

/**
 * Make an image of 1 TiB with all its L2 tables: data and zeroes alternate a
 * quarter of a million times.
 */
async function makeLarge(path: string): Promise<void> {
  await createImage("qcow2", path, { size: 0 });
  {
    // Nothing has to survive a power cut, so do not wait for any sync.
    const how = { cache: "unsafe", resize: true } as const;
    await using image = await openImage(path, how);
    await image.resize(2 ** 40, { preallocation: "metadata" });
  }
  using file = Deno.openSync(path, { read: true, write: true });
  const read = (offset: number, bytes: Uint8Array) => {
    file.seekSync(offset, Deno.SeekMode.Start);
    assertEquals(file.readSync(bytes), bytes.length);
  };
  const header = new DataView(new ArrayBuffer(104));
  read(0, new Uint8Array(header.buffer));
  const l1 = new DataView(new ArrayBuffer(header.getUint32(36) * 8));
  read(Number(header.getBigUint64(40)), new Uint8Array(l1.buffer));
  const table = new Uint8Array(65536);
  for (let at = 0; at < l1.byteLength; at += 8) {
    const offset = Number(l1.getBigUint64(at) & 0xff_ffff_ffff_fe00n);
    read(offset, table);
    for (let entry = 0; entry < table.length / 8; entry++) {
      if (entry & 64) table[entry * 8 + 7] |= 1; // Reads as zeroes.
    }
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(table);
  }
}

qemuTest(
  "a disk of 1 TiB: the page stays small, and its main thread is never busy for long",
  async () => {
    await using folder = new TempDir();
    const path = folder.file("large.qcow2");
    await makeLarge(path);
    await using web = await WebPage.open(folder.path);
    const { page } = web;
    const longest = await web.longestTask(async () => {
      await page.setInputFiles("#files", path);
      await page.locator("#spaces canvas").first().waitFor({
        timeout: 120_000,
      });
      assertMatch(await web.text("#facts"), /Disk\s+1 TiB/);
      assertMatch(await web.text("#spaces"), /L2 tables: 128 MiB/);
      await page.selectOption("#order", "hilbert");
      await page.locator("#spaces summary").first().click();
      await page.locator("#spaces td").first().waitFor();
      for (let x = 0; x < 512; x += 64) {
        await page.hover("#spaces canvas", { position: { x, y: x } });
      }
    });
    assert(longest < 50, `${longest} ms`);
    const heap = await web.workerHeap();
    assert(heap < 300 * 1024 ** 2, `${heap}`);
  },
  ["chromium"],
);

qemuTest("the page asks for the passphrases of encrypted images", async (t) => {
  await using folder = new TempDir();
  const cwd = folder.path;
  const io = (image: string, line: string) =>
    runOk(
      [
        ...["qemu-io", "--object", "secret,id=key,data=correct horse"],
        ...["--image-opts", image, "-c", line],
      ],
      { cwd },
    );
  const secrets = { key: "correct horse" };
  const size = 8 << 20;
  await createImage("qcow2", folder.file("base.qcow2"), {
    size,
    "encrypt.format": "luks",
    "encrypt.key-secret": "key",
    "encrypt.iter-time": 10,
  }, { secrets });
  await io(
    "driver=qcow2,file.filename=base.qcow2,encrypt.key-secret=key",
    "write -P 7 0 1M",
  );
  await runOk(
    ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2"]
      .concat("-F", "qcow2", "disk.qcow2"),
    { cwd },
  );
  await createImage("luks", folder.file("whole.luks"), {
    size,
    "key-secret": "key",
    "iter-time": 10,
  }, { secrets });
  await io(
    "driver=luks,file.filename=whole.luks,key-secret=key",
    "write -P 7 0 1M",
  );
  // Without this, the missing part of the file would decrypt to noise.
  await io(
    "driver=luks,file.filename=whole.luks,key-secret=key",
    "write -P 0 1M 7M",
  );
  const expected = folder.file("expected.raw");
  Deno.writeFileSync(expected, new Uint8Array(size).fill(7, 0, 1 << 20));

  await using web = await WebPage.open(cwd);
  const { page } = web;
  const unlock = async (passphrase: string) => {
    await page.fill("#passphrase", passphrase);
    await page.click("#unlock button");
    return await web.settled();
  };
  const saved = async () => {
    await web.withoutPicker();
    const copy = folder.file("copy.raw");
    await web.download("raw", copy);
    return copy;
  };

  for (const names of [["disk.qcow2", "base.qcow2"], ["whole.luks"]]) {
    await t.step(names.join(" on "), async () => {
      const locked = names.at(-1)!;
      await page.setInputFiles("#files", names.map((it) => folder.file(it)));
      assertEquals(await web.settled(), "Drawing: done");
      // What takes no key is shown anyway.
      assertMatch(await web.text("#facts"), /Disk\s+8 MiB/);
      assertEquals(
        await web.text("#unlock label"),
        `“${locked}” is encrypted. Its passphrase:`,
      );
      assertEquals(
        await page.evaluate(() =>
          // deno-lint-ignore no-explicit-any -- types of the browser
          (globalThis as any).document.activeElement.id
        ),
        "passphrase",
      );
      await web.withoutPicker();
      await page.click("#convert button");
      assertEquals(
        await web.settled(),
        `'${locked}' is encrypted, and its passphrase is needed`,
      );
      assertEquals(
        await unlock("battery staple"),
        `Could not open '${locked}': Invalid password, cannot unlock any keyslot`,
      );
      assert(await page.locator("#unlock").isVisible());
      assertEquals(await unlock("correct horse"), "Drawing: done");
      assert(!await page.locator("#unlock").isVisible());
      await runOk(["cmp", await saved(), expected]);
    });
  }

  await t.step("edits are encrypted, and survive a reload", async () => {
    await page.fill("#offset", "0x200000");
    await page.fill("#bytes", '"written in the page"');
    await page.click("#edit button");
    assertEquals(await web.settled(), "Drawing: done");
    const kept = await page.evaluate(async () => {
      // deno-lint-ignore no-explicit-any -- types of the browser
      const { storage } = (globalThis as any).navigator;
      const texts: string[] = [];
      for await (const handle of (await storage.getDirectory()).values()) {
        const file = await handle.getFile();
        texts.push(new TextDecoder("latin1").decode(await file.arrayBuffer()));
      }
      return texts.map((text) => [
        text.slice(0, 3),
        text.includes("written in the page"),
        text.includes("\x07".repeat(512)),
      ]);
    });
    assertEquals(kept, [["QFI", false, false]]);
    await page.reload();
    await page.setInputFiles("#files", folder.file("whole.luks"));
    assertEquals(await web.settled(), "Drawing: done");
    assertEquals(await web.text("#tree"), "whole.luks (luks, 8 MiB)");
    assertEquals(await unlock("correct horse"), "Drawing: done");
    assert((await web.text("#tree")).includes("your edits"));
    const copy = Deno.readFileSync(await saved());
    const text = new TextDecoder().decode(
      copy.subarray(2 << 20, (2 << 20) + 19),
    );
    assertEquals(text, "written in the page");
  });

  await t.step("an encrypted image is compared with another", async () => {
    await page.setInputFiles(
      "#other-files",
      ["disk.qcow2", "base.qcow2"].map((it) => folder.file(it)),
    );
    page.on("dialog", (dialog) => dialog.accept());
    await page.click("#forget");
    assertEquals(await web.settled(), "Drawing: done");
    await page.click("#compare button");
    assertEquals(
      await web.settled(),
      "'base.qcow2' is encrypted, and its passphrase is needed",
    );
    await page.fill("#other-passphrase", "correct horse");
    await page.click("#compare button");
    assertEquals(await web.settled(), "Comparing: done");
    assertEquals(
      await web.text("#difference-verdict"),
      "The content is the same",
    );
  });
  assertEquals(web.complaints, []);
  assertEquals(web.uploads, []);
}, NEEDS);
