/** Leases: of two writers, only one gets in. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { createImage, type Image, openImage } from "../../../mod.ts";
import { failure, Service } from "./service.ts";

const KIB = 1024;
const LEASE = "disk/lease";

const delay = (milliseconds: number) =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

async function make(service: Service): Promise<void> {
  const { secrets } = service;
  const stack = service.stack("disk", { "object-size": "64k" });
  await createImage("s3", stack, { size: 1 << 20 }, { secrets });
}

async function open(
  service: Service,
  options: Record<string, unknown> = {},
  openOptions: Record<string, unknown> = {},
): Promise<Image> {
  const { secrets } = service;
  const file = service.stack("disk", options);
  return await openImage({ driver: "raw", file }, {
    secrets,
    readOnly: false,
    ...openOptions,
  });
}

Deno.test("a second writer is refused until the first one has closed", async () => {
  await using service = new Service();
  await make(service);
  const first = await open(service);
  const error = await assertRejects(
    () => open(service),
    BlockError,
    "Another program is writing to it",
  );
  assertEquals(error.code, "EAGAIN");
  await assertRejects(() => make(service), BlockError, "Another program");
  await first.close();
  assert(!service.objects.has(LEASE));
  await using _ = await open(service);
});

Deno.test("of many writers at once, one gets the lease", async () => {
  await using service = new Service();
  await make(service);
  const attempts = Array.from({ length: 8 }, () => open(service));
  const outcomes = await Promise.allSettled(attempts);
  const winners = outcomes.filter(({ status }) => status === "fulfilled");
  assertEquals(winners.length, 1);
  await (winners[0] as PromiseFulfilledResult<Image>).value.close();
});

Deno.test("of many that find an expired lease, one gets it", async () => {
  await using service = new Service();
  await make(service);
  const body = new TextEncoder().encode('{"owner":"gone","seconds":30}');
  await service.put(LEASE, body);
  await assertRejects(() => open(service), BlockError, "Another program");
  service.clock = 31_000;
  const attempts = Array.from({ length: 8 }, () => open(service));
  const outcomes = await Promise.allSettled(attempts);
  const winners = outcomes.filter(({ status }) => status === "fulfilled");
  assertEquals(winners.length, 1);
  await (winners[0] as PromiseFulfilledResult<Image>).value.close();
});

Deno.test("a malformed lease never expires", async () => {
  await using service = new Service();
  await make(service);
  await service.put(LEASE, new TextEncoder().encode("something else"));
  service.clock = 1e9;
  const error = await assertRejects(() => open(service), BlockError);
  assertEquals(error.hint?.includes(LEASE), true);
});

Deno.test("a lease is renewed, and a writer that has lost it stops", async () => {
  await using service = new Service();
  await make(service);
  const image = await open(service, { lease: 1 });
  await delay(1500);
  await image.write(0, new Uint8Array(512).fill(1));
  await image.flush();
  // The service is unreachable for longer than the lease lasts.
  service.fault = () => failure(503, "SlowDown");
  await image.write(512, new Uint8Array(512).fill(2));
  await assertRejects(() => image.flush(), BlockError, "The lease has ended");
  service.fault = undefined;
  await assertRejects(
    () => image.write(0, new Uint8Array(1)),
    BlockError,
    "The lease has ended",
  );
  service.clock = 2000;
  const other = await open(service);
  await image.close().catch(() => {});
  // The other writer's lease is not taken away.
  assert(service.objects.has(LEASE));
  const bytes = await other.read(0, 1024);
  assertEquals([bytes[0], bytes[511], bytes[512]], [1, 1, 0]);
  await other.close();
});

Deno.test("a lease taken over by another writer is noticed at the renewal", async () => {
  await using service = new Service();
  await make(service);
  const image = await open(service, { lease: 1 });
  await service.put(LEASE, new TextEncoder().encode("theirs"));
  await delay(600);
  await assertRejects(
    () => image.write(0, new Uint8Array(512)),
    BlockError,
    "The lease has ended",
  );
  await image.close().catch(() => {});
  assert(service.objects.has(LEASE));
});

Deno.test("a service that ignores conditions is refused, unless told otherwise", async () => {
  await using service = new Service();
  await make(service);
  service.checksConditions = false;
  const error = await assertRejects(
    () => open(service),
    BlockError,
    "ignores conditions",
  );
  assertEquals(error.code, "ENOTSUP");
  assert(!service.objects.has(LEASE));
  await using image = await open(service, { lease: 0 });
  await image.write(0, new Uint8Array(512).fill(1));
  await image.flush();
  await image.write(0, new Uint8Array(512).fill(2));
});

Deno.test("lost responses do not lose the lease", async () => {
  await using service = new Service();
  await make(service);
  let failures = 3;
  service.fault = async ({ method, key }, answer) => {
    if (method !== "PUT" || key !== LEASE || failures-- <= 0) return undefined;
    await answer();
    return failure(500, "InternalError");
  };
  await using _ = await open(service);
});

Deno.test("a lease that has ended before its answer arrives is renewed at once", async () => {
  await using service = new Service();
  await make(service);
  let failures = 1;
  service.fault = async ({ method, key }, answer) => {
    if (method !== "PUT" || key !== LEASE || failures-- <= 0) return undefined;
    await answer();
    await delay(1200);
    return failure(500, "InternalError");
  };
  await using image = await open(service, { lease: 1 });
  await image.write(0, new Uint8Array(512).fill(1));
  await image.flush();
});

Deno.test("a service that compares tags without quotes is supported", async () => {
  await using service = new Service();
  await make(service);
  service.comparesBareTags = true;
  await using image = await open(service, { lease: 0 });
  for (const value of [1, 2, 3]) {
    await image.write(0, new Uint8Array(1 << 20).fill(value));
    await image.flush();
  }
});

Deno.test("a reader is refused a disk that is being written, unless it force-shares", async () => {
  await using service = new Service();
  const { secrets } = service;
  const file = service.stack("disk", { "object-size": "64k" });
  await createImage("qcow2", file, { size: 1 << 20 }, { secrets });
  const stack = { driver: "qcow2", file: service.stack("disk") };
  const writer = await openImage(stack, { secrets, readOnly: false });
  const openOptions = { secrets, readOnly: true };
  await assertRejects(
    () => openImage(stack, openOptions),
    BlockError,
    "Another program is writing to it",
  );
  await using reader = await openImage(stack, {
    ...openOptions,
    forceShare: true,
  });
  await writer.write(0, new Uint8Array(64 * KIB).fill(1));
  await writer.close();
  assertEquals(reader.size, 1 << 20);
});

Deno.test("s3backer's mark keeps us away, and ours keeps s3backer away", async () => {
  await using service = new Service();
  const options = { layout: "s3backer", size: "1M", "object-size": "4k" };
  const mark = "disks3backer-mounted";
  const image = await open(service, options);
  assert(service.objects.has(mark));
  await image.write(0, new Uint8Array(1).fill(1));
  await image.close();
  assert(!service.objects.has(mark));
  const { headers, body } = service.objects.get("disk00000000")!;
  assertEquals(body.length, 4096);
  assertEquals(headers, {
    "content-type": "application/x-s3backer-block",
    "x-amz-meta-s3backer-blocksize": "4096",
    "x-amz-meta-s3backer-filesize": String(1 << 20),
  });
  // Its first block contains the sizes.
  await using again = await open(service, { layout: "s3backer" }, {
    readOnly: true,
  });
  assertEquals(again.size, 1 << 20);
  await service.put(mark, new TextEncoder().encode("host\n20260101T000000Z\n"));
  service.clock = 1e9;
  await assertRejects(() => open(service, options), BlockError, "s3backer");
});
