import { assertEquals } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  type OptionValues,
} from "../../../mod.ts";
import { openProtocol } from "../../../core/open.ts";
import { type FaultKind, faultyNode } from "../../fault_disk.ts";
import { Random } from "../../model.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";

const MIB = 1024 * 1024;
const SIZE = 6 * MIB;

const IMAGES: readonly [format: string, options: OptionValues][] = [
  ["vpc", { force_size: true }],
  ["vhdx", { block_size: MIB }],
];

/** The writes, in order, each followed by a flush. */
const WRITES: readonly [offset: number, length: number][] = [
  [100, 3000],
  [2 * MIB - 50, 100],
  [5 * MIB, 512],
  [200, 10],
];

/** Try something, and return whether it succeeded. */
async function succeeds(step: () => Promise<unknown>): Promise<boolean> {
  try {
    await step();
    return true;
  } catch (error) {
    if (error instanceof BlockError) return false;
    throw error;
  }
}

/** Whether each byte is from before or after what failed. */
function isOneOf(found: Uint8Array, contents: Uint8Array[]): boolean {
  for (let at = 0; at < found.length; at += 4096) {
    const [part, ...parts] = [found, ...contents].map((one) =>
      one.subarray(at, at + 4096)
    );
    if (parts.some((one) => isEqual(one, part))) continue;
    if (!part.every((byte, i) => parts.some((one) => one[i] === byte))) {
      return false;
    }
  }
  return true;
}

for (const [format, options] of IMAGES) {
  Deno.test(`${format}: whichever request fails below, nothing flushed is lost`, async () => {
    const empty = new MemoryStore();
    const target = { driver: "memory", store: empty };
    await createImage(format, target, { ...options, size: SIZE });
    const random = new Random(1);
    for (const kind of ["writev", "flush", "readv"] as FaultKind[]) {
      for (const once of [true, false]) {
        for (let after = 0;; after++) {
          const store = storeOf(contentOf(empty));
          const fault = { after, kind, once, code: "EIO" } as const;
          const below = await openProtocol({ driver: "memory", store });
          const { node: file, counts } = faultyNode(below, fault);
          const contents = [new Uint8Array(SIZE)];
          await succeeds(async () => {
            await using image = await openImage({ driver: format, file });
            for (const [offset, length] of WRITES) {
              const bytes = random.bytes(length);
              const isDone = await succeeds(async () => {
                await image.write(offset, bytes);
                await image.flush();
              });
              if (!isDone) contents.push(contents.at(-1)!.slice());
              for (const one of isDone ? contents : contents.slice(-1)) {
                one.set(bytes, offset);
              }
            }
          });
          const stack = { driver: format, file: { driver: "memory", store } };
          await using image = await openImage(stack);
          const found = await image.read(0, SIZE);
          const what = `${kind} ${after}, once ${once}`;
          assertEquals([what, isOneOf(found, contents)], [what, true]);
          if (image.node.image?.check) {
            assertEquals((await image.check()).corruptions, 0);
          }
          await image.write(3 * MIB, new Uint8Array(10).fill(9));
          await image.flush();
          found.fill(9, 3 * MIB, 3 * MIB + 10);
          const again = await image.read(0, SIZE);
          assertEquals([what, isEqual(again, found)], [what, true]);
          if (counts[kind] <= after) break;
        }
      }
    }
  });
}
