/**
 * A disk whose server may die, and what it may hold afterwards.
 *
 * @module
 */
import { assert } from "@std/assert";
import { filterNode } from "../../../core/filter.ts";
import { Image } from "../../../core/image.ts";
import { openNode } from "../../../core/open.ts";
import { getDriver } from "../../../core/registry.ts";
import { type BlockNode, MemoryStore } from "../../../mod.ts";

/** A disk that may lose what was not flushed when its server dies. */
export class VolatileDisk {
  readonly size: number;
  readonly #durable: Uint8Array;
  readonly #cached: Uint8Array;

  constructor(size: number) {
    this.size = size;
    this.#durable = new Uint8Array(size);
    this.#cached = new Uint8Array(size);
  }

  /** The disk, for a server. */
  async image(changes: Partial<BlockNode> = {}): Promise<Image> {
    const { size } = this;
    const store = new MemoryStore(size);
    const below = await openNode({
      driver: "raw",
      file: { driver: "memory", store },
    });
    const cached = this.#cached;
    const change = async (offset: number, length: number, fua?: boolean) => {
      if (fua) {
        const part = cached.subarray(offset, offset + length);
        this.#durable.set(part, offset);
      }
      await undefined;
    };
    const node: BlockNode = filterNode(getDriver("throttle"), below, {
      readv: (offset, iov) => {
        for (const part of iov) {
          part.set(cached.subarray(offset, offset + part.length));
          offset += part.length;
        }
        return Promise.resolve();
      },
      writev: (offset, iov, flags) => {
        let end = offset;
        for (const part of iov) {
          cached.set(part, end);
          end += part.length;
        }
        return change(offset, end - offset, flags?.fua);
      },
      writeZeroes: (offset, length, flags) => {
        cached.fill(0, offset, offset + length);
        return change(offset, length, flags?.fua);
      },
      status: (_offset, length) =>
        Promise.resolve({ length, allocated: true, zero: false }),
      flush: () => {
        this.#durable.set(cached);
        return Promise.resolve();
      },
    });
    return new Image({ ...node, ...changes, size } as BlockNode);
  }

  /** The power fails: what was not flushed is gone. */
  lose(): void {
    this.#cached.set(this.#durable);
  }

  /** Everything reaches the disk, though nobody has asked for it. */
  writeBack(): void {
    this.#durable.set(this.#cached);
  }

  get durable(): Uint8Array {
    return this.#durable;
  }
}

/**
 * The values that units of a disk may have, by what its server has promised: of
 * each unit, the last value that is durable, or any later one. Writes to the
 * same unit follow one another.
 */
export class Promises {
  readonly #written = new Map<number, { value: number; isDone: boolean }[]>();

  /** A write begins; returns what to call when it is acknowledged. */
  begin(unit: number, value: number): (isDurable: boolean) => void {
    const written = this.#of(unit);
    const entry = { value, isDone: false };
    written.push(entry);
    return (isDurable) => {
      entry.isDone = true;
      if (isDurable) written.splice(0, written.indexOf(entry));
    };
  }

  /** A flush begins; returns what to call with its outcome. */
  flush(): (isDone: boolean) => void {
    const durable = [...this.#written.values()].map((written) => {
      const last = written.findLast(({ isDone }) => isDone)!;
      return { written, last };
    });
    return (isDone) => {
      if (!isDone) return this.#withdraw();
      for (const { written, last } of durable) {
        // A later one may have become durable by itself.
        if (written.includes(last)) written.splice(0, written.indexOf(last));
      }
    };
  }

  /** What was not durable may be lost: later flushes do not vouch for it. */
  #withdraw(): void {
    for (const written of this.#written.values()) {
      for (const entry of written.slice(1)) entry.isDone = false;
    }
  }

  /** Check the bytes of a disk of units of `size` bytes. */
  check(disk: Uint8Array, size: number, what: string): void {
    for (const [unit, written] of this.#written) {
      const bytes = disk.subarray(unit * size, (unit + 1) * size);
      const [value] = bytes;
      assert(
        bytes.every((byte) => byte === value),
        `${what}: unit ${unit} is torn: ${bytes}`,
      );
      const values = written.map(({ value }) => value);
      assert(
        values.includes(value),
        `${what}: unit ${unit} has ${value}, and not one of ${values}`,
      );
    }
  }

  /** The last value of each unit, all acknowledged. */
  checkLast(disk: Uint8Array, size: number, what: string): void {
    for (const written of this.#written.values()) {
      written.splice(0, written.length - 1);
    }
    this.check(disk, size, what);
  }

  #of(unit: number): { value: number; isDone: boolean }[] {
    const written = this.#written.get(unit) ?? [{ value: 0, isDone: true }];
    this.#written.set(unit, written);
    return written;
  }
}
