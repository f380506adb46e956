import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import {
  BlockError,
  createImage,
  type Gate,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { FaultyServer, numbered, type Respond } from "./server.ts";
import { TempDir } from "../../qemu.ts";

const CONTENT = numbered(1024 * 1024);

function redirectTo(location: string, status = 302): Respond {
  return (_, right) => ({
    ...right,
    status,
    headers: { Location: location },
    body: new Uint8Array(),
  });
}

Deno.test("http: redirects are followed, and remembered", async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    await using target = new FaultyServer(CONTENT);
    await using first = new FaultyServer(
      CONTENT,
      redirectTo(`${target.url}/there`, status),
    );
    await using image = await openImage(new URL(`${first.url}/disk`), {
      readOnly: true,
    });
    assertEquals(await image.read(0, image.size), CONTENT);
    assertEquals(first.asked.length, 1);
    // The redirect no longer works: the first server knows a new one.
    target.respond = (asked, right) =>
      asked.path === "/there" ? { ...right, status: 403 } : right;
    first.respond = redirectTo(`${target.url}/elsewhere`);
  }
});

Deno.test("http: an expired redirect is requested again", async () => {
  await using target = new FaultyServer(CONTENT);
  await using first = new FaultyServer(CONTENT, redirectTo(`${target.url}/1`));
  await using image = await openImage({ driver: "http", url: `${first.url}/` });
  target.respond = (asked, right) =>
    asked.path === "/1" ? { ...right, status: 403 } : right;
  first.respond = redirectTo(`${target.url}/2`);
  assertEquals(await image.read(0, image.size), CONTENT);
  assertEquals(first.asked.length, 2);
});

Deno.test("http: authorisation, cookies and headers stay with their server", async () => {
  await using target = new FaultyServer(CONTENT);
  await using first = new FaultyServer(CONTENT);
  first.respond = (asked, right) =>
    asked.path === "/disk"
      ? redirectTo("/here")(asked, right)
      : redirectTo(`${target.url}/there`)(asked, right);
  const url = `http://us%20er:p%40ss@127.0.0.1:${first.port}/disk`;
  await using image = await openImage({
    driver: "http",
    url,
    cookie: "a=b",
    headers: { "X-Key": "sesame" },
    "headers-secret": "more",
  }, { secrets: { more: "X-More: salt\nX-Yet: pepper\n" } });
  await image.read(500_000, 10);
  for (const { headers } of first.asked) {
    assertEquals(headers.get("authorization"), `Basic ${btoa("us er:p@ss")}`);
    assertEquals(headers.get("cookie"), "a=b");
    assertEquals(headers.get("x-key"), "sesame");
    assertEquals(headers.get("x-more"), "salt");
    assertEquals(headers.get("x-yet"), "pepper");
  }
  assertEquals(first.asked.length, 2);
  for (const { headers } of target.asked) {
    for (const name of ["authorization", "cookie", "x-key", "x-more"]) {
      assertEquals(headers.get(name), null);
    }
  }
  assertEquals(image.filename, `${first.url}/disk`);
});

Deno.test("http: secrets authorise, and mistakes in them are named", async () => {
  await using server = new FaultyServer(CONTENT);
  const secrets = {
    ...{ pass: "geheim ü", typed: "geheim ü\n" },
    ...{ token: "abc.def\n", jar: "a=1; b=2" },
  };
  const headersFor = async (options: Record<string, string>) => {
    const url = `${server.url}/`;
    await using _ = await openImage({ driver: "http", url, ...options }, {
      secrets,
    });
    return server.asked.at(-1)!.headers;
  };
  const bytes = new TextEncoder().encode("me:geheim ü");
  for (const id of ["pass", "typed"]) {
    const basic = await headersFor({ username: "me", "password-secret": id });
    assertEquals(
      basic.get("authorization"),
      `Basic ${btoa(String.fromCharCode(...bytes))}`,
    );
  }
  const bearer = await headersFor({ "bearer-secret": "token" });
  assertEquals(bearer.get("authorization"), "Bearer abc.def");
  assertEquals(
    (await headersFor({ "cookie-secret": "jar" })).get("cookie"),
    "a=1; b=2",
  );
  const mistakes: [Record<string, string>, string][] = [
    [{ "bearer-secret": "token", username: "me" }, "not both"],
    [{ "password-secret": "pass" }, "of no use without username"],
    [{ "password-secret": "none", username: "me" }, "No secret with id 'none'"],
    [
      { cookie: "a=1", "cookie-secret": "jar" },
      "both cookie and cookie secret",
    ],
    [{ "headers.Range": "bytes=0-1" }, "the driver's own"],
    [{ "headers.a b": "c" }, "cannot be sent so"],
    [{ "headers-secret": "pass" }, "a line without a colon"],
    [{ username: "a:b" }, "no colon"],
    [{ "proxy-username": "a" }, "HTTPS_PROXY"],
    [{ "proxy-password-secret": "pass" }, "HTTPS_PROXY"],
    [{ sslverify: "off" }, "the runtime verifies"],
    [{ timeout: "10001" }, "too large or negative"],
    [{ readahead: "1000" }, "not a multiple of 512"],
    [{ nonsense: "1" }, "doesn't support the option 'nonsense'"],
  ];
  for (const [options, words] of mistakes) {
    await assertRejects(() => headersFor(options), BlockError, words);
  }
});

