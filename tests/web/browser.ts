/**
 * The page in a headless browser, and a server for it and for images.
 *
 * @module
 */
import { type Browser, chromium, type Page } from "playwright-core";
import { buildPage } from "../../build/web.ts";
import { TempDir } from "../qemu.ts";

let built: ReturnType<typeof buildPage> | undefined;

/** The page, built and served, in a browser. */
export class WebPage implements AsyncDisposable {
  readonly page: Page;
  /** The address of the page. */
  readonly url: string;
  /** Bytes sent of each image, by path. */
  readonly sent = new Map<string, number>();
  /** Files of the page that have been sent. */
  readonly loaded = new Set<string>();
  /** Requests other than GET and HEAD, or with a body. */
  readonly uploads: string[] = [];
  /** Uncaught errors, and console output. */
  readonly complaints: string[] = [];
  readonly #browser: Browser;
  readonly #server: Deno.HttpServer<Deno.NetAddr>;
  readonly #folder: TempDir;

  private constructor(
    browser: Browser,
    page: Page,
    folder: TempDir,
    images: string,
  ) {
    this.#browser = browser;
    this.#folder = folder;
    this.page = page;
    this.#server = Deno.serve(
      { port: 0, hostname: "127.0.0.1", onListen: () => {} },
      (request) => this.#answer(request, folder.path, images),
    );
    this.url = `http://127.0.0.1:${this.#server.addr.port}/`;
    page.on("pageerror", ({ message }) => this.complaints.push(message));
    page.on("console", (message) => {
      if (message.type() === "error") this.complaints.push(message.text());
    });
  }

  /**
   * Open the page, which is built for the first test.
   *
   * @param images The folder of the images to serve below `/images/`.
   */
  static async open(images: string): Promise<WebPage> {
    const folder = new TempDir();
    built ??= buildPage();
    const files = await built;
    Deno.mkdirSync(folder.file("parts"));
    for (const [name, text] of Object.entries(files)) {
      await Deno.writeTextFile(folder.file(name), text);
    }
    const browser = await chromium.launch({
      executablePath: await chromiumPath(),
      // Chromium's sandbox does not work as root, as in containers.
      args: ["--no-sandbox"],
    });
    const page = await browser.newPage();
    page.setDefaultTimeout(30_000);
    const opened = new WebPage(browser, page, folder, images);
    await page.goto(opened.url);
    return opened;
  }

  /** Open the page from disk, without a server. */
  get file(): string {
    return `file://${this.#folder.path}/index.html`;
  }

  /** Wait until the page has finished; returns its status, or its error. */
  async settled(): Promise<string> {
    await this.page.waitForFunction(() => {
      const doc = (globalThis as unknown as { document: Doc }).document;
      const cancel = doc.getElementById("cancel");
      return cancel.hidden && (doc.getElementById("status").textContent ||
        !doc.getElementById("error").hidden);
    });
    const error = this.page.locator("#error");
    return await error.isVisible()
      ? await error.innerText()
      : await this.page.locator("#status").innerText();
  }

  /** Drop files onto the page. */
  async drop(files: { name: string; path: string }[]): Promise<void> {
    const contents = await Promise.all(
      files.map(async ({ name, path }) => ({
        name,
        base64: (await Deno.readFile(path)).toBase64(),
      })),
    );
    const transfer = await this.page.evaluateHandle((files) => {
      // deno-lint-ignore no-explicit-any -- types of the browser
      const transfer = new (globalThis as any).DataTransfer();
      for (const { name, base64 } of files) {
        const bytes = Uint8Array.from(atob(base64), (it) => it.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
      }
      return transfer;
    }, contents);
    await this.page.dispatchEvent("#drop", "drop", { dataTransfer: transfer });
  }

  /** Open the image at an address. */
  async paste(url: string): Promise<string> {
    await this.page.fill("#url", url);
    await this.page.click("#address button");
    return await this.settled();
  }

  /** Make the browser one that cannot pick a file to save to. */
  async withoutPicker(): Promise<void> {
    await this.page.evaluate(() =>
      // deno-lint-ignore no-explicit-any -- types of the browser
      delete (globalThis as any).showSaveFilePicker
    );
  }

  /**
   * Convert the disk to a format, and save what is downloaded to `path`. Needs a
   * browser without a picker.
   *
   * @returns the name that the page suggests.
   */
  async download(format: string, path: string): Promise<string> {
    await this.page.selectOption("#format", format);
    const waiting = this.page.waitForEvent("download");
    await this.page.click("#convert button");
    const download = await waiting;
    await download.saveAs(path);
    return download.suggestedFilename();
  }

  /** The size of the worker's heap, including all buffers, in bytes. */
  async workerHeap(): Promise<number> {
    const session = await this.#browser.newBrowserCDPSession();
    const { targetInfos } = await session.send("Target.getTargets");
    const worker = targetInfos.find(({ type }) => type === "worker")!;
    const { sessionId } = await session.send("Target.attachToTarget", {
      targetId: worker.targetId,
    });
    const answer = new Promise<string>((resolve) =>
      session.on("Target.receivedMessageFromTarget", ({ message }) => {
        if ("id" in JSON.parse(message)) resolve(message);
      })
    );
    const message = JSON.stringify({ id: 1, method: "Runtime.getHeapUsage" });
    await session.send("Target.sendMessageToTarget", { sessionId, message });
    const { result } = JSON.parse(await answer);
    return result.usedSize + result.backingStorageSize;
  }

  /**
   * The longest task of the page's main thread during an act, in milliseconds
   * of processor time: the machine may be busy otherwise.
   */
  async longestTask(act: () => Promise<unknown>): Promise<number> {
    const categories = ["-*", "disabled-by-default-devtools.timeline"];
    await this.#browser.startTracing(this.page, { categories });
    let trace: { traceEvents: readonly TraceEvent[] };
    try {
      await act();
    } finally {
      const bytes = await this.#browser.stopTracing();
      trace = JSON.parse(new TextDecoder().decode(bytes));
    }
    const threads = trace.traceEvents.filter(({ name, args }) =>
      name === "thread_name" && args?.name === "CrRendererMain"
    );
    const durations = trace.traceEvents
      .filter(({ name, pid, tid }) =>
        name.endsWith("RunTask") &&
        threads.some((thread) => thread.pid === pid && thread.tid === tid)
      )
      .map(({ tdur }) => tdur ?? 0);
    if (durations.length === 0) throw new Error("No task was traced");
    return Math.max(...durations) / 1000;
  }

  /**
   * The total size of the page's own files that were sent, compressed by
   * `gzip`.
   */
  async weight(): Promise<number> {
    let sum = 0;
    for (const name of this.loaded) {
      sum += await zippedSize(`${this.#folder.path}${name}`);
    }
    return sum;
  }

  /** The text of an element. */
  text(selector: string): Promise<string> {
    return this.page.locator(selector).innerText();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#browser.close();
    await this.#server.shutdown();
    await this.#folder[Symbol.asyncDispose]();
  }

  async #answer(
    request: Request,
    pages: string,
    images: string,
  ): Promise<Response> {
    const { pathname } = new URL(request.url);
    if (request.method !== "GET" && request.method !== "HEAD") {
      this.uploads.push(`${request.method} ${pathname}`);
    }
    const name = decodeURIComponent(pathname);
    if (name.startsWith("/images/")) {
      return await this.#range(request, name, `${images}/${name.slice(8)}`);
    }
    const file = name === "/" ? "/index.html" : name;
    try {
      const type = /\.html$/.test(file)
        ? "text/html"
        : /\.css$/.test(file)
        ? "text/css"
        : "text/javascript";
      const bytes = await Deno.readFile(`${pages}${file}`);
      this.loaded.add(file);
      return new Response(bytes, { headers: { "content-type": type } });
    } catch {
      return new Response(null, { status: 404 });
    }
  }

  async #range(
    request: Request,
    name: string,
    path: string,
  ): Promise<Response> {
    let file: Deno.FsFile;
    try {
      file = await Deno.open(path);
    } catch {
      return new Response(null, { status: 404 });
    }
    using _ = file;
    const { size } = await file.stat();
    const range = /^bytes=(\d+)-(\d+)$/.exec(
      request.headers.get("range") ?? "",
    );
    if (!range) {
      const headers = { "content-length": `${size}` };
      return new Response(null, { status: 500, headers });
    }
    const start = Number(range[1]);
    const end = Math.min(Number(range[2]) + 1, size);
    const bytes = new Uint8Array(end - start);
    await file.seek(start, Deno.SeekMode.Start);
    for (let at = 0; at < bytes.length;) {
      at += await file.read(bytes.subarray(at)) ?? bytes.length;
    }
    this.sent.set(name, (this.sent.get(name) ?? 0) + bytes.length);
    return new Response(bytes, {
      status: 206,
      headers: { "content-range": `bytes ${start}-${end - 1}/${size}` },
    });
  }
}

/** A trace event; times in microseconds. */
interface TraceEvent {
  readonly name: string;
  readonly pid: number;
  readonly tid: number;
  /** Processor time. */
  readonly tdur?: number;
  readonly args?: { readonly name?: string };
}

/** The size of a file, compressed by `gzip`. */
export async function zippedSize(path: string): Promise<number> {
  const stream = new Blob([await Deno.readFile(path)]).stream()
    .pipeThrough(new CompressionStream("gzip"));
  return (await new Response(stream).arrayBuffer()).byteLength;
}

/** The part of the browser's document that is used. */
interface Doc {
  getElementById(id: string): { hidden: boolean; textContent: string };
}

/** The path of the browser. */
export async function chromiumPath(): Promise<string> {
  for (const folder of (Deno.env.get("PATH") ?? "").split(":")) {
    const path = `${folder}/chromium`;
    if (await Deno.stat(path).then(() => true, () => false)) return path;
  }
  throw new Error("chromium is not installed");
}
