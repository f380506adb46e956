/** Objects: read in ranges of one version, stored whole. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { streamToFile } from "../../../core/jobs/stream_file.ts";
import {
  createImage,
  type Image,
  MemoryStore,
  openImage,
  streamImage,
} from "../../../mod.ts";
import { failure, type Fault, Service } from "./service.ts";

const MIB = 1024 ** 2;

/** Bytes that differ from block to block. */
function pattern(length: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let i = 0; i < words.length; i++) words[i] = i * 2654435761;
  return new Uint8Array(words.buffer, 0, length);
}

async function openKey(
  service: Service,
  key: string,
  options: Record<string, unknown> = {},
): Promise<Image> {
  const { secrets } = service;
  const file = service.stack(key, options);
  return await openImage({ driver: "raw", file }, { readOnly: true, secrets });
}

/**
 * Respond with `response` to the first `times` requests that `matches` selects.
 */
function firstTimes(
  times: number,
  matches: (asked: Parameters<Fault>[0]) => boolean,
  response: () => Response,
): Fault {
  return (asked) => matches(asked) && times-- > 0 ? response() : undefined;
}

Deno.test("an object is read in ranges, each byte once", async () => {
  await using service = new Service();
  const bytes = pattern(3 * MIB + 512);
  await service.put("disk", bytes);
  await using image = await openKey(service, "disk");
  assertEquals(image.size, bytes.length);
  assertEquals(
    await image.read(1_000_001, 5),
    bytes.slice(1_000_001, 1_000_006),
  );
  assertEquals(await image.read(0, bytes.length), bytes);
  assert(service.count(/GET disk/) < 12, service.log.join("\n"));
});

Deno.test("an empty object is an empty disk", async () => {
  await using service = new Service();
  await service.put("empty", new Uint8Array());
  await using image = await openKey(service, "empty");
  assertEquals(image.size, 0);
});

Deno.test("what several nodes read from an object is fetched once", async () => {
  await using service = new Service();
  const bytes = pattern(2 * MIB);
  await service.put("disk", bytes);
  await using first = await openKey(service, "disk");
  assertEquals(await first.read(0, 2 * MIB), bytes);
  const before = service.count(/GET disk$/);
  for (let at = 0; at < 20; at++) {
    await using other = await openKey(service, "disk");
    assertEquals(await other.read(MIB, 512), bytes.slice(MIB, MIB + 512));
  }
  // Each checks whether the object is still the same.
  assertEquals(service.count(/GET disk$/) - before, 20);
  await service.put("disk", new Uint8Array(MIB));
  await using changed = await openKey(service, "disk");
  assertEquals(changed.size, MIB);
  assertEquals((await changed.read(MIB / 2, 1))[0], 0);
});

Deno.test("an object that changes is an error, never a mixture", async () => {
  await using service = new Service();
  await service.put("disk", pattern(2 * MIB));
  await using image = await openKey(service, "disk", { readahead: 0 });
  await image.read(0, 512);
  await service.put("disk", new Uint8Array(2 * MIB));
  for (const offset of [MIB, MIB, 2 * MIB - 512]) {
    await assertRejects(() => image.read(offset, 512), BlockError, "changed");
  }
});

const TRANSIENT_FAULTS: { readonly [name: string]: () => Response } = {
  "503 SlowDown": () => failure(503, "SlowDown"),
  "500 InternalError": () => failure(500, "InternalError"),
  "400 RequestTimeout": () => failure(400, "RequestTimeout"),
  "429 without a body": () => new Response(null, { status: 429 }),
  "a short body": () =>
    new Response(new Uint8Array(1000), {
      status: 206,
      headers: { etag: '"other"', "content-range": `bytes 0-65535/${MIB}` },
    }),
};

for (const [name, response] of Object.entries(TRANSIENT_FAULTS)) {
  Deno.test(`a read is retried after ${name}`, async () => {
    await using service = new Service();
    const bytes = pattern(MIB);
    await service.put("disk", bytes);
    service.fault = firstTimes(2, ({ key }) => key === "disk", response);
    await using image = await openKey(service, "disk");
    assertEquals(await image.read(0, MIB), bytes);
  });
}

