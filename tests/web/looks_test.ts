/** What the page's pictures show, and how they are read. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { qemuIoIn, qemuTest, run, runOk, TempDir } from "../qemu.ts";
import { WebPage } from "./browser.ts";

const CLUSTER = 65536;

/**
 * An image with everything, and damage: a chain, compressed, leaked, corrupt.
 */
async function makeImages({ path: cwd }: TempDir): Promise<void> {
  const sh = (line: string) => runOk(line.split(" "), { cwd });
  const io = qemuIoIn(cwd);
  await sh("qemu-img create -q -f qcow2 lowest.qcow2 16M");
  await io("lowest.qcow2", "write -P 1 0 6M");
  await sh("qemu-img create -q -f qcow2 -b lowest.qcow2 -F qcow2 low.qcow2");
  await io("low.qcow2", "write -P 1 0 4M");
  await sh("qemu-img create -q -f qcow2 -b low.qcow2 -F qcow2 all.qcow2");
  await io(
    "all.qcow2",
    "write -P 2 2M 1M",
    "write -c -P 3 8M 64k",
    "write -z 12M 1M",
  );
  await sh("qemu-img snapshot -c one all.qcow2");
  await io("all.qcow2", "write -P 4 2M 64k");
  await sh("qemu-img bitmap --add all.qcow2 since");
  await io("all.qcow2", "write -P 4 10M 64k", "write -P 4 14M 64k");
  damage(`${cwd}/all.qcow2`);
}

/** Leak a cluster by clearing its entry, and use one that is free. */
function damage(path: string): void {
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  const l1 = Number(view.getBigUint64(40));
  const l2 = Number(view.getBigUint64(l1) & 0xfffffffffffe00n);
  const entry = (guest: number) => l2 + 8 * (guest / CLUSTER);
  view.setBigUint64(entry(14 << 20), 0n);
  const end = BigInt(Math.ceil(bytes.length / CLUSTER) * CLUSTER);
  view.setBigUint64(entry(10 << 20), end | (1n << 63n));
  Deno.writeFileSync(path, bytes);
  Deno.truncateSync(path, Number(end) + CLUSTER);
}

