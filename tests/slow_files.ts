/**
 * Files that are slow, and can be replaced by copies of themselves.
 *
 * @module
 */
import { type BlockNode, type Image, MemoryStore, openImage } from "../mod.ts";
import { DelayNode, Scheduler } from "./delay.ts";
import type { Random } from "./model.ts";

/** Files whose requests wait and overtake each other, and their stores. */
export class SlowFiles {
  readonly #scheduler: Scheduler;
  readonly #random: Random;
  readonly #stores = new Map<BlockNode, MemoryStore>();
  /** Images that keep the nodes of files open; for the test to close. */
  readonly handles: Image[] = [];

  constructor(random: Random) {
    this.#random = random;
    this.#scheduler = new Scheduler(random);
  }

  async open(store: MemoryStore): Promise<BlockNode> {
    const image = await openImage({ driver: "memory", store });
    this.handles.push(image);
    const node = new DelayNode(image.node, this.#scheduler, this.#random);
    this.#stores.set(node, store);
    return node;
  }

  /** A file with the same content; nothing may be writing meanwhile. */
  async copyOf(node: BlockNode): Promise<BlockNode> {
    const from = this.#stores.get(node)!;
    const bytes = new Uint8Array(from.size);
    from.read(0, bytes);
    const to = new MemoryStore();
    to.write(0, bytes);
    // Spoil the old file, to expose anyone who still uses it.
    from.write(0, new Uint8Array(from.size).fill(0xbd));
    return await this.open(to);
  }
}
