/**
 * Many clients of one graph, which is drained and changed meanwhile, compared
 * with a disk in memory.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  BlockError,
  type BlockNode,
  createImage,
  drain,
  Image,
  insertFilter,
  MemoryStore,
  openImage,
  removeFilter,
  replaceChild,
  ThrottleGroup,
} from "../../mod.ts";
import { DelayNode } from "../delay.ts";
import { SlowFiles } from "../slow_files.ts";
import {
  DiskModel,
  type Effect,
  type Finding,
  Random,
  seedsToRun,
} from "../model.ts";

const SIZE = 256 * 1024;
const CLUSTER = 4096;
const CLIENTS = 64;
const ROUNDS = 12;

class Stress {
  readonly #random: Random;
  readonly #files: SlowFiles;
  readonly #model: DiskModel;
  readonly #handles: Image[];
  /** The format's node, and that of its backing file. */
  readonly #top: BlockNode;
  readonly #base: BlockNode;
  readonly #filters: BlockNode[] = [];
  readonly #group = new ThrottleGroup({});

  private constructor(
    random: Random,
    files: SlowFiles,
    image: Image,
    model: DiskModel,
  ) {
    this.#random = random;
    this.#files = files;
    this.#model = model;
    this.#top = image.node;
    this.#base = image.node.children.backing!;
    this.#handles = [image];
    while (this.#handles.length < 4) this.#handles.push(new Image(image.node));
  }

  static async make(random: Random): Promise<Stress> {
    const files = new SlowFiles(random);
    const model = new DiskModel(SIZE);
    const stores = [new MemoryStore(), new MemoryStore()];
    for (const store of stores) {
      const file = { driver: "memory", store };
      await createImage("qcow2", file, { size: SIZE, cluster_size: CLUSTER });
    }
    {
      const file = { driver: "memory", store: stores[0] };
      await using base = await openImage({ driver: "qcow2", file });
      model.bytes.set(random.bytes(SIZE / 2), 0);
      await base.write(0, model.bytes.slice(0, SIZE / 2));
    }
    const [low, high] = [
      await files.open(stores[0]),
      await files.open(stores[1]),
    ];
    const image = await openImage({
      driver: "qcow2",
      file: high,
      backing: { driver: "qcow2", file: low },
    });
    return new Stress(random, files, image, model);
  }

  /** Requests of all clients, and changes of the graph while they run. */
  async round(): Promise<void> {
    const effects: Effect[] = [];
    const findings: Finding[] = [];
    const requests: Promise<void>[] = [];
    let isOver = false;
    for (let client = 0; client < CLIENTS; client++) {
      requests.push(this.#request(effects, findings));
    }
    const changing = (async () => {
      for (let change = 1; !isOver; change++) {
        await this.#change();
        // Compression may be waiting for another thread, which needs a turn.
        if (change % 8 === 0) await new Promise((go) => setTimeout(go));
      }
    })();
    try {
      await Promise.all(requests);
    } finally {
      isOver = true;
      await changing;
    }
    await this.#model.apply(
      effects,
      findings,
      (offset, length) => this.#handle.read(offset, length),
    );
  }

  get #handle(): Image {
    return this.#random.pick(this.#handles);
  }

  async #request(effects: Effect[], findings: Finding[]): Promise<void> {
    const random = this.#random;
    const offset = random.below(SIZE - 1);
    const length = 1 + random.below(Math.min(3 * CLUSTER, SIZE - offset));
    const handle = this.#handle;
    if (random.oneIn(16)) return await handle.flush();
    if (random.oneIn(2)) {
      const bytes = await handle.read(offset, length);
      findings.push({ offset, bytes });
    } else if (random.oneIn(8)) {
      await handle.writeZeroes(offset, length);
      effects.push({ offset, bytes: new Uint8Array(length) });
    } else {
      const bytes = random.bytes(length);
      await handle.write(offset, bytes);
      effects.push({ offset, bytes });
    }
  }

  async #change(): Promise<void> {
    const random = this.#random;
    for (let ticks = random.below(200); ticks > 0; ticks--) await null;
    const parent = random.pick([this.#top, this.#base]);
    switch (random.below(5)) {
      case 0: {
        using _ = await drain(random.pick([parent, this.#fileOf(parent)]));
        for (let ticks = random.below(50); ticks > 0; ticks--) await null;
        return;
      }
      case 1: {
        // Only a file directly below the format: a copy would bypass filters.
        using _ = await drain(parent);
        const file = this.#fileOf(parent);
        if (!(file instanceof DelayNode)) return;
        await replaceChild(parent, "file", await this.#files.copyOf(file));
        return;
      }
      case 2: {
        if (this.#filters.length > 4) return;
        const above = random.pick([
          this.#handles[0].node,
          parent,
          this.#fileOf(parent),
        ]);
        const throttle = { driver: "throttle", "throttle-group": this.#group };
        // Nothing can be compressed above a filter that compresses already.
        const isImage = above.writeCompressed !== undefined &&
          !this.#filters.some(({ driver }) => driver.name === "compress");
        const filter = isImage && random.oneIn(3)
          ? { driver: "compress" }
          : throttle;
        this.#filters.push(await insertFilter(above, filter));
        return;
      }
      case 3: {
        const filter = this.#filters.splice(random.below(4), 1)[0];
        if (filter) await removeFilter(filter);
        return;
      }
      case 4: {
        // One client leaves, and another one comes.
        const last = this.#handles.pop()!;
        this.#handles.push(new Image(this.#handles[0].node));
        await last.close();
        return;
      }
    }
  }

  #fileOf(parent: BlockNode): BlockNode {
    return parent.children.file!;
  }

  /**
   * Without its filters, the graph holds what the model holds, and is sound.
   */
  async end(): Promise<void> {
    for (const filter of this.#filters) await removeFilter(filter);
    const [first, ...others] = this.#handles;
    for (const handle of others) await handle.close();
    assertEquals(first.node, this.#top);
    this.#model.check(0, await first.read(0, SIZE), "at the end");
    const { corruptions, leaks } = await first.check();
    assertEquals([corruptions, leaks], [0, 0]);
    const file = this.#fileOf(this.#top);
    const backing = this.#fileOf(this.#base);
    await first.close();
    const again = await openImage({
      driver: "qcow2",
      file,
      backing: { driver: "qcow2", file: backing },
    }, { readOnly: true });
    this.#model.check(0, await again.read(0, SIZE), "reopened");
    await again.close();
    for (const handle of this.#files.handles) await handle.close();
  }
}

for (const seed of seedsToRun(6)) {
  Deno.test(`64 clients of a graph that changes (seed ${seed})`, async () => {
    const stress = await Stress.make(new Random(seed));
    try {
      for (let round = 0; round < ROUNDS; round++) await stress.round();
    } catch (error) {
      if (error instanceof BlockError) {
        throw new Error(error.message, { cause: error });
      }
      throw error;
    }
    await stress.end();
  });
}
