/**
 * Checking a Parallels image: each cluster must be within the file, with no
 * other at its offset, and nothing may follow the last one.
 *
 * @module
 */
import { allocate, divideUp, roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { nothingFound } from "../../core/check_result.ts";
import type { BlockNode, CheckOptions, CheckResult } from "../../core/node.ts";
import { isEqual } from "../../core/runtime.ts";
import type { ParallelsTable } from "./block_table.ts";
import type { ParallelsHeader } from "./header.ts";

/** Bytes of a cluster copied at once. */
const COPY_BYTES = 1024 * 1024;

/** The image to check. */
export interface CheckedImage {
  readonly file: BlockNode;
  readonly header: ParallelsHeader;
  readonly table: ParallelsTable;
  /** Whether it was not closed properly; cleared by a repair. */
  isUnclean: boolean;
}

/** Check the table, whose changes must have been written. */
export async function checkTable(
  image: CheckedImage,
  { repair, report = () => {}, signal }: CheckOptions,
): Promise<CheckResult> {
  const { file, header, table } = image;
  const { clusterSize, entries, dataOffset } = header;
  const result = { ...nothingFound(), totalClusters: entries };
  const corruption = (text: string) => {
    report(`${repair?.corruptions ? "Repairing" : "ERROR"} ${text}`);
    result.corruptions++;
    if (repair?.corruptions) result.corruptionsFixed++;
  };
  if (image.isUnclean) {
    corruption("image was not closed correctly");
    if (repair?.corruptions) image.isUnclean = false;
  }
  /** Offsets in use. */
  const seen = new Set<number>();
  const shared: [index: number, place: number][] = [];
  const lost: number[] = [];
  let end = dataOffset;
  let [previous, last] = [-1, 0];
  const note = (place: number, isNext: boolean) => {
    result.allocatedClusters++;
    const isApart = isNext && last !== 0 && last + clusterSize !== place;
    if (isApart) result.fragmentedClusters++;
    last = place;
    end = Math.max(end, place + clusterSize);
  };
  await table.eachEntry((index, place) => {
    const isNext = index === previous + 1;
    previous = index;
    if (!table.isPlace(place)) {
      corruption(`cluster ${index} is outside image`);
      lost.push(index);
      // In QEMU, leaked space stays unless corruptions are repaired.
      if (repair?.corruptions) last = 0;
      else note(place, isNext);
      return;
    }
    if (seen.has(place)) {
      corruption(`duplicate offset in BAT entry ${index}`);
      shared.push([index, place]);
    }
    seen.add(place);
    note(place, isNext);
  }, repair ? undefined : signal);
  result.imageEndOffset = end;
  await table.examine();
  if (repair?.corruptions) {
    for (const index of lost) await table.map(index, 0);
    const { size } = file;
    for (const [index, place] of shared) {
      await separate(image, index, place, size);
      result.imageEndOffset = table.dataEnd;
    }
    await table.flush();
  }
  const leaked = roundUp(file.size, SECTOR_SIZE) - result.imageEndOffset;
  if (leaked > 0) {
    const count = divideUp(leaked, clusterSize);
    report(
      `${repair?.leaks ? "Repairing" : "ERROR"} ` +
        `space leaked at the end of the image ${leaked}`,
    );
    result.leaks += count;
    if (repair?.leaks) {
      await file.truncate!(result.imageEndOffset);
      result.leaksFixed += count;
    }
  }
  return result;
}

/** Copy a shared cluster to one of its own. */
async function separate(
  { file, header, table }: CheckedImage,
  index: number,
  from: number,
  fileSize: number,
): Promise<void> {
  // Past the end of the file there is nothing to copy.
  const length = Math.min(header.clusterSize, fileSize - from);
  const place = await table.reserve(header.clusterSize);
  const buffer = allocate(Math.min(COPY_BYTES, length));
  const zeroes = allocate(buffer.length);
  for (let done = 0; done < length; done += buffer.length) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, length - done));
    await file.readv(from + done, [bytes]);
    // The new cluster reads as zeroes, and may stay a hole.
    if (!isEqual(bytes, zeroes.subarray(0, bytes.length))) {
      await file.writev!(place + done, [bytes]);
    }
  }
  await table.map(index, place);
}
