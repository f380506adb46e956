/**
 * Incremental backups: a bitmap in the image records what is written, so that
 * each backup after the first copies only that.
 *
 *     deno run -A examples/backup.ts disk.qcow2 backup.img
 *
 * The first time, all of the disk is copied. Run it again after the disk has
 * been written to, by QEMU or anything else that maintains bitmaps.
 *
 * @module
 */
import { convert, createImage, type Image, openImage } from "@bdrv/bdrv";

/** The bitmap's name. */
const SINCE = "since-last-backup";

/** Copy what a bitmap has recorded; returns how many bytes that is. */
async function copyChanges(disk: Image, backup: Image): Promise<number> {
  let copied = 0;
  const buffer = new Uint8Array(1024 * 1024);
  for await (const { offset, length } of disk.bitmaps.dirty(SINCE)) {
    for (let at = offset; at < offset + length; at += buffer.length) {
      const rest = Math.min(buffer.length, offset + length - at);
      const bytes = await disk.read(at, buffer.subarray(0, rest));
      await backup.write(at, bytes);
      copied += rest;
    }
  }
  return copied;
}

const [name, target] = Deno.args;
await using disk = await openImage(name);
const known = (await disk.bitmaps.list()).find((it) => it.name === SINCE);
// One that was not stored in the end may lack something.
const isSound = known !== undefined && !known.flags.includes("in-use");
if (!isSound) await createImage("raw", target, { size: disk.size });
await using backup = await openImage({ driver: "raw", file: target });
if (isSound) {
  console.log(`${await copyChanges(disk, backup)} bytes have changed`);
} else {
  await convert(disk, backup, { targetIsZero: true });
  console.log(`All ${disk.size} bytes are copied`);
}
// The copy has to be durable before the record of what it lacks is dropped.
await backup.flush();
if (isSound) {
  await disk.bitmaps.clear(SINCE);
} else {
  if (known) await disk.bitmaps.remove(SINCE);
  await disk.bitmaps.add(SINCE);
}
