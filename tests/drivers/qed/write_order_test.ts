/** When what becomes durable in QED images. @module */
import { assert, assertEquals } from "@std/assert";
import { openImage } from "../../../mod.ts";
import { PowerLog } from "../../power_log.ts";
import { newImage, stackOf } from "../format_tests.ts";
import { storeOf } from "../qcow2/bytes.ts";

const MIB = 1024 * 1024;
const SMALL = { size: MIB, cluster_size: 4096, table_size: 1 };
const NEED_CHECK = 2;

/** Fields of the header, whose first byte is enough. */
const AT = { features: 16, autoclear: 32, l1Offset: 40, size: 48 } as const;

/** The results of a check of a file. */
async function corruptionsOf(file: Uint8Array<ArrayBuffer>): Promise<number> {
  await using image = await openImage(stackOf("qed", file), {
    purpose: "check",
    readOnly: true,
  });
  return (await image.check()).corruptions;
}

/** An image with an entry that points nowhere, marked as needing a check. */
async function damagedImage(): Promise<Uint8Array<ArrayBuffer>> {
  const log = new PowerLog(await newImage("qed", SMALL));
  {
    await using image = await openImage({ driver: "qed", file: log });
    await image.write(0, new Uint8Array(4096).fill(1));
  }
  const bytes = log.durable;
  const view = new DataView(bytes.buffer);
  const l1 = Number(view.getBigUint64(AT.l1Offset, true));
  const l2 = Number(view.getBigUint64(l1, true));
  view.setBigUint64(l2 + 8, 2n ** 40n, true);
  bytes[AT.features] |= NEED_CHECK;
  assertEquals(await corruptionsOf(bytes), 1);
  return bytes;
}

Deno.test("unknown features are durably cleared before anything is written", async () => {
  const bytes = await newImage("qed", SMALL);
  bytes[AT.autoclear] = 5;
  const log = new PowerLog(bytes);
  await using _ = await openImage({ driver: "qed", file: log });
  assertEquals(log.durable[AT.autoclear], 0);
});

Deno.test("the mark is removed only once the image needs no check", async () => {
  for (const purpose of ["check", undefined] as const) {
    const log = new PowerLog(await damagedImage());
    {
      await using image = await openImage({ driver: "qed", file: log }, {
        purpose,
      });
      await image.check({ repair: { leaks: true, corruptions: true } });
      assertEquals(log.durable[AT.features] & NEED_CHECK, 0);
      assertEquals(await corruptionsOf(log.durable), 0);
    }
    for (const { what, file } of log.reordered()) {
      if (file[AT.features] & NEED_CHECK) continue;
      assertEquals(await corruptionsOf(file), 0, what);
    }
  }
});

Deno.test("closing an image durably removes its mark", async () => {
  const log = new PowerLog(await newImage("qed", SMALL));
  {
    await using image = await openImage({ driver: "qed", file: log });
    await image.write(0, new Uint8Array(4096).fill(1));
    await image.flush();
    assertEquals(log.durable[AT.features] & NEED_CHECK, NEED_CHECK);
  }
  assertEquals(log.durable[AT.features] & NEED_CHECK, 0);
});

Deno.test("a mark is removed only once all that was written can be found", async () => {
  const log = new PowerLog(await newImage("qed", SMALL));
  {
    await using image = await openImage({ driver: "qed", file: log });
    await image.write(0, new Uint8Array(4096).fill(1));
    await image.flush();
    await image.write(4096, new Uint8Array(4096).fill(2));
  }
  let closed = 0;
  for (const { what, file } of log.reordered()) {
    if (file[AT.features] & NEED_CHECK) continue;
    await using left = await openImage(stackOf("qed", file));
    const [first] = await left.read(0, 1);
    if (first !== 1) continue;
    closed++;
    assertEquals([what, ...await left.read(4096, 1)], [what, 2]);
  }
  assertEquals(closed, 1);
});

Deno.test("unallocated zeroes set the mark, and are durable with FUA", async () => {
  const log = new PowerLog(await newImage("qed", SMALL));
  {
    await using image = await openImage({ driver: "qed", file: log });
    await image.node.writeZeroes!(0, 4096, { fua: true });
    assertEquals(log.durable[AT.features] & NEED_CHECK, NEED_CHECK);
  }
  const overlay = new PowerLog(await newImage("qed", SMALL));
  const below = storeOf(new Uint8Array(MIB).fill(7));
  const backing = { driver: "raw", file: { driver: "memory", store: below } };
  await using image = await openImage({
    driver: "qed",
    file: overlay,
    backing,
  });
  await image.node.writeZeroes!(0, 4096, { fua: true });
  await using left = await openImage({
    ...stackOf("qed", overlay.durable),
    backing,
  });
  assertEquals(
    [...await left.read(4095, 2)],
    [0, 7],
  );
});

Deno.test("check() sees what is not written yet", async () => {
  const log = new PowerLog(await newImage("qed", SMALL));
  await using image = await openImage({ driver: "qed", file: log });
  await image.write(0, new Uint8Array(4096).fill(1));
  const { leaks, allocatedClusters } = await image.check();
  assertEquals([leaks, allocatedClusters], [0, 1]);
});

Deno.test("a new size, and a new backing file, are durable at once", async () => {
  const log = new PowerLog(
    await newImage("qed", { ...SMALL, backing_file: "one" }),
  );
  const name = async (file: Uint8Array<ArrayBuffer>) => {
    const options = { purpose: "info", readOnly: true } as const;
    await using image = await openImage(stackOf("qed", file), options);
    return (await image.info()).backingFile;
  };
  await using image = await openImage({
    driver: "qed",
    file: log,
    backing: null,
  });
  await image.resize(2 * MIB);
  const { buffer } = log.durable;
  const size = new DataView(buffer).getBigUint64(AT.size, true);
  assertEquals(size, BigInt(2 * MIB));
  // The second feature field is not in the header's sector, and not stored
  // along with it.
  const names = ["one", "another", "b".repeat(900)];
  for (const one of names.slice(1)) {
    await image.node.image!.changeBacking!(one, "raw");
    assertEquals(await name(log.durable), one);
  }
  for (const { what, file } of log.reordered()) {
    const found = await name(file);
    assert(names.includes(found!), `${what}: ${found}`);
  }
});
