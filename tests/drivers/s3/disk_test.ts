/** Disks in numbered blocks. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { openNode, openProtocol } from "../../../core/open.ts";
import { createImage, type Image, openImage } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";
import { failure, Service } from "./service.ts";

const KIB = 1024;
const MIB = 1024 ** 2;

for (const objectSize of [64 * KIB + 512, 4 * MIB]) {
  conformance(`s3 in blocks of ${objectSize}`, {
    async open(size) {
      const service = new Service();
      const { secrets } = service;
      const stack = service.stack("disk", { "object-size": objectSize });
      await createImage("s3", stack, { size }, { secrets });
      const open = () => openNode(service.stack("disk"), { secrets });
      return {
        node: await open(),
        reopen: open,
        dispose: () => service[Symbol.asyncDispose](),
      };
    },
  });
}

conformance("qcow2 on s3 in blocks", {
  async open(size) {
    const service = new Service();
    const { secrets } = service;
    const file = service.stack("disk", { "object-size": 64 * KIB });
    await createImage("qcow2", file, { size }, { secrets });
    const open = () => openNode({ driver: "qcow2", file }, { secrets });
    return {
      node: await open(),
      reopen: open,
      dispose: () => service[Symbol.asyncDispose](),
    };
  },
});

/** A new disk, open for writing. */
async function made(
  service: Service,
  options: Record<string, unknown> = {},
  size = MIB,
): Promise<Image> {
  const { secrets } = service;
  const stack = service.stack("disk", { "object-size": "64k", ...options });
  await createImage("s3", stack, { size }, { secrets });
  return await open(service, options);
}

async function open(
  service: Service,
  options: Record<string, unknown> = {},
  readOnly = false,
): Promise<Image> {
  const { secrets } = service;
  const file = service.stack("disk", options);
  return await openImage({ driver: "raw", file }, { readOnly, secrets });
}

Deno.test("blocks have nbdkit's names, and blocks of zeroes do not exist", async () => {
  await using service = new Service();
  {
    await using image = await made(service, {}, 64 * MIB);
    await image.write(17 * 64 * KIB + 5, new Uint8Array([1]));
    await image.write(18 * 64 * KIB, new Uint8Array(64 * KIB));
    await image.write(1023 * 64 * KIB, new Uint8Array(64 * KIB).fill(2));
  }
  assertEquals([...service.objects.keys()].sort(), [
    "disk/0000000000000011",
    "disk/00000000000003ff",
    "disk/layout.json",
  ]);
  const block = service.objects.get("disk/0000000000000011")!.body;
  assertEquals(block.length, 64 * KIB);
  assertEquals([block[4], block[5], block[6]], [0, 1, 0]);
});

Deno.test("a disk of nbdkit's is read and written with its own block size", async () => {
  await using service = new Service();
  await service.put("disk/0000000000000001", new Uint8Array(4096).fill(7));
  const sizes = { size: 12288, "object-size": 4096 };
  {
    await using image = await open(service, sizes);
    assertEquals(image.size, 12288);
    assertEquals((await image.read(4096, 4096)).every((it) => it === 7), true);
    await image.write(8000, new Uint8Array(500).fill(8));
    await assertRejects(() => image.write(12288, new Uint8Array(512)));
  }
  assertEquals([...service.objects.keys()].sort(), [
    "disk/0000000000000001",
    "disk/0000000000000002",
  ]);
  for (const options of [{ size: 4096 }, { "object-size": 4096 }]) {
    await assertRejects(
      () => open(service, options),
      BlockError,
      "Both 'size' and 'object-size' are needed",
    );
  }
});

Deno.test("a block of another size is refused", async () => {
  await using service = new Service();
  await service.put("disk/0000000000000000", new Uint8Array(4096).fill(1));
  const wrong = { size: 8192, "object-size": 8192 };
  await using image = await open(service, wrong, true);
  await assertRejects(
    () => image.read(0, 512),
    BlockError,
    "does not have the size 8192",
  );
});

Deno.test("options that contradict the disk, or make no sense, are refused", async () => {
  await using service = new Service();
  await using _ = await made(service);
  const cases: [Record<string, unknown>, string][] = [
    [{ "object-size": "4k" }, "was created with"],
    [{ size: "2M" }, "was created with"],
    [{ key: "x", size: "1M", "object-size": 1000 }, "multiple of 512"],
    [{ key: "x", size: "1M", "object-size": "64M" }, "multiple of 512"],
    [{ lease: 100000 }, "a number from 0 to 3600"],
    [{ layout: "other" }, "does not accept value 'other'"],
    [{ nonsense: 1 }, "nonsense"],
  ];
  for (const [options, message] of cases) {
    await assertRejects(() => open(service, options), BlockError, message);
  }
});

