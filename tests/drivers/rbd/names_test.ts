/**
 * File names and options of RBD images, without a cluster.
 *
 * @module
 */
import { assertEquals, assertThrows } from "@std/assert";
import { parseRbdFilename, rbdName } from "../../../drivers/rbd/names.ts";
import { parseParent, parsePlace } from "../../../drivers/rbd/place.ts";
import { BlockError } from "../../../mod.ts";

const SETTINGS = "=keyvalue-pairs";

Deno.test("names of images are parsed as in QEMU", () => {
  const names: { [name: string]: Record<string, string> } = {
    "rbd:p/i": { pool: "p", namespace: "", image: "i" },
    "rbd:p/n/i": { pool: "p", namespace: "n", image: "i" },
    "rbd:p//i": { pool: "p", namespace: "", image: "i" },
    "rbd:p/n/i/j": { pool: "p", namespace: "n", image: "i/j" },
    "rbd:p/i@s": { pool: "p", namespace: "", image: "i", snapshot: "s" },
    "rbd:p/i@": { pool: "p", namespace: "", image: "i", snapshot: "" },
    "rbd:/i": { pool: "", namespace: "", image: "i" },
    "rbd:p/": { pool: "p", namespace: "", image: "" },
    "rbd:p/i:conf=/etc/c.conf:id=me": {
      pool: "p",
      namespace: "",
      image: "i",
      conf: "/etc/c.conf",
      user: "me",
    },
    "rbd:p/i@s:mon_host=a\\:1:key=AQ\\=\\=": {
      pool: "p",
      namespace: "",
      image: "i",
      snapshot: "s",
      [SETTINGS]: '["mon_host","a:1","key","AQ=="]',
    },
    // Only the first `=` has a meaning, and an empty value is none.
    "rbd:p/i:key=AQ==:x=": {
      pool: "p",
      namespace: "",
      image: "i",
      [SETTINGS]: '["key","AQ==","x",""]',
    },
    "rbd:\\p\\/q/i\\@s\\:": { pool: "p/q", namespace: "", image: "i@s:" },
    "rbd:p/i\\": { pool: "p", namespace: "", image: "i\\" },
    // Any `@` begins a snapshot, even one in a setting.
    "rbd:p/i:key=a@s": {
      pool: "p",
      namespace: "",
      image: "i:key=a",
      snapshot: "s",
    },
  };
  for (const [name, options] of Object.entries(names)) {
    assertEquals(parseRbdFilename(name), options, name);
  }
});

Deno.test("incomplete names are refused", () => {
  const names: { [name: string]: string } = {
    "rbd:": "Pool name is required",
    "rbd:p": "Pool name is required",
    "rbd:p\\/i": "Pool name is required",
    "x:p/i": "File name must start with 'rbd:'",
    "rbd:p/i:": "conf option  has no value",
    "rbd:p/i:a": "conf option a has no value",
    "rbd:p/i:a=b:c": "conf option c has no value",
  };
  for (const [name, message] of Object.entries(names)) {
    const error = assertThrows(() => parseRbdFilename(name), BlockError);
    assertEquals([error.message, error.code], [message, "EINVAL"], name);
  }
});

Deno.test("a generated name leads to the same image", () => {
  for (const text of ["i", "a/b", "a@b", "a:b=c", "\\", "a\\:"]) {
    const name = { pool: text, namespace: text, image: text, snapshot: text };
    assertEquals(parseRbdFilename(rbdName(name)), name, text);
  }
  assertEquals(rbdName({ pool: "p", image: "i" }), "rbd:p/i");
});

Deno.test("options are those of QEMU's driver, in both spellings", () => {
  const place = parsePlace({
    pool: "p",
    image: "i",
    namespace: "n",
    snapshot: 5,
    user: "me",
    conf: "c",
    "key-secret": "k",
    server: [{ host: "a", port: "1" }, { host: "::1", port: 2 }],
    "auth-client-required": ["cephx", "none"],
  });
  const expected = {
    pool: "p",
    image: "i",
    namespace: "n",
    snapshot: "5",
    user: "me",
    conf: "c",
    keySecret: "k",
    monitors: "a:1;[::1]:2",
    auth: "cephx;none",
    settings: [],
  };
  assertEquals(place, expected);
  const flat = {
    pool: "p",
    image: "i",
    "server.0.host": "a",
    "server.0.port": "1",
    "server.1.host": "b",
    "server.1.port": "2",
    "auth-client-required.0": "none",
  };
  const { monitors, auth } = parsePlace(flat);
  assertEquals([monitors, auth], ["a:1;b:2", "none"]);
  const named = parsePlace({ filename: "rbd:p/i:a=b:c=d" });
  assertEquals(named.settings, [["a", "b"], ["c", "d"]]);
});

Deno.test("options that make no sense are refused, in QEMU's words", () => {
  const image = { pool: "p", image: "i" };
  const wrong: [options: object, message: string][] = [
    [{ image: "i" }, "Parameter 'pool' is missing"],
    [{ pool: "p" }, "Parameter 'image' is missing"],
    [{ ...image, foo: 1 }, "Parameter 'foo' is unexpected"],
    [
      { ...image, server: "x" },
      "Invalid parameter type for 'server', expected: array",
    ],
    [
      { ...image, server: ["x"] },
      "Invalid parameter type for 'server.0', expected: object",
    ],
    [
      { ...image, server: [{ host: "h" }] },
      "Parameter 'server.0.port' is missing",
    ],
    [
      { ...image, server: [{ port: "1" }] },
      "Parameter 'server.0.host' is missing",
    ],
    [
      { ...image, server: [{ host: "h", port: "1", to: "2" }] },
      "Parameter 'server.0.to' is unexpected",
    ],
    [
      { ...image, "auth-client-required": "none" },
      "Invalid parameter type for 'auth-client-required', expected: array",
    ],
    [
      { ...image, "auth-client-required": ["foo"] },
      "Parameter 'auth-client-required' does not accept value 'foo'; it must " +
      "be one of cephx, none",
    ],
    [
      { ...image, encrypt: { format: "luks", "key-secret": "k" } },
      "Ceph's own encryption ('encrypt') is not supported: use the format " +
      "'luks' on the image",
    ],
    [
      { filename: "rbd:p/i", image: "j" },
      "Option 'image' cannot be used with a file name",
    ],
    [
      { ...image, image: {} },
      "Invalid parameter type for 'image', expected: string",
    ],
    [{ ...image, image: "a\0b" }, "'image' holds a zero byte"],
  ];
  for (const [options, message] of wrong) {
    const error = assertThrows(() => parsePlace({ ...options }), BlockError);
    assertEquals(error.message, message);
  }
});

Deno.test("the parent of a clone is a snapshot", () => {
  const namespace = undefined;
  const parent = { pool: "p", namespace, image: "i", snapshot: "s" };
  assertEquals(parseParent("p/i@s"), parent);
  assertEquals(parseParent("rbd:p/n/i@s"), { ...parent, namespace: "n" });
  for (const text of ["p/i", "p/i@", "p/i@s:conf=x", "i@s", ""]) {
    assertThrows(() => parseParent(text), BlockError);
  }
});
