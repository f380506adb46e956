/// <reference lib="dom" />
/**
 * Converting the disk to a new image, which the user saves. Nothing leaves the
 * browser.
 *
 * @module
 */
import { createImage } from "../core/create.ts";
import { openImage } from "../core/image.ts";
import { convert } from "../core/jobs/convert.ts";
import { streamImage } from "../core/jobs/stream.ts";
import { MemoryStore } from "../core/memory_store.ts";
import type { BlockNode } from "../core/node.ts";
import type { StackObject } from "../core/spec.ts";
import "../subpaths/memory.ts";
import "../subpaths/opfs.ts";
import { findFile, removeFile, UNFINISHED } from "./kept_files.ts";
import type { Requests, Work } from "./messages.ts";

/** Convert a disk; into the file, or else into a Blob. */
export async function save(
  disk: BlockNode,
  { format, compression, target }: Requests["convert"]["ask"],
  work: Work,
): Promise<Requests["convert"]["answer"]> {
  if (compression) {
    const blob = await compact(disk, compression, work);
    if (!target) return { bytes: blob.size, blob };
    const saved = await saveTo(target, blob.stream());
    await removeFile(UNFINISHED).catch(() => {});
    return saved;
  }
  const { signal, progress } = work;
  const stream = streamImage(format, disk, { signal, progress });
  if (target) return await saveTo(target, stream);
  const blob = await new Response(stream).blob();
  return { bytes: blob.size, blob };
}

/** Nothing takes the file's place until all has been written. */
async function saveTo(
  target: FileSystemFileHandle,
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
): Promise<{ bytes: number }> {
  let bytes = 0;
  const counted = stream.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        bytes += chunk.length;
        controller.enqueue(chunk);
      },
    }),
  );
  await counted.pipeTo(await target.createWritable());
  return { bytes };
}

/**
 * Convert a disk to a compressed image, which cannot be written front to back:
 * in a file that the browser keeps, or else in memory.
 */
async function compact(
  disk: BlockNode,
  compression: "zlib" | "zstd",
  { signal, progress }: Work,
): Promise<Blob> {
  const handle = await findFile(UNFINISHED, true).catch(() => undefined);
  const store = new MemoryStore();
  const file: StackObject = handle
    ? { driver: "opfs", handle }
    : { driver: "memory", store };
  await createImage("qcow2", file, {
    size: disk.size,
    compression_type: compression,
  });
  try {
    await using image = await openImage({ driver: "qcow2", file });
    await convert(disk, image, {
      compressed: true,
      targetIsZero: true,
      targetIsNew: true,
      signal,
      progress,
    });
  } catch (error) {
    if (handle) await removeFile(UNFINISHED).catch(() => {});
    throw error;
  }
  if (handle) return await handle.getFile();
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return new Blob([bytes]);
}
