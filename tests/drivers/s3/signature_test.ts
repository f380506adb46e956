/** Signatures, by AWS's own examples and with odd names. @module */
import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { openImage } from "../../../mod.ts";
import { BUCKET, KEYS, Service } from "./service.ts";
import { sign } from "./signature.ts";

const EMPTY =
  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/** The examples in AWS's documentation for S3, all of 24 May 2013. */
const EXAMPLES = [
  {
    target: "/test.txt",
    more: [["range", "bytes=0-9"]],
    signature:
      "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
  },
  {
    target: "/?lifecycle",
    more: [],
    signature:
      "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
  },
  {
    target: "/?max-keys=2&prefix=J",
    more: [],
    signature:
      "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
  },
];

for (const { target, more, signature } of EXAMPLES) {
  Deno.test(`the tests' own signature of ${target} equals AWS's example`, async () => {
    const headers = new Headers([
      ["host", "examplebucket.s3.amazonaws.com"],
      ["x-amz-content-sha256", EMPTY],
      ["x-amz-date", "20130524T000000Z"],
      ...more as [string, string][],
    ]);
    const request = { method: "GET", target, headers, bodyHash: EMPTY };
    const names = [...headers.keys()].sort();
    const secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const own = await sign(request, names, secret, "20130524", "us-east-1");
    assertEquals(own, signature);
  });
}

Deno.test("keys with odd characters are signed and sent unchanged", async () => {
  await using service = new Service();
  const keys = [
    "with space",
    "a+b=c&d",
    "per%20cent%",
    "umlaut ü 日本 🦕",
    "(brackets)!'*~",
    "what?#hash",
    "//two//slashes/",
    "back\\slash",
    'quo"te<>',
    "x".repeat(1000),
  ];
  for (const key of keys) {
    await service.put(key, new TextEncoder().encode(key));
    const { secrets } = service;
    await using image = await openImage(
      { driver: "raw", file: service.stack(key) },
      { readOnly: true, secrets },
    );
    const bytes = await image.read(0, image.size);
    assertEquals(new TextDecoder().decode(bytes).replace(/\0+$/, ""), key);
  }
});

Deno.test("a key that a URL cannot hold is refused", async () => {
  await using service = new Service();
  for (const key of ["a/../b", ".", "..", "", "\ud800", "x".repeat(1001)]) {
    await assertRejects(
      () => openImage(service.stack(key), { readOnly: true }),
      BlockError,
      "key",
    );
  }
  assertEquals(service.log, []);
});

Deno.test("mistakes in keys, buckets and endpoints are named", async () => {
  await using service = new Service();
  const open = (options: Record<string, unknown>, s3key = KEYS.secret) => () =>
    openImage(service.stack("x", options), {
      readOnly: true,
      secrets: { s3key },
    });
  const cases: [() => Promise<unknown>, string][] = [
    [open({}, "other"), "does not belong to the access key"],
    [open({ "access-key": "other" }), "does not know the access key"],
    [open({ bucket: "nothing" }), "There is no bucket 'nothing'"],
    [open({}), `There is no object 'x' in the bucket '${BUCKET}'`],
    [open({ "secret-key-secret": "none" }), "No secret with id 'none'"],
    [open({ "secret-key-secret": undefined }), "needs 'secret-key-secret'"],
    [open({ bucket: "a/b" }), "is not the name of a bucket"],
    [open({ region: "a/b" }), "is not the name of a region"],
    [open({ "endpoint-url": "ftp://x" }), "must begin with http"],
    [open({ "endpoint-url": "http://me:pw@x" }), "must not hold a user"],
  ];
  for (const [opening, message] of cases) {
    const error = await assertRejects(opening, BlockError, message);
    assertEquals(error.message.includes(KEYS.secret), false);
    assertEquals(error.message.includes(":pw"), false);
  }
});
