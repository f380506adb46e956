import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import {
  BlockError,
  openImage,
  type OpenOptions,
  type Source,
  type StackObject,
} from "../../../mod.ts";
import { FaultyServer, numbered, type Respond } from "./server.ts";

const MIB = 1024 * 1024;
const SIZE = 3 * MIB + 777;
const CONTENT = numbered(SIZE);

/** The image on the server, unchanged. */
function disk(server: FaultyServer, options: StackObject = {}): StackObject {
  const url = `${server.url}/disk.raw`;
  return { driver: "raw", file: { driver: "http", url, ...options } };
}

async function readAll(
  source: Source,
  options: OpenOptions = {},
): Promise<Uint8Array> {
  await using image = await openImage(source, options);
  return await image.read(0, image.size);
}

async function refused(
  respond: Respond,
  words: string,
  options: StackObject = {},
): Promise<FaultyServer> {
  await using server = new FaultyServer(CONTENT, respond);
  const error = await assertRejects(
    () => readAll(disk(server, options)),
    BlockError,
  );
  assertStringIncludes(error.message, words);
  return server;
}

Deno.test("http: all of an image is read, each byte once", async () => {
  await using server = new FaultyServer(CONTENT);
  const read = await readAll(disk(server));
  assertEquals(read.subarray(0, SIZE), CONTENT);
  assertEquals(server.sent, SIZE);
  assert(server.asked.length <= 8, `${server.asked.length} requests`);
  for (const { method, headers } of server.asked) {
    assertEquals(method, "GET");
    assertEquals(headers.get("accept-encoding"), "identity");
  }
});

Deno.test("http: transient failures are retried, and a read resumes where it broke off", async () => {
  await using server = new FaultyServer(CONTENT, ({ number }, right) => {
    switch (number % 5) {
      case 0:
        return { ...right, status: 503, headers: { "Retry-After": "0" } };
      case 1:
        return { ...right, cutAt: right.body.length >> 1 };
      case 2:
        return { ...right, cutAt: 0 };
      case 3:
        return {
          ...right,
          headers: { ...right.headers, "Transfer-Encoding": "chunked" },
          cutAt: Math.min(70_000, right.body.length - 1),
        };
      default:
        return right;
    }
  });
  const read = await readAll(disk(server));
  assertEquals(read.subarray(0, SIZE), CONTENT);
});

Deno.test("http: a server that never recovers is given up on", async () => {
  const broken: Respond = (_, right) => ({ ...right, status: 503 });
  const given = { retries: 1 };
  const server = await refused(broken, "returned error: 503", given);
  assertEquals(server.asked.length, 2);
  const cut: Respond = (_, right) => ({ ...right, cutAt: 100 });
  assertEquals((await refused(cut, "connection", given)).asked.length, 2);
});

Deno.test("http: a silent server is given up on, unless it wakes up in time", async () => {
  const silent: Respond = (_, right) => ({ ...right, isSilent: true });
  const given = { retries: 0, timeout: 1 };
  await refused(silent, "has sent nothing for 1 s", given);
  await using server = new FaultyServer(
    CONTENT,
    ({ number }, right) => ({ ...right, isSilent: number === 0 }),
  );
  await using image = await openImage(disk(server, { ...given, retries: 1 }));
  assertEquals(image.size, 3 * MIB + 1024);
});

Deno.test("http: an object that changes is an error, whatever reveals it", async () => {
  const changes: [what: string, respond: Respond][] = [
    ["412", (_, right) => ({ ...right, status: 412 })],
    ["416", (_, right) => ({ ...right, status: 416 })],
    ["another tag", (_, right) => ({
      ...right,
      headers: { ...right.headers, ETag: '"two"' },
    })],
    ["no tag", (_, right) => ({
      ...right,
      headers: { ...right.headers, ETag: "" },
    })],
    ["another size", ({ range }, right) => ({
      ...right,
      headers: {
        ...right.headers,
        "Content-Range": `bytes ${range!.start}-${range!.end - 1}/${SIZE + 1}`,
      },
    })],
    ["all of another size", (_, right) => ({
      ...right,
      status: 200,
      body: CONTENT.subarray(0, 1000),
    })],
  ];
  for (const [what, respond] of changes) {
    await using server = new FaultyServer(CONTENT);
    await using image = await openImage(disk(server));
    server.respond = respond;
    const error = await assertRejects(
      () => image.read(2 * MIB, 512),
      BlockError,
      "has changed",
      what,
    );
    assertEquals(error.code, "EIO");
    // Even if it changes back: data read meanwhile may be of neither version.
    server.respond = (_, right) => right;
    await assertRejects(() => image.read(MIB, 512), BlockError, "has changed");
  }
});

