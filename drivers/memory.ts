/**
 * The protocol driver `memory`: bytes in a sparse store, which lasts as long as
 * it is referenced. (`core/memory_store.ts`)
 *
 * @module
 */
import { checkSignal } from "../core/abort.ts";
import type { IoVector } from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { MemoryStore } from "../core/memory_store.ts";
import type {
  AccessMode,
  BlockNode,
  Extent,
  NodeInfo,
  RequestFlags,
} from "../core/node.ts";
import { type OptionTable, parseOptions } from "../core/options.ts";

const OPEN_OPTIONS: OptionTable = {
  size: { type: "size", help: "Size of a new store in bytes" },
};

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  preallocation: {
    type: "enum",
    values: ["off", "metadata", "falloc", "full"],
    unsupported: ["metadata"],
    default: "off",
    help:
      "Accepted for compatibility with files; memory is allocated when written",
  },
};

/** Bytes in memory: `{driver: "memory", store}`, or `size` for a new store. */
export const memoryDriver: BlockDriver = {
  name: "memory",
  role: "protocol",
  openOptions: OPEN_OPTIONS,
  strongOptions: ["size"],
  createOptions: CREATE_OPTIONS,
  parseFilename: () => ({}),

  // deno-lint-ignore require-await -- the interface is asynchronous
  async open(options, context) {
    const { store, size } = parseOptions(OPEN_OPTIONS, options, ["store"]);
    if (store !== undefined && size !== undefined) {
      throw new BlockError(
        "EINVAL",
        "'size' is for a new store, and 'store' is given",
      );
    }
    return new MemoryNode(
      store === undefined ? new MemoryStore(size as number) : asStore(store),
      context.filename,
      context.readOnly,
    );
  },

  // deno-lint-ignore require-await
  async create(options) {
    const { store, size = 0 } = parseOptions(CREATE_OPTIONS, options, [
      "store",
    ]);
    if (store === undefined) {
      throw new BlockError(
        "EINVAL",
        "Cannot create an image in memory without a 'store' that keeps it",
      );
    }
    const target = asStore(store);
    target.truncate(0);
    target.truncate(size as number);
  },
};

function asStore(value: unknown): MemoryStore {
  if (value instanceof MemoryStore) return value;
  throw new BlockError("EINVAL", "Parameter 'store' expects a MemoryStore");
}

class MemoryNode implements BlockNode {
  readonly driver = memoryDriver;
  readonly filename: string;
  readOnly: boolean;
  readonly children = {};
  readonly #store: MemoryStore;

  constructor(store: MemoryStore, filename: string, readOnly: boolean) {
    this.#store = store;
    this.filename = filename;
    this.readOnly = readOnly;
  }

  get size(): number {
    return this.#store.size;
  }

  // deno-lint-ignore require-await
  async readv(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      this.#store.read(offset, part);
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async writev(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      this.#store.write(offset, part);
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await
  async writeZeroes(offset: number, length: number): Promise<void> {
    this.#store.zero(offset, length);
  }

  // deno-lint-ignore require-await
  async discard(offset: number, length: number): Promise<void> {
    const inside = Math.min(length, this.#store.size - offset);
    if (inside > 0) this.#store.zero(offset, inside);
  }

  // deno-lint-ignore require-await
  async truncate(size: number): Promise<void> {
    this.#store.truncate(size);
  }

  // deno-lint-ignore require-await
  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
  }

  // deno-lint-ignore require-await
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const place = { allocated: true, hostOffset: offset, file: this };
    const inside = Math.min(length, this.#store.size - offset);
    if (inside <= 0) return { length, zero: true, ...place };
    const extent = this.#store.extent(offset, inside);
    return { length: extent.length, zero: !extent.data, ...place };
  }

  // deno-lint-ignore require-await
  async setMode({ readOnly }: AccessMode): Promise<void> {
    this.readOnly = readOnly;
  }

  // deno-lint-ignore require-await
  async info(): Promise<NodeInfo> {
    return { dirty: false, actualSize: this.#store.allocated };
  }

  async close(): Promise<void> {}
}
