/**
 * Writing new images front to back into a file.
 *
 * @module
 */
import { createImage } from "../create.ts";
import type { BlockDriver } from "../driver.ts";
import { openProtocol } from "../open.ts";
import type { BlockNode } from "../node.ts";
import type { CacheMode } from "../open_options.ts";
import type { OptionValues } from "../options.ts";
import { getDriver, loadDriver, loadFormat } from "../registry.ts";
import { findSecret, type SecretSource } from "../secrets.ts";
import { describeSource, filenameOf, protocolStack } from "../sources.ts";
import type { Source, StackObject } from "../spec.ts";
import { located } from "./copy_source.ts";
import { imageChunks, type StreamImageOptions } from "./stream.ts";

/** How to write a stream to a file. */
export interface StreamFileOptions extends StreamImageOptions {
  /** How writes reach the disk. Default: `writeback`. */
  readonly cache?: CacheMode;
  /** As for `createImage`. */
  readonly secrets?: SecretSource;
  /** As for `createImage`. */
  onUnlocked?(why: string): void;
}

/**
 * Whether the file of a new image can only be written front to back, because of
 * its protocol.
 *
 * @param create The options of the image, with those of its file.
 */
export async function isStoredWhole(
  format: string,
  target: Source,
  create: OptionValues,
): Promise<boolean> {
  const { driver, ...options } = protocolStack(target);
  const protocol = await loadDriver(getDriver(String(driver)));
  if (!protocol.storesWhole) return false;
  const { createOptions: ofFormat = {} } = await loadFormat(format);
  for (const name of Object.keys(protocol.createOptions ?? {})) {
    if (!Object.hasOwn(ofFormat, name)) options[name] ??= create[name];
  }
  return protocol.storesWhole(options);
}

/**
 * Create or empty a file, and write to it what {@linkcode imageChunks} yields.
 * An existing file is emptied only once the first chunk is ready, so that
 * invalid options cost no file.
 */
export async function streamToFile(
  format: string,
  target: Source,
  sources: readonly BlockNode[],
  options: StreamFileOptions,
): Promise<void> {
  const { cache: _, onUnlocked: __, secrets: ___, ...others } = options;
  const expected = sources.reduce((sum, { size }) => sum + size, 0);
  const stack = protocolStack(target);
  const protocol = await loadDriver(getDriver(String(stack.driver)));
  const patches: Patch[] = [];
  const chunks = imageChunks(
    format,
    sources,
    { filename: filenameOf(stack), ...others },
    protocol.storesWhole?.(stack) ? undefined : {
      replace: (offset, bytes) => patches.push([offset, bytes]),
    },
  );
  await chunksToFile(target, chunks, options, { expected, patches });
}

/** Bytes that replace part of a stream, and their offset. */
type Patch = readonly [offset: number, bytes: Uint8Array];

/**
 * As {@linkcode streamToFile}, for the bytes of the file themselves.
 *
 * @param more Their approximate number, and the patches to apply once all are
 * written.
 */
export async function chunksToFile(
  target: Source,
  chunks: AsyncGenerator<Uint8Array, void>,
  { cache, onUnlocked, secrets, signal }: Pick<
    StreamFileOptions,
    "cache" | "onUnlocked" | "secrets" | "signal"
  >,
  { expected, patches = [] }: {
    readonly expected?: number;
    readonly patches?: readonly Patch[];
  } = {},
): Promise<void> {
  let next = await chunks.next();
  const stack = protocolStack(target);
  const protocol = await loadDriver(getDriver(String(stack.driver)));
  if (protocol.storesWhole?.(stack)) {
    const all = prepended(next, chunks);
    return await storeWhole(protocol, stack, all, secrets, signal, expected);
  }
  await createImage(protocol.name, stack, { size: 0 }, { onUnlocked, secrets });
  const file = await openProtocol(stack, {
    resize: true,
    cache,
    onUnlocked,
    secrets,
  });
  const write = async (at: number, bytes: Uint8Array) => {
    try {
      await file.writev!(at, [bytes]);
    } catch (error) {
      throw located("writing at byte", at, error);
    }
  };
  try {
    for (let at = 0; !next.done; next = await chunks.next()) {
      await write(at, next.value);
      at += next.value.length;
    }
    for (const [offset, bytes] of patches) await write(offset, bytes);
    await file.flush?.();
  } finally {
    await chunks.return();
    await file.close();
  }
}

async function storeWhole(
  protocol: BlockDriver,
  stack: StackObject,
  chunks: AsyncIterable<Uint8Array>,
  secrets: SecretSource | undefined,
  signal: AbortSignal | undefined,
  expected: number | undefined,
): Promise<void> {
  const { driver: _, ...options } = stack;
  const filename = describeSource(stack);
  await protocol.store!(options, chunks, {
    expected,
    signal,
    secret: (id) => findSecret(secrets, { id, filename }),
  });
}

async function* prepended(
  first: IteratorResult<Uint8Array, void>,
  rest: AsyncGenerator<Uint8Array, void>,
): AsyncGenerator<Uint8Array, void> {
  try {
    if (first.done) return;
    yield first.value;
    yield* rest;
  } finally {
    await rest.return();
  }
}