Deno.test("http: a change is noticed by Last-Modified as well", async () => {
  await using server = new FaultyServer(CONTENT);
  server.etag = undefined;
  let date = "Wed, 21 Oct 2015 07:28:00 GMT";
  server.respond = (_, right) => ({
    ...right,
    headers: { ...right.headers, "Last-Modified": date },
  });
  await using image = await openImage(disk(server));
  await image.read(MIB, 512);
  assertEquals(server.asked.at(-1)!.headers.get("if-unmodified-since"), date);
  date = "Wed, 21 Oct 2015 07:28:01 GMT";
  await assertRejects(() => image.read(2 * MIB, 512), BlockError, "changed");
});

Deno.test("http: an object without a version is read with a warning", async () => {
  await using server = new FaultyServer(CONTENT);
  server.etag = undefined;
  const warnings: string[] = [];
  await using _ = await openImage(disk(server), {
    warn: (text) => warnings.push(text),
  });
  assertEquals(warnings.length, 1);
  assertStringIncludes(warnings[0], "neither an ETag nor a Last-Modified");
});

Deno.test("http: a weak tag is compared, not sent", async () => {
  await using server = new FaultyServer(CONTENT);
  server.etag = 'W/"one"';
  await using image = await openImage(disk(server));
  await image.read(MIB, 512);
  assertEquals(server.asked.at(-1)!.headers.get("if-match"), null);
  server.etag = 'W/"two"';
  await assertRejects(() => image.read(2 * MIB, 512), BlockError, "changed");
});

Deno.test("http: encoded content is not taken for the image's bytes", async () => {
  for (const encoding of ["gzip", "br", "deflate", "zstd", "x-unknown"]) {
    const respond: Respond = (_, right) => ({
      ...right,
      headers: { ...right.headers, "Content-Encoding": encoding },
    });
    await refused(respond, `Content-Encoding: ${encoding}`);
    // In the middle of a read, too.
    await using server = new FaultyServer(CONTENT);
    await using image = await openImage(disk(server));
    server.respond = respond;
    await assertRejects(() => image.read(2 * MIB, 512), BlockError, encoding);
  }
});

Deno.test("http: ranges that were not asked for are refused", async () => {
  const ranges: [range: string, words: string][] = [
    ["bytes 5-327684/3146505", "has sent 'bytes 5-327684/3146505'"],
    ["bytes 0-3000000/3146505", "has sent 'bytes 0-3000000/3146505'"],
    ["bytes 0-327679/*", "does not announce the size"],
    ["bytes 10-5/3146505", "is invalid"],
    ["bytes 0-327679/100", "is invalid"],
    ["bytes 0-327679/99999999999999999999", "is invalid"],
    ["pages 1-2/3", "is invalid"],
    ["", "does not say which range"],
  ];
  for (const [range, words] of ranges) {
    await refused((_, right) => ({
      ...right,
      headers: { ...right.headers, "Content-Range": range },
    }), words);
  }
  await refused((_, right) => ({
    ...right,
    headers: {
      ...right.headers,
      "Content-Type": "multipart/byteranges; boundary=x",
    },
  }), "in several parts");
});

Deno.test("http: bodies that are too short or too long are refused", async () => {
  const given = { retries: 0 };
  const chunked = (body: (right: Uint8Array) => Uint8Array): Respond =>
  (
    _,
    right,
  ) => ({
    ...right,
    headers: { ...right.headers, "Transfer-Encoding": "chunked" },
    body: body(right.body),
  });
  await refused(chunked((body) => body.subarray(1)), "less than", given);
  await refused(
    chunked((body) => new Uint8Array([...body, 1])),
    "more than",
    given,
  );
  await refused(
    (_, right) => ({ ...right, body: right.body.subarray(1) }),
    "less than",
    given,
  );
});

