/**
 * What `qemu-img bench` does, through the library:
 * `requests.ts read|write COUNT DEPTH LENGTH STEP FILE`. Requests of LENGTH
 * bytes go to every STEP bytes, from the start again at the end.
 *
 * @module
 */
import { openImage } from "../mod.ts";

const [verb, count, depth, length, step, filename] = Deno.args;
const isWrite = verb === "write";
await using image = await openImage(filename, {
  format: "qcow2",
  readOnly: !isWrite,
});
let left = Number(count);
let next = 0;

async function keepBusy(): Promise<void> {
  const buffer = new Uint8Array(Number(length) + 64).subarray(48, -16);
  while (left-- > 0) {
    const offset = next;
    next = (next + Number(step)) % image.size;
    if (isWrite) await image.write(offset, buffer);
    else await image.read(offset, buffer);
  }
}

await Promise.all(Array.from({ length: Number(depth) }, keepBusy));
await image.flush();
