/**
 * What a worker runs that makes calls of `node:zlib`, and how it shares memory
 * with the thread that wants them made.
 *
 * @module
 */
import type { LibraryCompression } from "./codecs.ts";
import type { LibraryOpener, Zlib } from "./platform/platform.ts";
import type { zlibCompressorOf } from "./zlib_compressor.ts";
import type { compressorOf } from "./zstd_compressor.ts";

/** One call of `node:zlib`, as plain data. */
export interface ZlibCall {
  readonly method:
    | "deflateSync"
    | "inflateRawSync"
    | "deflateRawSync"
    | "zstdDecompressSync"
    | "zstdCompressSync";
  readonly options: { readonly [name: string]: unknown };
  /** How to have libzstd do it instead. */
  readonly zstd?: LibraryCompression;
  /** How to have libdeflate do it instead. */
  readonly deflate?: LibraryCompression;
}

/**
 * Calls that can be with the workers at once: enough that they do not run out
 * of them while this thread writes the results of others.
 */
export const SLOTS = 64;

/** How all threads see the shared memory. Indices count 32-bit words. */
export const LAYOUT = {
  slots: SLOTS,
  /** Bytes of a slot: the largest cluster of qcow2, or what it may grow to. */
  slotSize: 2 * 1024 * 1024 + 64 * 1024,
  /** Counts calls put into slots; workers sleep on it. */
  submitted: 0,
  /** Counts calls made; we sleep on it. */
  done: 1,
  /** Workers that look for calls. */
  alive: 2,
  /** Workers that ever did. */
  started: 3,
  /** Not 0 when workers are to end. */
  quit: 4,
  /** Workers that sleep, and whether we do: others need not be woken. */
  asleep: 5,
  waiting: 6,
  /** The first slot; of each, its state, lengths of the call and the data. */
  firstSlot: 7,
  slotWords: 3,
  states: { free: 0, ready: 1, taken: 2, done: 3, failed: 4 },
  /** Milliseconds without work after which a worker ends. */
  idle: 1000,
} as const;

/**
 * What a worker runs, as text: so it must refer to nothing outside. (A module
 * of its own would need a permission to be read, and be missing from bundles
 * and compiled programs.)
 */
export function serve(
  layout: typeof LAYOUT,
  openCompressor: typeof compressorOf,
  openZlib: typeof zlibCompressorOf,
  zlib: () => Zlib | null,
  openLibrary: LibraryOpener | undefined,
): void {
  const scope = globalThis as unknown as {
    close(): void;
    onmessage(event: {
      data: { control: Int32Array; memory: Uint8Array };
    }): void;
  };
  const { slots, slotSize, firstSlot, slotWords, states } = layout;
  let next = 0;
  scope.onmessage = ({ data: { control, memory } }) => {
    let compressor: ReturnType<typeof compressorOf> | undefined;
    let deflater: ReturnType<typeof zlibCompressorOf> | undefined;
    const output = (call: ZlibCall, input: Uint8Array): Uint8Array => {
      const { method, options, zstd, deflate } = call;
      if (zstd) {
        const { path } = zstd;
        compressor ??= openCompressor((functions) =>
          openLibrary!(path, functions)
        );
        return compressor(input, zstd.level);
      }
      if (deflate) {
        const { path } = deflate;
        deflater ??= openZlib((functions) => openLibrary!(path, functions));
        return deflater(input, deflate.level);
      }
      // Loading it takes 30 ms.
      return zlib()![method]!(input, options);
    };
    const make = (slot: number, words: number): number => {
      const start = slot * slotSize;
      const data = start + control[words + 1];
      try {
        const call = JSON.parse(
          new TextDecoder().decode(memory.slice(start, data)),
        );
        const input = memory.subarray(data, data + control[words + 2]);
        const made = output(call, input);
        if (made.length > slotSize) return states.failed;
        memory.set(made, start);
        control[words + 2] = made.length;
        // Else tens of MiB gather. (Smaller ones may share their memory.)
        const buffer = made.buffer as ArrayBuffer;
        if (buffer.byteLength === call.options.chunkSize) buffer.transfer?.(0);
        return states.done;
      } catch {
        return states.failed;
      }
    };
    const makeAll = (): void => {
      for (let seen = 0; seen < slots; seen++, next = (next + 1) % slots) {
        const words = firstSlot + next * slotWords;
        const { ready, taken } = states;
        if (Atomics.compareExchange(control, words, ready, taken) !== ready) {
          continue;
        }
        Atomics.store(control, words, make(next, words));
        Atomics.add(control, layout.done, 1);
        if (Atomics.load(control, layout.waiting) !== 0) {
          Atomics.notify(control, layout.done);
        }
        seen = 0;
      }
    };
    Atomics.add(control, layout.alive, 1);
    Atomics.add(control, layout.started, 1);
    for (;;) {
      const submitted = Atomics.load(control, layout.submitted);
      makeAll();
      if (Atomics.load(control, layout.quit) !== 0) break;
      const { idle } = layout;
      Atomics.add(control, layout.asleep, 1);
      const woken = Atomics.wait(control, layout.submitted, submitted, idle);
      Atomics.sub(control, layout.asleep, 1);
      if (woken === "timed-out") break;
    }
    Atomics.sub(control, layout.alive, 1);
    // Who submits a call looks for workers afterwards: one of both notices.
    makeAll();
    scope.close();
  };
}