qemuTest(
  "the page colours everything there is to show",
  async (t) => {
    await using folder = new TempDir();
    await makeImages(folder);
    await using web = await WebPage.open(folder.path);
    const { page } = web;
    const names = ["all.qcow2", "low.qcow2", "lowest.qcow2"];
    await page.setInputFiles("#files", names.map((name) => folder.file(name)));
    assertEquals(await web.settled(), "Drawing: done");

    await t.step("in words, next to both pictures", async () => {
      await page.selectOption("#bitmap", "since");
      assertEquals(await web.settled(), "Drawing: done");
      const [guest, host] = await page.locator(".legend").allInnerTexts();
      for (
        const label of [
          "data",
          "compressed data",
          "zeroes",
          "not allocated",
          "in the backing file",
          "in the second backing file",
          "dirty in the bitmap",
        ]
      ) assertMatch(guest, new RegExp(`^${label}: `, "m"));
      for (
        const label of [
          "header",
          "L1 tables",
          "L2 tables",
          "refcounts",
          "snapshot table",
          "bitmaps",
          "shared with a snapshot",
          "leaked",
          "corrupt",
        ]
      ) assertMatch(host, new RegExp(`^${label}: `, "m"));
      const theirs = await run(
        ["qemu-img", "check", "--output=json", folder.file("all.qcow2")],
      );
      const { corruptions, leaks } = JSON.parse(theirs.stdout);
      assertEquals(
        await web.text("#verdict"),
        `Check: ${corruptions} errors: data may be damaged; ` +
          `${leaks} leaked clusters: space is wasted.`,
      );
      await page.click("#findings summary");
      assertMatch(await web.text("#findings ul"), /refcount/i);
    });

    await t.step("side by side where there is room", async () => {
      const corners = async () => {
        const canvases = await page.locator("#spaces canvas").all();
        return await Promise.all(canvases.map((it) => it.boundingBox()));
      };
      const [disk, file] = await corners();
      assert(disk!.y === file!.y && disk!.x + disk!.width < file!.x);
      await page.setViewportSize({ width: 400, height: 800 });
      const [above, below] = await corners();
      assert(above!.y + above!.height < below!.y && above!.width <= 400);
      await page.setViewportSize({ width: 1280, height: 720 });
    });

    await t.step("in the colours of the legend", async () => {
      const found = await page.evaluate(() => {
        // deno-lint-ignore no-explicit-any -- types of the browser
        const doc = (globalThis as any).document;
        const colours = (canvas: { width: number; height: number }) => {
          // deno-lint-ignore no-explicit-any
          const context = (canvas as any).getContext("2d");
          const { data } = context.getImageData(
            0,
            0,
            canvas.width,
            canvas.height,
          );
          const seen = new Set<string>();
          for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3] < 255) continue;
            seen.add(`rgb(${data.slice(at, at + 3).join(", ")})`);
          }
          return [...seen];
        };
        return [...doc.querySelectorAll("#spaces figure")].map((figure) => ({
          drawn: colours(figure.querySelector("canvas")),
          legend: [...figure.querySelectorAll(".swatch")].map((swatch) =>
            // deno-lint-ignore no-explicit-any
            (globalThis as any).getComputedStyle(swatch).backgroundColor
          ),
        }));
      });
      assertEquals(found.length, 2);
      for (const { drawn, legend } of found) {
        assert(drawn.length >= 5, `${drawn}`);
        for (const colour of drawn) assert(legend.includes(colour), colour);
      }
    });

    await t.step("with the keyboard alone", async () => {
      await page.reload();
      await page.locator("#files").waitFor();
      const seen: string[] = [];
      const focused = () =>
        page.evaluate(() => {
          // deno-lint-ignore no-explicit-any -- types of the browser
          const at = (globalThis as any).document.activeElement;
          return at.id || at.textContent || at.tagName;
        });
      await page.setInputFiles("#files", folder.file("lowest.qcow2"));
      assertEquals(await web.settled(), "Drawing: done");
      for (let step = 0; step < 40; step++) {
        await page.keyboard.press("Tab");
        seen.push(await focused());
      }
      for (
        const id of ["files", "url", "cells", "order", "save-svg", "CANVAS"]
          .concat("offset", "bytes", "format", "other-files", "other-url")
      ) assert(seen.includes(id), `${id} in ${seen}`);
      await page.locator("#spaces canvas").first().focus();
      await page.keyboard.press("End");
      await page.locator("#cell", { hasText: "Disk 0xff" }).waitFor();
      // The cell is marked: the last one is at the picture's lower right.
      const end = async (selector: string) => {
        const box = await page.locator(selector).first().boundingBox();
        const { x, y, width, height } = box!;
        assert(width > 0 && height > 0);
        return [x + width, y + height].map(Math.round);
      };
      assertEquals(await end(".cursor"), await end("#spaces canvas"));
      const box = page.locator("#cell");
      const { y } = (await box.boundingBox())!;
      assert(y > 0 && y < page.viewportSize()!.height, `${y}`);
      // The table opens by a key, too.
      await page.locator("#spaces summary").first().focus();
      await page.keyboard.press("Enter");
      await page.locator("#spaces table td").first().waitFor();
    });

    await t.step("to a screen reader", async () => {
      const tree = await page.locator("body").ariaSnapshot();
      for (
        const words of [
          /heading "What is in a disk image" \[level=1\]/,
          /heading "What is where"/,
          /application "Disk: 16 MiB, .* a cell\. The arrow keys move/,
          /table/,
          /columnheader "From"/,
          /button "Cancel"|status/,
          /combobox "Format"/,
          /textbox "or paste its address:"/,
        ]
      ) assertMatch(tree, words);
    });

    await t.step("in light and in dark mode", async () => {
      const shades: number[] = [];
      for (const colorScheme of ["light", "dark"] as const) {
        await page.emulateMedia({ colorScheme });
        const [paper, ink] = await page.evaluate(() => {
          // deno-lint-ignore no-explicit-any -- types of the browser
          const scope = globalThis as any;
          const style = scope.getComputedStyle(scope.document.body);
          return [style.backgroundColor, style.color];
        });
        const light = (colour: string) =>
          colour.match(/\d+/g)!.slice(0, 3).reduce((a, b) => a + Number(b), 0);
        shades.push(light(paper), light(ink));
      }
      const [paper, ink, darkPaper, darkInk] = shades;
      assert(paper - ink > 400 && darkInk - darkPaper > 400, `${shades}`);
    });

    assertEquals(web.uploads, []);
    assertEquals(web.complaints, []);
  },
  ["chromium", "qemu-img", "qemu-io"],
);
