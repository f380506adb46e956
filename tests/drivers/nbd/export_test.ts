import { assertEquals } from "@std/assert";
import {
  type MetaContext,
  type Run,
  runsOf,
  selectContexts,
} from "../../../drivers/nbd/export.ts";

/** A context with these runs, from the start of a disk. */
function contextOf(runs: Run[], join: MetaContext["join"]): MetaContext {
  return {
    name: "test:runs",
    join,
    run(offset, length) {
      let start = 0;
      for (const run of runs) {
        const end = start + run.length;
        if (offset < end) {
          return { length: Math.min(length, end - offset), flags: run.flags };
        }
        start = end;
      }
      throw new Error("past the end");
    },
  };
}

const RUNS = [[1000, 0], [24, 3], [1024, 3], [100, 0], [412, 3], [600, 3]]
  .map(([length, flags]) => ({ length, flags }));
const SIZE = 3160;

Deno.test("runsOf() merges equal neighbours", async () => {
  const context = contextOf(RUNS, (a, b) => a & b);
  const found = await runsOf(context, 0, SIZE, 10);
  assertEquals(found.map(({ length, flags }) => [length, flags]), [
    [1000, 0],
    [1048, 3],
    [100, 0],
    [1012, 3],
  ]);
  assertEquals((await runsOf(context, 0, SIZE, 2)).length, 2);
  assertEquals(await runsOf(context, 1100, 50, 1), [{ length: 50, flags: 3 }]);
});

Deno.test("runsOf() returns whole blocks, joining the flags of mixed ones", async () => {
  const both = (a: number, b: number) => a & b;
  const either = (a: number, b: number) => a | b;
  const lengths = async (join: MetaContext["join"]) =>
    (await runsOf(contextOf(RUNS, join), 0, SIZE, 10, 512))
      .map(({ length, flags }) => [length, flags]);
  assertEquals(await lengths(both), [[1024, 0], [1024, 3], [512, 0], [600, 3]]);
  assertEquals(await lengths(either), [[512, 0], [SIZE - 512, 3]]);
});

Deno.test("selectContexts() knows names and, for listing, namespaces", () => {
  const contexts = ["base:allocation", "qemu:dirty-bitmap:a", "qemu:x"]
    .map((name) => ({ ...contextOf([], Math.max), name }));
  const cases: [query: string, list: boolean, ids: number[]][] = [
    ["base:allocation", false, [0]],
    ["base:", false, []],
    ["base:", true, [0]],
    ["qemu:", true, [1, 2]],
    ["qemu:dirty-bitmap:", true, [1]],
    ["qemu:dirty-bitmap:a", false, [1]],
    ["qemu:dirty-bitmap:b", true, []],
    ["nonsense", true, []],
  ];
  for (const [query, list, ids] of cases) {
    assertEquals(selectContexts(contexts, query, list), ids, query);
  }
});