Deno.test("http: redirects that lead nowhere are refused", async () => {
  const cases: [location: string, words: string][] = [
    ["file:///etc/passwd", "cannot be followed"],
    ["data:text/plain,x", "cannot be followed"],
    ["http://", "cannot be followed"],
    ["/disk", "in circles"],
  ];
  for (const [location, words] of cases) {
    await using server = new FaultyServer(CONTENT, redirectTo(location));
    const error = await assertRejects(
      () => openImage(`${server.url}/disk`),
      BlockError,
      words,
    );
    assertEquals(server.asked.length <= 21, true, error.message);
  }
  await using server = new FaultyServer(
    CONTENT,
    (_, right) => ({ ...right, status: 302 }),
  );
  await assertRejects(
    () => openImage(`${server.url}/disk`),
    BlockError,
    "cannot be followed",
  );
});

/** The bytes of an overlay that names `backing`. */
async function overlayOf(backing: string): Promise<Uint8Array<ArrayBuffer>> {
  await using folder = new TempDir();
  const file = folder.file("overlay");
  await createImage("qcow2", file, {
    size: CONTENT.length,
    backing_file: backing,
    backing_fmt: "raw",
  });
  return await Deno.readFile(file);
}

/** A server of an overlay, and of anything else that is requested. */
async function serverOf(backing: string): Promise<FaultyServer> {
  const overlay = await overlayOf(backing);
  const server = new FaultyServer(CONTENT);
  server.respond = (asked) => {
    const isOverlay = asked.path.includes("overlay");
    server.content = isOverlay ? overlay : CONTENT;
    return server.rightAnswer(asked);
  };
  return server;
}

async function opens(server: FaultyServer, gate?: Gate): Promise<boolean> {
  const source = new URL(`${server.url}/a/overlay.qcow2?v=1`);
  try {
    await using image = await openImage(source, { gate });
    assertEquals(await image.read(0, CONTENT.length), CONTENT);
    return true;
  } catch (error) {
    const { code, message } = error as BlockError;
    assertEquals(code, "EACCES", message);
    assertStringIncludes(message, "is not permitted");
    return false;
  }
}

Deno.test("http: a remote image may name only files in its own folder", async () => {
  const names: [name: string, isPermitted: boolean][] = [
    ["base.raw", true],
    ["b/base.raw", true],
    ["./b/../base.raw", true],
    ["../base.raw", false],
    ["../a/base.raw", true],
    ["%2e%2e/base.raw", false],
    ["..%2fbase.raw", false],
    ["b%2F..%2F..%2Fbase.raw", false],
    ["..%5cbase.raw", false],
    ["/etc/hostname", false],
    ["file:/etc/hostname", false],
    ["http://127.0.0.1:1/a/base.raw", false],
    ["http://localhost:PORT/a/base.raw", false],
    ["http://127.0.0.1:PORT/a/base.raw", true],
    ["http://127.0.0.1:PORT/ab/base.raw", false],
    ["HTTP://127.0.0.1:PORT/a/base.raw", false],
    ["nbd://127.0.0.1:PORT/a/base.raw", false],
    ['json:{"driver":"null-co"}', false],
  ];
  for (const [name, isPermitted] of names) {
    const port = (await serverOf("x")).port;
    await using server = await serverOf(name.replace("PORT", String(port)));
    // The port is known only once the server is running.
    const again = await overlayOf(name.replace("PORT", String(server.port)));
    const { rightAnswer } = server;
    server.respond = (asked) => {
      server.content = asked.path.includes("overlay") ? again : CONTENT;
      return rightAnswer.call(server, asked);
    };
    assertEquals(await opens(server), isPermitted, name);
    assertEquals(await opens(server, "deny"), false, name);
  }
});

