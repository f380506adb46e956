/**
 * Reading compressed files front to back, without random access.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import type { Unpacker } from "./native.ts";
import type { Window } from "./window.ts";

/** Bytes that are read at once. */
const INPUT = 512 * 1024;

/** The bytes of a range of a file. Each part is valid until the next. */
export async function* bytesOf(
  file: BlockNode,
  { start, size }: Window,
): AsyncGenerator<Uint8Array> {
  const buffer = allocate(Math.min(INPUT, size));
  for (let done = 0; done < size;) {
    const part = buffer.subarray(0, Math.min(INPUT, size - done));
    await file.readv(start + done, [part]);
    yield part;
    done += part.length;
  }
}

/** Unpack a range of a file. Each part is valid until the next. */
export async function* unpacked(
  file: BlockNode,
  window: Window,
  unpacker: Unpacker,
): AsyncGenerator<Uint8Array> {
  using held = unpacker;
  for await (const input of bytesOf(file, window)) yield* held.push(input);
  yield* held.end();
}

/**
 * The error for random access to compressed data.
 *
 * @param what The data, as the beginning of a sentence.
 * @param command The program that unpacks it.
 */
export function cannotSeek(what: string, command: string): BlockError {
  return new BlockError(
    "ENOTSUP",
    `${what} can only be unpacked from its beginning to its end`,
    {
      hint: `Unpack it first (${command}); 'bdrv convert' can, too, while it ` +
        "copies a raw disk.",
    },
  );
}