const PERMANENT_FAULTS: [string, () => Response, string][] = [
  ["403 AccessDenied", () => failure(403, "AccessDenied"), "denies these keys"],
  ["an unknown error", () => failure(418, "Teapot"), "418: Teapot: It is so &"],
  ["no XML", () => new Response("oh \x1b[31m", { status: 400 }), "status 400"],
  [
    "another region",
    () =>
      new Response(null, {
        status: 301,
        headers: {
          "x-amz-bucket-region": "sa-east-1",
          location: "http://elsewhere.invalid/",
        },
      }),
    "is in the region 'sa-east-1', not in 'eu-test-1'",
  ],
  [
    "a range that makes no sense",
    () =>
      new Response("x", {
        status: 206,
        headers: { etag: '"1"', "content-range": "bytes 5-5/6" },
      }),
    "has sent 'bytes 5-5/6'",
  ],
];

for (const [name, response, message] of PERMANENT_FAULTS) {
  Deno.test(`${name}: one line, and no retries`, async () => {
    await using service = new Service();
    service.fault = ({ key }) => key === "disk" ? response() : undefined;
    const error = await assertRejects(
      () => openKey(service, "disk"),
      BlockError,
      message,
    );
    assertEquals(error.message.split("\n").length, 1);
    assertEquals(service.count(/GET disk$/), 1);
  });
}

Deno.test("a service that never responds is given up on", async () => {
  await using service = new Service();
  const answers: (() => void)[] = [];
  service.fault = () =>
    new Promise((resolve) => answers.push(() => resolve(undefined)));
  const signal = AbortSignal.timeout(300);
  await assertRejects(
    () =>
      openImage(service.stack("disk"), {
        readOnly: true,
        secrets: service.secrets,
        signal,
      }),
    BlockError,
    "Operation canceled",
  );
  for (const answer of answers) answer();
});

Deno.test("a service that stops responding is retried, and then given up on", async () => {
  await using service = new Service();
  await service.put("disk", pattern(MIB));
  const options = { timeout: 1, readahead: 0 };
  await using image = await openKey(service, "disk", options);
  const answers: (() => void)[] = [];
  let silent = 1;
  service.fault = () =>
    silent-- <= 0
      ? undefined
      : new Promise((resolve) => answers.push(() => resolve(undefined)));
  await image.read(MIB - 512, 512);
  silent = Infinity;
  const error = await assertRejects(
    () => openKey(service, "disk", { timeout: 1, retries: 0 }),
    BlockError,
  );
  assertEquals(error.code, "ETIMEDOUT");
  for (const answer of answers) answer();
});

/** Store `bytes` as a raw image. */
async function store(
  service: Service,
  key: string,
  bytes: Uint8Array,
  options: Record<string, unknown> = {},
  signal?: AbortSignal,
): Promise<void> {
  const memory = new MemoryStore();
  memory.write(0, bytes);
  const file = { driver: "memory", store: memory };
  await using source = await openImage({ driver: "raw", file });
  const target = service.stack(key, options);
  const { secrets } = service;
  await streamToFile("raw", target, [source.node], {
    secrets,
    signal,
    fill: true,
  });
}

const PART = 5 * MIB;

for (const length of [0, 512, PART - 512, PART, PART + 512, 3 * PART]) {
  Deno.test(`${length} bytes are stored, in several parts if necessary`, async () => {
    await using service = new Service();
    const bytes = pattern(length);
    await store(service, "new", bytes, { "part-size": "5M" });
    assertEquals(service.objects.get("new")?.body, bytes);
    assertEquals([...service.objects.keys()], ["new"]);
    assertEquals(service.uploads.size, 0);
    const parts = length > PART ? Math.ceil(length / PART) : 0;
    assertEquals(service.count(/PUT new \?partNumber/), parts);
  });
}

Deno.test("qcow2 is stored front to back, without reading the target", async () => {
  await using service = new Service();
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 64 * MIB });
  await using source = await openImage({ driver: "qcow2", file });
  await source.write(20 * MIB, pattern(MIB));
  const { secrets } = service;
  await streamToFile("qcow2", service.stack("q"), [source.node], { secrets });
  assertEquals(
    service.objects.get("q")!.body,
    await new Response(streamImage("qcow2", source.node)).bytes(),
  );
  await using image = await openImage(
    { driver: "qcow2", file: service.stack("q") },
    { readOnly: true, secrets },
  );
  assertEquals(await image.read(20 * MIB, MIB), pattern(MIB));
});

const BROKEN: [string, Fault][] = [
  [
    "a part is refused",
    ({ query }) =>
      query.get("partNumber") === "2" ? failure(400, "InvalidPart") : undefined,
  ],
  [
    "the final response is an error in spite of its status 200",
    ({ method, query }) =>
      method === "POST" && query.has("uploadId")
        ? new Response(`<Error><Code>NoSuchPart</Code></Error>`)
        : undefined,
  ],
];