Deno.test("http: gates: a URL prefix, and a function", async () => {
  await using server = await serverOf("../base.raw");
  assertEquals(await opens(server, { below: server.url }), true);
  assertEquals(await opens(server, { below: `${server.url}/` }), true);
  assertEquals(await opens(server, { below: `${server.url}/a` }), false);
  assertEquals(await opens(server, { below: "/" }), false);
  const names: string[] = [];
  const gate: Gate = ({ filename }) => names.push(filename) > 0;
  assertEquals(await opens(server, gate), true);
  // A query belongs to one object only.
  assertEquals(names, [`${server.url}/a/../base.raw`]);
});

Deno.test("http: a local image names no URL, unless the gate permits it", async () => {
  await using server = new FaultyServer(CONTENT);
  await using folder = new TempDir();
  const file = folder.file("overlay.qcow2");
  await createImage("qcow2", file, {
    size: CONTENT.length,
    backing_file: `${server.url}/base.raw`,
    backing_fmt: "raw",
  });
  await assertRejects(() => openImage(file), BlockError, "is not permitted");
  assertEquals(server.asked.length, 0);
  for (const gate of ["allow", { below: server.url }] as const) {
    await using image = await openImage(file, { gate });
    assertEquals(await image.read(0, CONTENT.length), CONTENT);
    assertEquals(image.readOnly, false);
  }
});

Deno.test("http: a file that an image names cannot be redirected past the gate", async () => {
  await using other = new FaultyServer(CONTENT);
  await using server = await serverOf("base.raw");
  const { respond } = server;
  const redirected = (to: string) => {
    server.respond = (asked, right) =>
      asked.path.endsWith("/base.raw")
        ? redirectTo(to)(asked, right)
        : respond(asked, right);
  };
  redirected(`${other.url}/a/base.raw`);
  assertEquals(await opens(server), false);
  assertEquals(other.asked.length, 0);
  redirected("/elsewhere.raw");
  assertEquals(await opens(server), false);
  redirected("/a/other.raw");
  assertEquals(await opens(server), true);
  redirected(`${other.url}/a/base.raw`);
  assertEquals(await opens(server, "allow"), true);
  const asked: string[] = [];
  const gate: Gate = ({ filename }) => {
    asked.push(filename);
    return !filename.startsWith(other.url);
  };
  assertEquals(await opens(server, gate), false);
  assertEquals(asked, [`${server.url}/a/base.raw`, `${other.url}/a/base.raw`]);
});

Deno.test("http: names with secrets are not written into images", async () => {
  const names = [
    "http://user:pass@127.0.0.1/base.raw",
    "https://user@127.0.0.1/base.raw",
    "https://h/base.raw?X-Amz-Signature=1234",
    "https://h/base.raw?sig=1&sv=2",
    "https://h/base.raw?access_token=x",
    "https://h/base.raw?e=9f86d081884c7d659a2feaa0c55ad015",
    'json:{"driver":"http","url":"http://a:b@h/x"}',
    'json:{"driver":"http","url":"http://h/x","cookie":"a=b"}',
    'json:{"driver":"http","url":"http://h/x","headers.X-Key":"a"}',
  ];
  for (const backing_file of names) {
    const store = new MemoryStore();
    const error = await assertRejects(
      () =>
        createImage("qcow2", { driver: "memory", store }, {
          size: 1024,
          backing_file,
          backing_fmt: "raw",
        }),
      BlockError,
      "whoever reads the image",
    );
    for (const secret of ["user", ":pass", "1234", "9f86", "a:b"]) {
      assertEquals(error.message.includes(secret), false, error.message);
    }
    assertEquals(store.size, 0);
  }
  await createImage("qcow2", { driver: "memory", store: new MemoryStore() }, {
    size: 1024,
    backing_file: "https://h/base.raw?version=2",
    backing_fmt: "raw",
  });
});
