/** Tables that many requests need at the same time. @module */
import { assertEquals } from "@std/assert";
import { SharedLoads } from "../../core/shared_loads.ts";
import {
  type BlockNode,
  createImage,
  MemoryStore,
  openImage,
} from "../../mod.ts";

/** A file whose reads take a turn of the event loop, and are counted. */
class CountedFile implements BlockNode {
  readonly driver = { name: "counted", role: "protocol" } as const;
  readonly filename = "counted";
  readonly readOnly = true;
  readonly children = {};
  readonly #store: MemoryStore;
  /** How often each range has been read. */
  readonly reads = new Map<string, number>();

  constructor(store: MemoryStore) {
    this.#store = store;
  }

  get size(): number {
    return this.#store.size;
  }

  async readv(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    const range = `${offset}+${
      iov.reduce((sum, { length }) => sum + length, 0)
    }`;
    this.reads.set(range, (this.reads.get(range) ?? 0) + 1);
    await new Promise((go) => setTimeout(go));
    for (const part of iov) {
      this.#store.read(offset, part);
      offset += part.length;
    }
  }

  status(_offset: number, length: number) {
    return Promise.resolve({ length, allocated: true, zero: false });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

const FORMATS: [format: string, options: Record<string, unknown>][] = [
  ["parallels", {}],
  ["qcow", {}],
  ["qcow2", {}],
  ["qed", {}],
  ["vdi", {}],
  ["vhdx", {}],
  ["vmdk", {}],
  ["vpc", {}],
];
const COUNT = 16;
const DISTANCE = 4 << 20;

for (const [format, options] of FORMATS) {
  Deno.test(`${format}: requests that need one table read it once`, async () => {
    const file = { driver: "memory", store: new MemoryStore() };
    const size = COUNT * DISTANCE;
    await createImage(format, file, { size, ...options });
    {
      await using disk = await openImage({ driver: format, file });
      for (let i = 0; i < COUNT; i++) {
        await disk.write(i * DISTANCE, new Uint8Array(512).fill(i + 1));
      }
    }
    const counted = new CountedFile(file.store);
    await using disk = await openImage({ driver: format, file: counted });
    counted.reads.clear();
    const read = await Promise.all(
      Array.from({ length: COUNT }, (_, i) => disk.read(i * DISTANCE, 512)),
    );
    read.forEach((bytes, i) =>
      assertEquals(bytes, new Uint8Array(512).fill(i + 1))
    );
    const again = [...counted.reads].filter(([, times]) => times > 1);
    assertEquals(again, []);
  });
}

Deno.test("SharedLoads: a load that became outdated is dropped", async () => {
  const loads = new SharedLoads();
  const kept: string[] = [];
  const begun: PromiseWithResolvers<string>[] = [];
  const load = () =>
    loads.run(1, () => {
      const read = Promise.withResolvers<string>();
      begun.push(read);
      return read.promise;
    }, (loaded) => kept.push(loaded));
  const first = [load(), load()];
  assertEquals(begun.length, 1);
  loads.forget();
  const second = load();
  assertEquals(begun.length, 2);
  begun[1].resolve("new");
  await second;
  begun[0].resolve("old");
  await Promise.all(first);
  assertEquals(kept, ["new"]);
});

Deno.test("SharedLoads: all who wait learn of a failure, and the next one tries again", async () => {
  const loads = new SharedLoads();
  let attempts = 0;
  const load = () =>
    loads.run(
      1,
      // deno-lint-ignore require-await -- it stands for a read
      async () => {
        if (attempts++ === 0) throw new Error("broken");
      },
      () => {},
    );
  const outcomes = await Promise.allSettled([load(), load()]);
  assertEquals(outcomes.map(({ status }) => status), ["rejected", "rejected"]);
  await load();
  assertEquals(attempts, 2);
});
