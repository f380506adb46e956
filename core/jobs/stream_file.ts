/**
 * New images that are written front to back into a file.
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
import { describeSource, protocolStack } from "../sources.ts";
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
 * Whether a new image's file can only be written front to back, because of
 * where it is.
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
 * Make or empty a file, and write to it what {@linkcode imageChunks} yields:
 * nothing is lost before the first of it is there, so that options which make
 * no sense cost no file.
 */
export async function streamToFile(
  format: string,
  target: Source,
  sources: readonly BlockNode[],
  options: StreamFileOptions,
): Promise<void> {
  const { cache: _, onUnlocked: __, secrets: ___, ...others } = options;
  const expected = sources.reduce((sum, { size }) => sum + size, 0);
  const chunks = imageChunks(format, sources, others);
  await chunksToFile(target, chunks, options, expected);
}

/**
 * As {@linkcode streamToFile}, for bytes that are the file's already.
 *
 * @param expected About how many there will be.
 */
export async function chunksToFile(
  target: Source,
  chunks: AsyncGenerator<Uint8Array, void>,
  { cache, onUnlocked, secrets, signal }: Pick<
    StreamFileOptions,
    "cache" | "onUnlocked" | "secrets" | "signal"
  >,
  expected?: number,
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
  try {
    for (let at = 0; !next.done; next = await chunks.next()) {
      try {
        await file.writev!(at, [next.value]);
      } catch (error) {
        throw located("writing at byte", at, error);
      }
      at += next.value.length;
    }
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