Deno.test("discarded blocks are removed, and show as holes", async () => {
  await using service = new Service();
  await using image = await made(service);
  await image.write(0, new Uint8Array(MIB).fill(1));
  await image.flush();
  assertEquals(service.count(/PUT disk\/0/), 16);
  await image.discard(100_000, 500_000);
  await image.flush();
  const there = [...service.objects.keys()].filter((key) => /\/0/.test(key));
  assertEquals(there.length, 16 - 7);
  const extents = [];
  for await (const { offset, length, zero } of image.extents()) {
    extents.push([offset, length, zero]);
  }
  assertEquals(extents, [
    [0, 128 * KIB, false],
    [128 * KIB, 448 * KIB, true],
    [576 * KIB, 448 * KIB, false],
  ]);
});

Deno.test("a large empty disk costs few requests", async () => {
  await using service = new Service();
  await using image = await made(service, { "object-size": "1M" }, 2 ** 43);
  await image.write(2 ** 42, new Uint8Array(512).fill(1));
  await image.flush();
  service.log.length = 0;
  let data = 0;
  for await (const { length, zero } of image.extents()) {
    if (!zero) data += length;
  }
  assertEquals(data, MIB);
  assert(service.log.length <= 2, service.log.join("\n"));
});

Deno.test("listings of several pages are joined", async () => {
  await using service = new Service();
  service.pageSize = 3;
  await service.put("disk/zzz", new Uint8Array(1));
  await using image = await made(service);
  const data = new Uint8Array(MIB).map((_, i) => i >> 16);
  await image.write(0, data);
  await image.flush();
  await using again = await open(service, { lease: 0 });
  assertEquals(await again.read(0, MIB), data);
});

Deno.test("the service's clock is authoritative, not this computer's", async () => {
  await using service = new Service();
  service.clock = 3600_000;
  {
    await using image = await made(service);
    await image.write(0, new Uint8Array(512).fill(1));
  }
  await using reader = await open(service, {}, true);
  assertEquals((await reader.read(0, 1))[0], 1);
});

Deno.test("a listing without an end is an error", async () => {
  await using service = new Service();
  await using _ = await made(service);
  service.fault = ({ key, method }) =>
    key === "" && method === "GET"
      ? new Response(
        "<ListBucketResult><IsTruncated>true</IsTruncated><Contents>" +
          "<Key>disk/other</Key></Contents></ListBucketResult>",
      )
      : undefined;
  await using reader = await open(service, { lease: 0 });
  await assertRejects(() => reader.read(0, 1), BlockError, "no end");
});

Deno.test("creating a disk again removes its old content", async () => {
  await using service = new Service();
  {
    await using image = await made(service);
    await image.write(0, new Uint8Array(MIB).fill(1));
  }
  await using image = await made(service, { "object-size": "4k" }, 8192);
  assertEquals(await image.read(0, 8192), new Uint8Array(8192));
  const keys = [...service.objects.keys()].sort();
  assertEquals(keys, ["disk/layout.json", "disk/lease"]);
});

Deno.test("neither an object nor a disk is created over the other", async () => {
  await using service = new Service();
  await service.put("disk", new Uint8Array(512));
  await assertRejects(() => made(service), BlockError, "There is an object");
});

Deno.test("a reader notices that another has written", async () => {
  await using service = new Service();
  {
    await using image = await made(service);
    await image.write(0, new Uint8Array(MIB).fill(1));
  }
  await using reader = await open(service, { readahead: 0 }, true);
  await reader.read(0, 512);
  service.clock = 2000;
  // A writer that knows nothing of leases.
  const key = "disk/0000000000000003";
  await service.put(key, new Uint8Array(64 * KIB).fill(2));
  await reader.read(2 * 64 * KIB, 512);
  await assertRejects(
    () => reader.read(3 * 64 * KIB, 512),
    BlockError,
    "has changed",
  );
  await assertRejects(
    async () => {
      service.objects.delete("disk/0000000000000004");
      await reader.read(4 * 64 * KIB, 512);
    },
    BlockError,
    "has changed",
  );
});

