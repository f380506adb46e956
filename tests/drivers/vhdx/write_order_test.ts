import { assert, assertEquals, assertRejects } from "@std/assert";
import { viewOf } from "../../../core/bytes.ts";
import { isEqual } from "../../../core/runtime.ts";
import { putChecksum } from "../../../drivers/vhdx/crc32c.ts";
import { NO_GUID } from "../../../drivers/vhdx/guid.ts";
import { type Header, Headers } from "../../../drivers/vhdx/headers.ts";
import { Log } from "../../../drivers/vhdx/log.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { MIB, newImage, PLACE } from "./bytes.ts";

/** The part of an image at an offset, in one word. */
function partAt(offset: number): string {
  if (offset < PLACE.regions) return "header";
  if (offset < PLACE.bat) return "log";
  return offset < PLACE.metadata ? "table" : "data";
}

/** A file that records what is done to it, in words. */
class WrittenFile extends PowerLog {
  readonly steps: string[] = [];
  /** Called before each write to a part, with its bytes. */
  onWrite?: (part: string, offset: number, bytes: Uint8Array) => unknown;

  override async writev(offset: number, iov: Uint8Array[]): Promise<void> {
    const part = partAt(offset);
    await this.onWrite?.(part, offset, iov[0]);
    this.steps.push(part);
    await super.writev(offset, iov);
  }

  override async flush(): Promise<void> {
    this.steps.push("flush");
    await super.flush();
  }

  /** The words since the last call. */
  takeSteps(): string {
    return this.steps.splice(0).join(" ");
  }
}

/** A change of the table: each step is durable before the next begins. */
const TABLE_CHANGE = "log flush header flush table flush header flush";

Deno.test("metadata is changed through the log, and data is durable before it", async () => {
  const file = new WrittenFile(await newImage());
  await using image = await openImage({ driver: "vhdx", file });
  await image.read(0, 10);
  await image.flush();
  assertEquals(file.takeSteps(), "flush");
  await image.write(0, new Uint8Array(10));
  // A child must be able to tell that its parent has changed.
  assertEquals(file.takeSteps(), "header flush data");
  await image.flush();
  assertEquals(file.takeSteps(), TABLE_CHANGE);
  await image.write(5, new Uint8Array(10));
  await image.flush();
  assertEquals(file.takeSteps(), "data flush");
  await image.write(3 * MIB - 5, new Uint8Array(10));
  await image.flush();
  assertEquals(file.takeSteps(), `data ${TABLE_CHANGE}`);
});

Deno.test("more changes of a table than fit into the log are made in turns", async () => {
  // Each sector of the table has the entries of 512 blocks.
  const sectors = 130;
  const size = sectors * 512 * MIB;
  const file = new WrittenFile(await newImage({ size }));
  {
    await using image = await openImage({ driver: "vhdx", file });
    for (let i = 0; i < sectors; i++) {
      await image.node.writev!(i * 512 * MIB, [new Uint8Array([i])]);
    }
    file.takeSteps();
    await image.flush();
    const tables = (count: number) => "table ".repeat(count);
    const change = (count: number) =>
      `log flush header flush ${tables(count)}flush header flush`;
    assertEquals(file.takeSteps(), `${change(126)} ${change(sectors - 126)}`);
  }
  await using image = await openImage({ driver: "vhdx", file });
  for (let i = 0; i < sectors; i++) {
    assertEquals((await image.read(i * 512 * MIB, 1))[0], i);
  }
});

Deno.test("a log's changes are durable before the header declares the log empty", async () => {
  const random = new Random(3);
  const log = new WrittenFile(await newImage());
  {
    await using image = await openImage({ driver: "vhdx", file: log });
    await image.write(0, new Uint8Array(10));
  }
  let replays = 0;
  for (let moment = 0; moment <= log.now; moment++) {
    const file = new WrittenFile(log.cut(moment, random));
    await using _ = await openImage({ driver: "vhdx", file });
    const steps = file.takeSteps();
    if (steps === "") continue;
    assertEquals(steps, "table flush header flush");
    replays++;
  }
  assertEquals(replays > 0, true);
});

/** The current header of a file. */
async function headerOf(bytes: Uint8Array): Promise<Header> {
  return (await Headers.read(new PowerLog(bytes))).current;
}

Deno.test("a header torn in the middle leaves the one before it, or is whole", async () => {
  const file = new WrittenFile(await newImage());
  let headers = 0;
  file.onWrite = async (part, offset, bytes) => {
    if (part !== "header") return;
    headers++;
    const before = await headerOf(file.durable);
    // The checksum is new, and so is part of what it covers.
    const torn = file.durable.slice();
    torn.set(bytes.subarray(0, 24), offset);
    const { bytes: found } = await headerOf(torn);
    assert(isEqual(found, before.bytes) || isEqual(found, bytes));
  };
  await using image = await openImage({ driver: "vhdx", file });
  for (let block = 0; block < 3; block++) {
    await image.write(block * MIB, new Uint8Array(10));
    await image.flush();
  }
  assertEquals(headers, 7);
});

Deno.test("a log entry stays whole while a header refers to it, also after a failure", async () => {
  const file = new WrittenFile(await newImage());
  let failures = 0;
  file.onWrite = (part) => {
    if (part !== "table" || failures === 3) return;
    failures++;
    throw new BlockError("EIO");
  };
  {
    await using image = await openImage({ driver: "vhdx", file });
    await image.write(0, new Uint8Array(10));
    while (failures < 3) await assertRejects(() => image.flush(), BlockError);
  }
  let active = 0;
  for (const { what, file: bytes } of file.reordered()) {
    const left = new PowerLog(bytes);
    const headers = await Headers.read(left);
    if (headers.current.logGuid === NO_GUID) continue;
    active++;
    assertEquals([what, (await new Log(left, headers).pending()).length], [
      what,
      1,
    ]);
  }
  assert(active > 3);
});

Deno.test("a file has the size that its log demands before the header declares the log empty", async () => {
  const file = new WrittenFile(await newImage());
  let active: Uint8Array | undefined;
  file.onWrite = (part) => {
    if (part === "table") active = file.durable.slice();
  };
  {
    await using image = await openImage({ driver: "vhdx", file });
    await image.write(0, new Uint8Array(10));
  }
  const entry = active!.subarray(PLACE.log);
  const view = viewOf(entry);
  const lastSize = 56;
  const size = active!.length + MIB;
  view.setBigUint64(lastSize, BigInt(size), true);
  putChecksum(entry.subarray(0, view.getUint32(8, true)), 4);
  const left = new WrittenFile(active!);
  left.truncate = (size) => {
    left.steps.push("truncate");
    return PowerLog.prototype.truncate.call(left, size);
  };
  await using _ = await openImage({ driver: "vhdx", file: left });
  assertEquals(left.takeSteps(), "table truncate flush header flush");
  assertEquals(left.size, size);
});
