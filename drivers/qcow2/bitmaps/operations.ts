/**
 * What users can do to an image's bitmaps, and which lock each operation needs.
 *
 * @module
 */
import { BlockError } from "../../../core/errors.ts";
import type { BitmapOperations, DirtyExtent } from "../../../core/node.ts";
import type { Qcow2State } from "../state.ts";
import type { Bitmaps } from "./bitmaps.ts";

/** The `bitmaps` verbs of a node. */
export function bitmapOperations(state: Qcow2State): BitmapOperations {
  const change = async <T>(
    act: (bitmaps: Bitmaps) => T | Promise<T>,
  ): Promise<T> => {
    if (state.readOnly) throw new BlockError("EACCES");
    using _ = await state.operations.drain();
    state.checkUsable();
    return await act(await state.loadBitmaps());
  };
  /** Run as a request: others go on meanwhile. */
  const request = async <T>(
    act: (bitmaps: Bitmaps) => T | Promise<T>,
  ): Promise<T> => {
    using _ = await state.operations.share();
    state.checkUsable();
    return await act(await state.loadBitmaps());
  };
  return {
    list: () => request((bitmaps) => bitmaps.list()),
    add: (name, options) => change((bitmaps) => bitmaps.add(name, options)),
    remove: (name) => change((bitmaps) => bitmaps.remove(name)),
    clear: (name) => change((bitmaps) => bitmaps.clear(name)),
    enable: (name) => change((bitmaps) => bitmaps.enable(name, true)),
    disable: (name) => change((bitmaps) => bitmaps.enable(name, false)),
    async merge(name, extents) {
      if (state.readOnly) throw new BlockError("EACCES");
      await request((bitmaps) => bitmaps.checkUsable(name));
      // Nothing is held between extents: they may come from this image.
      for await (const extent of extents) {
        await request((bitmaps) => bitmaps.mergeRange(name, extent));
      }
    },
    dirty: (name, offset, length) =>
      dirtyExtents(name, offset, length, request),
  };
}

async function* dirtyExtents(
  name: string,
  offset: number,
  length: number,
  request: <T>(act: (bitmaps: Bitmaps) => Promise<T>) => Promise<T>,
): AsyncGenerator<DirtyExtent> {
  for (let at = offset;;) {
    const rest = offset + length - at;
    const extent = await request((bitmaps) =>
      bitmaps.nextDirty(name, at, rest)
    );
    if (!extent) return;
    yield extent;
    at = extent.offset + extent.length;
  }
}
