import { assertEquals } from "@std/assert";
import { openNode } from "../../core/open.ts";
import { readEntries } from "../../core/paged_table.ts";
import { MemoryStore } from "../../mod.ts";

Deno.test("readEntries() visits only what the file has, whatever a header claims", async () => {
  const store = new MemoryStore();
  store.write(0, new Uint8Array(40).fill(1));
  const file = await openNode({ driver: "memory", store });
  const visited = async (offset: number, length: number) => {
    const found: number[] = [];
    const table = { offset, length, entrySize: 4 };
    await readEntries(file, table, (view, at, index) => {
      found.push(index, view.getUint32(at));
    });
    return found;
  };
  const whole = 0x01010101;
  assertEquals(await visited(32, 2 ** 40), [0, whole, 1, whole]);
  assertEquals(await visited(34, 2 ** 40), [0, whole, 1, 0x01010000]);
  assertEquals(await visited(32, 4), [0, whole]);
  assertEquals(await visited(40, 2 ** 40), []);
  assertEquals(await visited(2 ** 50, 2 ** 40), []);
});
