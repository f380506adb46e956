/**
 * Chains of images in memory, for tests of the jobs that change them.
 *
 * @module
 */
import { filterNode } from "../../../core/filter.ts";
import type { Image } from "../../../core/image.ts";
import {
  type BlockNode,
  createImage,
  getDriver,
  MemoryStore,
  openImage,
  type StackObject,
} from "../../../mod.ts";
import type { Random } from "../../model.ts";

/** An image in memory. */
export interface Layer {
  /** Its file. */
  readonly store: MemoryStore;
  /** Its format. */
  readonly driver: "raw" | "qcow2";
  /** The disk's size, in bytes. */
  readonly size: number;
}

/** Make an empty image of a given size. */
export async function makeLayer(
  size: number,
  options: { [name: string]: unknown } = {},
): Promise<Layer> {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, {
    size,
    ...options,
  });
  return { store, driver: "qcow2", size };
}

/** How to open a chain. */
export interface ChainOptions {
  /** Depths, from the top, of the backing files that are writable. */
  writable?: readonly number[];
  /** Replacements for layers' files, by depth. */
  files?: { [depth: number]: BlockNode };
}

/** Layers, the lowest first, as a stack's description. */
export function stackOf(
  layers: readonly Layer[],
  { writable = [], files = {} }: ChainOptions = {},
): StackObject {
  let stack: StackObject | null = null;
  layers.forEach(({ driver, store }, index) => {
    const depth = layers.length - 1 - index;
    const file = files[depth] ?? { driver: "memory", store };
    stack = {
      driver,
      file,
      ...(driver === "qcow2" && { backing: stack }),
      ...(writable.includes(depth) && { "read-only": false }),
    };
  });
  return stack!;
}

/** Write at random to the top of a chain. */
export async function scribble(
  layers: readonly Layer[],
  random: Random,
  rounds = 12,
): Promise<void> {
  await using image = await openImage(stackOf(layers));
  for (let round = 0; round < rounds; round++) {
    const offset = random.below(image.size - 1);
    const wanted = 1 + random.below(random.pick([600, 20_000, 80_000]));
    const length = Math.min(image.size - offset, wanted);
    const kind = random.below(6);
    if (kind === 0) await image.writeZeroes(offset, length);
    else if (kind === 1) {
      await image.write(offset, new Uint8Array(length).fill(1));
    } else await image.write(offset, random.bytes(length));
  }
}

/** The content of a chain. */
export async function contentOf(
  layers: readonly Layer[],
): Promise<Uint8Array> {
  await using image = await openImage(stackOf(layers), { readOnly: true });
  return await image.read(0, image.size);
}

/** An image's corruptions and leaks. */
export async function damageOf(layer: Layer): Promise<number> {
  await using image: Image = await openImage(stackOf([layer]), {
    readOnly: true,
    purpose: "check",
  });
  const { corruptions, leaks, checkErrors } = await image.check();
  return corruptions + leaks + checkErrors;
}

/** A file that records what is done to it. */
export async function recordingFile(
  layer: Layer,
  name: string,
  events: string[],
): Promise<BlockNode> {
  const raw = { driver: "raw", file: { driver: "memory", store: layer.store } };
  const { node } = await openImage(raw);
  return filterNode(getDriver("throttle"), node, {
    async writev(offset, iov) {
      events.push(`${name} write`);
      await node.writev!(offset, iov);
    },
    async writeZeroes(offset, length) {
      events.push(`${name} write`);
      await node.writeZeroes!(offset, length);
    },
    async flush() {
      events.push(`${name} flush`);
      await node.flush!();
    },
    async truncate(size) {
      events.push(`${name} write`);
      await node.truncate!(size);
    },
  });
}
