/**
 * Pages that open images with the npm package, made by a bundler, and how much
 * of the library a browser loads for them.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { type Browser, chromium } from "playwright-core";
import { runOk, type TempDir } from "../qemu.ts";
import { chromiumPath, zippedSize } from "../web/browser.ts";

/**
 * The program of a page that opens images with a driver: it defines
 * `readStart`.
 */
const program = (driver: string) => `
import { openImage } from "@bdrv/bdrv/core";
import "@bdrv/bdrv/${driver}";
import "@bdrv/bdrv/qcow2";
globalThis.readStart = async (source) => {
  const image = await openImage(source);
  const bytes = await image.read(0, 65536);
  await image.close();
  return [bytes.length, bytes[0], bytes.at(-1)];
};
`;

/** Bytes that a page has loaded, compressed. */
interface Weight {
  readonly atStart: number;
  readonly inAll: number;
}

/** The pages, bundled and served, and a browser. */
export class BundledPages implements AsyncDisposable {
  readonly #folder: string;
  readonly #browser: Browser;
  readonly #server: Deno.HttpServer<Deno.NetAddr>;
  /** The files of a page that have been sent. */
  #sent = new Set<string>();

  private constructor(folder: string, browser: Browser) {
    this.#folder = folder;
    this.#browser = browser;
    this.#server = Deno.serve(
      { port: 0, hostname: "127.0.0.1", onListen: () => {} },
      (request) => this.#answer(request),
    );
  }

  /** Bundle the pages in a folder in which the package is installed. */
  static async open(dir: TempDir): Promise<BundledPages> {
    const cwd = dir.path;
    for (const driver of ["blob", "http"]) {
      Deno.writeTextFileSync(dir.file(`${driver}.mjs`), program(driver));
    }
    const deno = [Deno.execPath(), "run", "-A", "--quiet", "--no-lock"];
    await runOk(
      [...deno, "--no-config", "npm:esbuild@0.28", "blob.mjs", "http.mjs"]
        .concat("--bundle", "--minify", "--splitting", "--format=esm")
        .concat("--outdir=out", "--log-level=error"),
      { cwd },
    );
    for (const type of ["zlib", "zstd"]) {
      const how = `compression_type=${type}`;
      await runOk(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", how, type, "64M"],
        { cwd },
      );
      const write = "write -q -c -P 7 0 64k";
      await runOk(["qemu-io", "-c", write, type], { cwd });
    }
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "plain", "64M"], {
      cwd,
    });
    await runOk(["qemu-io", "-c", "write -q -P 7 0 1M", "plain"], { cwd });
    const browser = await chromium.launch({
      executablePath: await chromiumPath(),
      args: ["--no-sandbox"],
    });
    return new BundledPages(cwd, browser);
  }

  /** What a page loads to open a `blob`, or an image by `http`. */
  async weigh(driver: string): Promise<Weight> {
    const page = await this.#browser.newPage();
    this.#sent.clear();
    await page.goto(`http://127.0.0.1:${this.#server.addr.port}/${driver}`);
    await page.waitForFunction(() => "readStart" in globalThis);
    const atStart = await this.#weight();
    const read = (name: string) =>
      page.evaluate(async ([driver, name]) => {
        // deno-lint-ignore no-explicit-any -- the program of the page
        const { readStart, location } = globalThis as any;
        const url = new URL(`/${name}`, location.href);
        if (driver === "http") return await readStart(url);
        return await readStart(await (await fetch(url)).blob());
      }, [driver, name]);
    assertEquals(await read("plain"), [65536, 7, 7]);
    const inAll = await this.#weight();
    for (const name of ["zlib", "zstd"]) {
      assertEquals(await read(name), [65536, 7, 7], name);
    }
    await page.close();
    return { atStart, inAll };
  }

  async #weight(): Promise<number> {
    let sum = 0;
    for (const name of this.#sent) {
      sum += await zippedSize(`${this.#folder}/${name}`);
    }
    return sum;
  }

  #answer(request: Request): Response {
    const { pathname } = new URL(request.url);
    if (/^\/(blob|http)$/.test(pathname)) {
      const text = `<script type="module" src="${pathname}.js"></script>`;
      return new Response(text, { headers: { "content-type": "text/html" } });
    }
    const isScript = pathname.endsWith(".js");
    const name = isScript ? `out${pathname}` : pathname.slice(1);
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = Deno.readFileSync(`${this.#folder}/${name}`);
    } catch {
      return new Response(null, { status: 404 });
    }
    if (isScript) {
      this.#sent.add(name);
      const headers = { "content-type": "text/javascript" };
      return new Response(bytes, { headers });
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(
      request.headers.get("range") ?? "",
    );
    if (!range) return new Response(bytes);
    const start = Number(range[1]);
    const end = Math.min(Number(range[2]) + 1, bytes.length);
    const place = `bytes ${start}-${end - 1}/${bytes.length}`;
    const headers = { "content-range": place, etag: '"1"' };
    return new Response(bytes.subarray(start, end), { status: 206, headers });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close();
    await this.#server.shutdown();
  }
}