Deno.test("a write that conflicts with another program's fails, and is not mixed in", async () => {
  await using service = new Service();
  const image = await made(service);
  await image.write(0, new Uint8Array(100).fill(1));
  await image.flush();
  const theirs = new Uint8Array(64 * KIB).fill(9);
  await service.put("disk/0000000000000000", theirs);
  await image.write(100, new Uint8Array(100).fill(2));
  const error = await assertRejects(() => image.flush(), BlockError);
  assertEquals(error.code, "EBUSY");
  await image.close().catch(() => {});
  assertEquals(service.objects.get("disk/0000000000000000")?.body, theirs);
});

Deno.test("what a failed flush did not store is stored by the next one", async () => {
  await using service = new Service();
  await using image = await made(service);
  await image.write(0, new Uint8Array(MIB).fill(1));
  service.fault = ({ method, key }) =>
    method === "PUT" && key.endsWith("5") ? failure(507, "Full") : undefined;
  await assertRejects(() => image.flush(), BlockError, "507: Full");
  service.fault = undefined;
  await image.flush();
  assertEquals(
    service.objects.get("disk/0000000000000005")?.body.length,
    65536,
  );
});

Deno.test("lost responses to writes do no harm", async () => {
  await using service = new Service();
  await using image = await made(service);
  const seen = new Set<string>();
  service.fault = async ({ method, key }, answer) => {
    if (method === "GET" || seen.has(`${method} ${key}`)) return undefined;
    seen.add(`${method} ${key}`);
    await answer();
    return failure(503, "SlowDown");
  };
  const data = new Uint8Array(MIB).map((_, i) => (i * i) >> 8);
  await image.write(0, data);
  await image.flush();
  await image.write(1000, new Uint8Array(MIB - 2000));
  await image.discard(0, 256 * KIB);
  await image.flush();
  await using again = await open(service, { lease: 0 });
  data.fill(0, 0, 256 * KIB).fill(0, 256 * KIB, MIB - 1000);
  assertEquals(await again.read(0, MIB), data);
});

Deno.test("random requests leave the same content as in memory", async () => {
  await using service = new Service();
  let random = 12345;
  const below = (limit: number) => {
    random = (Math.imul(random, 1103515245) + 12345) >>> 0;
    return Math.floor(random / 2 ** 32 * limit);
  };
  const expected = new Uint8Array(MIB);
  const options = { "object-size": 8 * KIB };
  let image = await made(service, options);
  for (let round = 0; round < 300; round++) {
    const offset = below(MIB);
    const length = 1 + below(Math.min(MIB - offset, 40_000));
    const kind = below(10);
    if (kind < 5) {
      const bytes = new Uint8Array(length).fill(1 + below(255));
      expected.set(bytes, offset);
      await Promise.all([
        image.write(offset, bytes),
        image.read(below(MIB / 2), 1000),
      ]);
    } else if (kind < 7) {
      expected.fill(0, offset, offset + length);
      await image.writeZeroes(offset, length);
    } else if (kind < 9) {
      assertEquals(
        await image.read(offset, length),
        expected.slice(offset, offset + length),
      );
    } else if (below(3) === 0) {
      await image.close();
      image = await open(service, options);
    } else await image.flush();
  }
  assertEquals(await image.read(0, MIB), expected);
  await image.close();
  await using again = await open(service, options, true);
  assertEquals(await again.read(0, MIB), expected);
});

Deno.test("memory stays bounded while a disk is filled without a flush", async () => {
  await using service = new Service();
  await using image = await made(service, { "object-size": "1M" }, 100 * MIB);
  for (let at = 0; at < 80; at++) {
    await image.write(at * MIB, new Uint8Array(MIB).fill(at + 1));
  }
  // What does not fit in memory has been stored.
  assert(service.count(/PUT disk\/0/) >= 40, `${service.count(/PUT/)}`);
  assertEquals((await image.read(3 * MIB, 1))[0], 4);
});

Deno.test("a protocol's size grows with writes, and is kept", async () => {
  await using service = new Service();
  const { secrets } = service;
  const stack = service.stack("disk", { "object-size": 4096 });
  await createImage("s3", stack, { size: 0 }, { secrets });
  const file = await openProtocol(stack, { secrets, resize: true });
  await file.writev!(10_000, [new Uint8Array(1000).fill(1)]);
  assertEquals(file.size, 11_000);
  await file.truncate!(10_500);
  await file.truncate!(20_000);
  await file.close();
  const again = await openProtocol(stack, { secrets, readOnly: true });
  assertEquals(again.size, 20_000);
  const bytes = new Uint8Array(2000);
  await again.readv(9_500, [bytes]);
  assertEquals(bytes.indexOf(1), 500);
  assertEquals(bytes.lastIndexOf(1), 999);
  await again.close();
});
