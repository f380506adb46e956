/**
 * Puts an overlay on an image, writes to that, and shows what it holds: the
 * image below stays as it is.
 *
 *     deno run -A examples/overlay.ts base.qcow2 overlay.qcow2
 *
 * @module
 */
import { createImage, openImage } from "@bdrv/bdrv";

const [base, file] = Deno.args;
{
  await using below = await openImage(base, { readOnly: true });
  await createImage("qcow2", file, {
    size: below.size,
    // As seen from the overlay's folder; without the format, it is refused.
    backing_file: await Deno.realPath(base),
    backing_fmt: below.format,
  });
}
await using overlay = await openImage(file, {
  // By default, an image may name only files in and below its own folder.
  gate: "allow",
});
await overlay.write(1000, new TextEncoder().encode("only in the overlay"));
for await (const { offset, length, depth, zero } of overlay.extents()) {
  const where = zero ? "zeroes" : depth === 0 ? "the overlay" : "the base";
  console.log(`${offset} … ${offset + length}: ${where}`);
}