for (const [name, fault] of BROKEN) {
  Deno.test(`${name}: nothing is left behind, and the old object stays`, async () => {
    await using service = new Service();
    await service.put("disk", pattern(512));
    service.fault = fault;
    await assertRejects(
      () => store(service, "disk", pattern(3 * PART), { "part-size": PART }),
      BlockError,
    );
    assertEquals(service.objects.get("disk")?.body, pattern(512));
    assertEquals(service.uploads.size, 0);
    assertEquals([...service.objects.keys()], ["disk"]);
  });
}

Deno.test("an aborted upload leaves nothing", async () => {
  await using service = new Service();
  const stop = new AbortController();
  service.fault = ({ query }) => {
    if (query.get("partNumber") === "2") stop.abort();
    return undefined;
  };
  const error = await assertRejects(
    () => {
      const options = { "part-size": PART };
      return store(service, "disk", pattern(4 * PART), options, stop.signal);
    },
    BlockError,
  );
  assertEquals(error.code, "ECANCELED");
  assertEquals([...service.objects.keys()], []);
  assertEquals(service.uploads.size, 0);
});

Deno.test("requests of an upload are retried if their responses are lost", async () => {
  await using service = new Service();
  let failures = 0;
  const lost = new Set<string>();
  service.fault = async ({ method, query }, answer) => {
    const part = query.get("partNumber") ?? "";
    const isLost = method === "PUT" || (method === "POST" && part === "");
    const what = `${method} ${part}`;
    if (!isLost || query.has("uploads") || lost.has(what)) return undefined;
    lost.add(what);
    failures++;
    await answer();
    return failure(500, "InternalError");
  };
  await store(service, "new", pattern(3 * PART), { "part-size": PART });
  assertEquals(service.objects.get("new")?.body, pattern(3 * PART));
  await store(service, "small", pattern(512));
  assertEquals(service.objects.get("small")?.body, pattern(512));
  assert(failures > 4);
});

for (const checks of [true, false]) {
  Deno.test(`of two writers of an object one fails, ${checks ? "" : "also "}where conditions are ${checks ? "checked" : "ignored at the end"}`, async () => {
    await using service = new Service();
    const looked = Promise.withResolvers<void>();
    let looks = 0;
    service.fault = async ({ method, query }) => {
      // Neither may see what the other one has stored.
      if (method === "HEAD" && ++looks === 2) looked.resolve();
      if (method === "PUT") await looked.promise;
      const isEnd = method === "POST" && query.has("uploadId");
      // As Ceph's gateway does.
      if (!checks) service.checksConditions = !isEnd;
      return undefined;
    };
    const outcomes = await Promise.allSettled(
      [1, 2].map((fill) =>
        store(service, "disk", new Uint8Array(3 * PART).fill(fill), {
          "part-size": PART,
        })
      ),
    );
    const states = outcomes.map(({ status }) => status).sort();
    assertEquals(states, ["fulfilled", "rejected"]);
    const winner = outcomes.findIndex(({ status }) => status === "fulfilled");
    const body = service.objects.get("disk")!.body;
    assert(body.every((byte) => byte === winner + 1));
    assertEquals(service.uploads.size, 0);
  });
}

Deno.test("an object that another program created meanwhile is not replaced", async () => {
  await using service = new Service();
  let isMade = false;
  service.fault = async ({ method }) => {
    if (method === "PUT" && !isMade) {
      isMade = true;
      await service.put("disk", pattern(1024));
    }
    return undefined;
  };
  const error = await assertRejects(
    () => store(service, "disk", new Uint8Array(512)),
    BlockError,
  );
  assertEquals(error.code, "EBUSY");
  assertEquals(service.objects.get("disk")?.body, pattern(1024));
});

Deno.test("an object cannot be opened for writing, nor created empty", async () => {
  await using service = new Service();
  await service.put("disk", pattern(512));
  const { secrets } = service;
  const file = service.stack("disk");
  await assertRejects(
    () => openImage({ driver: "raw", file }, { secrets, readOnly: false }),
    BlockError,
    "cannot be changed",
  );
  await assertRejects(
    () => createImage("raw", file, { size: MIB }, { secrets }),
    BlockError,
    "is written whole",
  );
  assertEquals(service.objects.get("disk")?.body, pattern(512));
});
