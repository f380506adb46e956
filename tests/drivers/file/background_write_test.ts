import { assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { beginWrite } from "../../../drivers/file/background_write.ts";
import type { Libc } from "../../../drivers/file/libc.ts";

/** A library that writes as many bytes of each request as `takes` says. */
function stingyLibc(takes: number[]) {
  const requests: { address: bigint; length: number; offset: number }[] = [];
  const library = {
    aio_write(block: Uint8Array) {
      const view = new DataView(block.buffer);
      requests.push({
        address: view.getBigUint64(16, true),
        length: Number(view.getBigUint64(24, true)),
        offset: Number(view.getBigInt64(128, true)),
      });
      return 0;
    },
    aio_error: () => 0,
    aio_return: () => takes[requests.length - 1],
  };
  return { library: library as unknown as Libc, requests };
}

Deno.test("a background write goes on where the last one fell short", () => {
  const { library, requests } = stingyLibc([100, 1, 899]);
  const write = beginWrite(library, 3, 5000, new Uint8Array(1000))!;
  assertEquals(requests.length, 1);
  write.finish();
  assertEquals(
    requests.map(({ length, offset }) => [length, offset]),
    [[1000, 5000], [900, 5100], [899, 5101]],
  );
  const [first, ...others] = requests;
  assertEquals(
    others.map(({ address }) => Number(address - first.address)),
    [100, 101],
  );
});

Deno.test("a background write that gets no further says so, again and again", () => {
  const { library, requests } = stingyLibc([100, 0]);
  const write = beginWrite(library, 3, 0, new Uint8Array(1000))!;
  for (let i = 0; i < 2; i++) {
    const error = assertThrows(() => write.finish(), BlockError);
    assertEquals(error.code, "ENOSPC");
    assertEquals(write.isDone, true);
  }
  assertEquals(requests.length, 2);
});
