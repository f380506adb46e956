/**
 * Converts an image to compressed qcow2, and shows how far it is.
 *
 *     deno run -A examples/convert.ts disk.img disk.qcow2
 *
 * @module
 */
import { compare, convert, createImage, openImage } from "@bdrv/bdrv";

const [from, to] = Deno.args;
await using source = await openImage(from, { readOnly: true });
await createImage("qcow2", to, { size: source.size, compression_type: "zstd" });
await using target = await openImage({ driver: "qcow2", file: to });
await convert(source, target, {
  compressed: true,
  targetIsZero: true,
  progress(done, total) {
    console.log(`${Math.floor(done / total * 100)} % of ${total} bytes`);
  },
});
const { outcome } = await compare(source, target);
console.log(`The two are ${outcome}.`);
