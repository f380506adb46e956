import { assertEquals } from "@std/assert";
import { openImage } from "../../../mod.ts";
import { PowerLog } from "../../power_log.ts";
import { MIB, newImage, PLACE } from "./bytes.ts";

const BLOCK = 2 * MIB;
/** Bytes of the bitmap that a block begins with. */
const BITMAP = 512;

/** A file that notes what is done to it, in words. */
class WrittenFile extends PowerLog {
  readonly steps: string[] = [];

  /** What of an image lies at an offset, in a word. */
  #partAt(offset: number): string {
    if (offset < PLACE.table) return "header";
    if (offset < PLACE.end) return "table";
    const inBlock = (offset - PLACE.end) % (BITMAP + BLOCK);
    if (inBlock >= BITMAP) return "data";
    return offset + 512 === this.size ? "footer" : "bitmap";
  }

  override async writev(offset: number, iov: Uint8Array[]): Promise<void> {
    await super.writev(offset, iov);
    this.steps.push(this.#partAt(offset));
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

Deno.test("the table follows blocks that are durable, with their bitmaps and a footer", async () => {
  const file = new WrittenFile(await newImage());
  await using image = await openImage({ driver: "vpc", file });
  await image.flush();
  assertEquals(file.takeSteps(), "flush");
  for (const at of [BLOCK + 5000, 0]) {
    await image.write(at, new Uint8Array(10).fill(1));
    assertEquals(file.takeSteps(), "data");
    await image.flush();
    assertEquals(file.takeSteps(), "footer bitmap flush table flush");
    assertEquals(footerOf(file.durable), footerOf(await newImage()));
  }
  await image.write(100, new Uint8Array(10).fill(2));
  await image.flush();
  assertEquals(file.takeSteps(), "data flush");
});

function footerOf(bytes: Uint8Array): string {
  return new TextDecoder("latin1").decode(bytes.subarray(-512, -504));
}
