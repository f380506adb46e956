/**
 * Offers an image to NBD clients until it is interrupted, each of which may
 * write to it; what they write is lost in the end, as it goes to an overlay in
 * memory.
 *
 *     deno run -A examples/serve.ts disk.qcow2
 *     qemu-img map -f raw nbd://127.0.0.1:…     # in another terminal
 *
 * @module
 */
import { createImage, MemoryStore, openImage, serveNbd } from "@bdrv/bdrv";

const [name] = Deno.args;
await using base = await openImage(name, { readOnly: true });
const file = { driver: "memory", store: new MemoryStore() };
await createImage("qcow2", file, { size: base.size });
await using overlay = await openImage({
  driver: "qcow2",
  file,
  backing: base.node,
});
await using server = await serveNbd(
  overlay,
  { host: "127.0.0.1", port: 0 },
  { writable: true },
);
console.log(`${name} is at ${server.uri}`);
await new Promise<void>((done) => Deno.addSignalListener("SIGINT", done));