Deno.test("http: statuses become error codes", async () => {
  const codes = { 404: "ENOENT", 410: "ENOENT", 401: "EACCES", 403: "EACCES" };
  for (const [status, code] of Object.entries(codes)) {
    await using server = new FaultyServer(
      CONTENT,
      (_, right) => ({ ...right, status: Number(status) }),
    );
    const error = await assertRejects(
      () => openImage(disk(server)),
      BlockError,
      `returned error: ${status}`,
    );
    assertEquals(error.code, code);
    assertEquals(server.asked.length, 1);
  }
});

Deno.test("http: small and empty objects are read even without ranges", async () => {
  for (const size of [0, 1, 511, 512, 65_537]) {
    for (const hasRanges of [true, false]) {
      await using server = new FaultyServer(CONTENT.slice(0, size));
      if (!hasRanges) {
        server.respond = (_, right) => ({
          ...right,
          status: 200,
          headers: { ETag: '"x"' },
          body: server.content,
        });
      }
      await using image = await openImage({
        driver: "http",
        url: `${server.url}/`,
      });
      assertEquals(image.size, size);
      assertEquals(await image.read(0, size), server.content);
    }
  }
});

/** A server without support for ranges. */
const whole: Respond = (asked, right) => ({
  ...right,
  status: 200,
  headers: { ETag: '"w"', "Transfer-Encoding": "chunked" },
  body: CONTENT,
  ...(asked.number === 0 && asked.path.includes("cut") && { cutAt: 300_000 }),
});

Deno.test("http: without ranges, a server is refused, or downloaded once", async () => {
  const server = await refused(whole, "does not support 'range'");
  assertEquals(server.asked.length, 1);
  const file = await Deno.makeTempFile();
  try {
    for (const download of ["memory", file]) {
      await using server = new FaultyServer(CONTENT, whole);
      const source = disk(server, { download });
      assertEquals((await readAll(source)).subarray(0, SIZE), CONTENT);
      assertEquals(server.asked.length, 1);
    }
    assertEquals(await Deno.readFile(file), CONTENT);
    // An existing file is not overwritten.
    await refused(whole, "is not empty", { download: file });
    assertEquals((await Deno.stat(file)).size, SIZE);
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("http: a broken download starts over, and leaves nothing incomplete", async () => {
  await using server = new FaultyServer(CONTENT, whole);
  const url = `${server.url}/cut`;
  const file = await Deno.makeTempFile();
  try {
    const described = { driver: "http", url, download: file };
    await using image = await openImage({ driver: "raw", file: described });
    assertEquals(await image.read(0, SIZE), CONTENT);
    assertEquals(server.asked.length, 2);
    await Deno.truncate(file);
    server.respond = (_, right) => ({
      ...right,
      status: 200,
      headers: {},
      body: CONTENT,
      cutAt: 300_000,
    });
    await assertRejects(() => openImage({ ...described, retries: 1 }));
    assertEquals((await Deno.stat(file)).size, 0);
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("http: a download respects its limit, and must have a known end", async () => {
  const given = { download: "memory", "download-limit": "2M" };
  await refused(whole, "larger than the 2097152 bytes", given);
  const sized: Respond = (_, right) => ({
    ...right,
    status: 200,
    headers: {},
    body: CONTENT,
  });
  await refused(sized, "larger than the 2097152 bytes", given);
  const endless: Respond = (_, right) => ({
    ...right,
    status: 200,
    headers: { "Content-Length": "" },
    body: CONTENT,
    cutAt: SIZE,
  });
  await refused(endless, "nor its end", { download: "memory" });
});

Deno.test("http: a read can be aborted by its signal", async () => {
  await using server = new FaultyServer(CONTENT);
  await using image = await openImage(disk(server));
  server.respond = (_, right) => ({ ...right, isSilent: true });
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 20);
  const error = await assertRejects(
    () => image.read(MIB, 4096, { signal: controller.signal }),
    BlockError,
  );
  assertEquals(error.code, "ECANCELED");
  await assertRejects(
    () => openImage(disk(server), { signal: AbortSignal.timeout(20) }),
    BlockError,
  );
});
