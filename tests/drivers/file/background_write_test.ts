import { assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { beginWrite } from "../../../drivers/file/background_write.ts";
import type { Libc } from "../../../core/platform/libc.ts";
import { isLibcAvailable } from "../../platforms.ts";

const ignore = !isLibcAvailable();
const EINTR = 4;
const ENOSPC = 28;

/**
 * A library that writes as many bytes of each request as `takes` says, the
 * first in the background; what is below zero is the number of an error.
 */
function stingyLibc(takes: number[]) {
  const requests: { length: number; offset: number }[] = [];
  const library = {
    aio_write(block: Uint8Array) {
      const view = new DataView(block.buffer);
      requests.push({
        length: Number(view.getBigUint64(24, true)),
        offset: Number(view.getBigInt64(128, true)),
      });
      return 0;
    },
    addressOf: () => 0n,
    aio_error: () => Math.max(0, -takes[0]),
    aio_return: () => takes[0] < 0 ? -1 : takes[0],
    pwrite(_: number, part: Uint8Array, length: bigint, offset: bigint) {
      assertEquals(part.length, Number(length));
      requests.push({ length: part.length, offset: Number(offset) });
      return takes[requests.length - 1];
    },
  };
  return { library: library as unknown as Libc, requests };
}

Deno.test({
  name: "a background write goes on where it fell short or was interrupted",
  ignore,
  fn() {
    for (const first of [100, 0, -EINTR]) {
      const done = Math.max(0, first);
      const takes = [first, 1, -EINTR, 999 - done];
      const { library, requests } = stingyLibc(takes);
      const write = beginWrite(library, 3, 5000, new Uint8Array(1000))!;
      assertEquals(requests.length, 1);
      write.finish();
      assertEquals(
        requests.map(({ length, offset }) => [length, offset]),
        [
          [1000, 5000],
          [1000 - done, 5000 + done],
          [999 - done, 5001 + done],
          [999 - done, 5001 + done],
        ],
      );
    }
  },
});

Deno.test({
  name: "a background write that gets no further says so, again and again",
  ignore,
  fn() {
    for (const takes of [[100, 0], [100, -ENOSPC], [-ENOSPC]]) {
      const { library, requests } = stingyLibc(takes);
      const write = beginWrite(library, 3, 0, new Uint8Array(1000))!;
      for (let i = 0; i < 2; i++) {
        const error = assertThrows(() => write.finish(), BlockError);
        assertEquals(error.code, "ENOSPC");
        assertEquals(write.isDone, true);
      }
      assertEquals(requests.length, takes.length);
    }
  },
});
