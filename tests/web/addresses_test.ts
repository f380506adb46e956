/** Addresses of the page, and of the images that it opens. @module */
import { assertEquals, assertMatch } from "@std/assert";
import { qemuTest, runOk, TempDir } from "../qemu.ts";
import { WebPage } from "./browser.ts";

const NEEDS = ["chromium", "qemu-img", "qemu-io"];

async function makeImage({ path: cwd }: TempDir): Promise<void> {
  await runOk("qemu-img create -q -f qcow2 disk.qcow2 16M".split(" "), { cwd });
  await runOk(["qemu-io", "-c", "write -q -P 1 0 4M", "disk.qcow2"], { cwd });
  await runOk("qemu-img convert -O vmdk disk.qcow2 disk.vmdk".split(" "), {
    cwd,
  });
}

/**
 * A server that permits any page to read its files, and does nothing beyond: no
 * conditional requests, and few response headers.
 */
function sparingServer(folder: string): Deno.HttpServer<Deno.NetAddr> {
  const options = { port: 0, hostname: "127.0.0.1", onListen: () => {} };
  return Deno.serve(options, (request) => {
    const { pathname } = new URL(request.url);
    const headers = new Headers({ "access-control-allow-origin": "*" });
    if (request.method === "OPTIONS") {
      return new Response(null, { status: 403 });
    }
    if (pathname.startsWith("/moved/")) {
      headers.set("location", pathname.slice("/moved".length));
      return new Response(null, { status: 302, headers });
    }
    const bytes = Deno.readFileSync(`${folder}${pathname}`);
    headers.set("etag", '"1"');
    headers.set("last-modified", "Thu, 26 Nov 2026 10:00:00 GMT");
    if (request.method === "HEAD") {
      headers.set("content-length", `${bytes.length}`);
      return new Response(null, { headers });
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(
      request.headers.get("range") ?? "",
    );
    if (pathname.endsWith(".whole") || !range) {
      return new Response(bytes, { headers });
    }
    const start = Number(range[1]);
    const end = Math.min(Number(range[2]) + 1, bytes.length);
    headers.set("content-range", `bytes ${start}-${end - 1}/${bytes.length}`);
    const part = bytes.slice(start, end);
    return new Response(part, { status: 206, headers });
  });
}

qemuTest(
  "the page reads other servers that permit it, however few headers they send",
  async () => {
    await using folder = new TempDir();
    await makeImage(folder);
    Deno.copyFileSync(folder.file("disk.qcow2"), folder.file("disk.whole"));
    const server = sparingServer(folder.path);
    await using web = await WebPage.open(folder.path);
    try {
      const origin = `http://127.0.0.1:${server.addr.port}`;
      for (
        const path of [
          "/disk.qcow2",
          "/moved/disk.qcow2",
          "/moved/moved/disk.vmdk",
          "/disk.whole",
        ]
      ) {
        assertEquals(await web.paste(origin + path), "Drawing: done", path);
        assertMatch(await web.text("#facts"), /Disk\s+16 MiB/);
        assertMatch(
          await web.text("#traffic"),
          /^[\d.]+ (KiB|MiB) of 4\.\d MiB read$/,
        );
        await web.withoutPicker();
        const copy = folder.file("copy");
        await web.download("raw", copy);
        const disk = folder.file("disk.qcow2");
        await runOk(["qemu-img", "compare", "-F", "raw", disk, copy]);
      }
    } finally {
      await server.shutdown();
    }
    assertEquals(web.uploads, []);
    assertEquals(web.complaints, []);
  },
  NEEDS,
);

qemuTest("the page works from disk, without a server", async () => {
  await using folder = new TempDir();
  await makeImage(folder);
  await using web = await WebPage.open(folder.path);
  await web.page.goto(web.file);
  for (const name of ["disk.qcow2", "disk.vmdk"]) {
    await web.page.setInputFiles("#files", folder.file(name));
    assertEquals(await web.settled(), "Drawing: done");
    assertMatch(await web.text("#facts"), /Disk\s+16 MiB/);
    await web.withoutPicker();
    const copy = folder.file("copy.qcow2");
    await web.download("qcow2, compact (zstd)", copy);
    await runOk(["qemu-img", "compare", folder.file(name), copy]);
  }
  assertEquals(web.complaints, []);
}, NEEDS);
