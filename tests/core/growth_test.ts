/**
 * Files that grow under concurrent requests: no request may cut off what
 * another has written.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { createImage, MemoryStore, openImage } from "../../mod.ts";
import { filterNode } from "../../core/filter.ts";
import type { BlockNode } from "../../core/node.ts";
import { openProtocol } from "../../core/open.ts";
import { getDriver } from "../../core/registry.ts";
import { Random } from "../model.ts";

const MIB = 1024 * 1024;
const SIZE = 64 * MIB;
const WRITES = 12;

const FORMATS: { [format: string]: Record<string, unknown> } = {
  qcow2: {},
  qcow: {},
  qed: {},
  parallels: {},
  vdi: {},
  vmdk: {},
  vpc: { force_size: true },
  vhdx: { block_size: MIB },
};

/** A file whose requests all take different times. */
function slow(file: BlockNode, random: Random): BlockNode {
  const wait = () =>
    new Promise<void>((resolve) => setTimeout(resolve, random.below(8)));
  return filterNode(getDriver("throttle"), file, {
    async writev(offset, iov, flags) {
      await wait();
      await file.writev!(offset, iov, flags);
    },
    async truncate(size, options) {
      await wait();
      await file.truncate!(size, options);
    },
  });
}

for (const [format, options] of Object.entries(FORMATS)) {
  Deno.test(`${format}: growing a file loses nothing of other writes`, async () => {
    for (let seed = 1; seed <= 3; seed++) {
      const random = new Random(seed);
      const memory = { driver: "memory", store: new MemoryStore() };
      await createImage(format, memory, { size: SIZE, ...options });
      const below = await openProtocol(memory);
      const image = await openImage({
        driver: format,
        file: slow(below, random),
      });
      const expected = new Map<number, Uint8Array>();
      for (let i = 0; i < WRITES; i++) {
        // The start of a block: nothing is written at its end.
        expected.set(i * 4 * MIB, random.bytes(4096));
      }
      await Promise.all(
        [...expected].map(([offset, bytes]) => image.write(offset, bytes)),
      );
      await image.close();
      await below.close();
      await using again = await openImage({ driver: format, file: memory });
      for (const [offset, bytes] of expected) {
        assertEquals(await again.read(offset, 4096), bytes, `seed ${seed}`);
      }
    }
  });
}
