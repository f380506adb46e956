import { assertEquals } from "@std/assert";
import { openImage } from "../../../mod.ts";
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

  override async writev(offset: number, iov: Uint8Array[]): Promise<void> {
    this.steps.push(partAt(offset));
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
