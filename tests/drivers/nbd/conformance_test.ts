/**
 * The driver's own conformance, through our server: over streams in memory,
 * with and without the newer parts of the protocol.
 *
 * @module
 */
import { Image } from "../../../core/image.ts";
import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore, serveNbd } from "../../../mod.ts";
import { conformance } from "../../conformance.ts";
import { streamPair } from "./streams.ts";

const ways = {
  "in one piece": {},
  "in small pieces": { most: 777 },
};

for (const [name, options] of Object.entries(ways)) {
  conformance(`nbd, ${name}`, {
    fixedSize: true,
    async open(size) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("qcow2", file, { size });
      const image = new Image(await openNode({ driver: "qcow2", file }));
      const open = () =>
        openNode({
          driver: "nbd",
          async connect() {
            const [ours, theirs] = streamPair(options);
            await serveNbd(image, theirs, { writable: true });
            return ours;
          },
        });
      return {
        node: await open(),
        reopen: open,
        dispose: () => image.close(),
      };
    },
  });
}

conformance("qcow2 over nbd, web streams", {
  async open(size) {
    const store = new MemoryStore(1 << 24);
    const image = new Image(
      await openNode({ driver: "raw", file: { driver: "memory", store } }),
    );
    const file = {
      driver: "nbd",
      async connect() {
        const there = new TransformStream<Uint8Array, Uint8Array>();
        const back = new TransformStream<Uint8Array, Uint8Array>();
        await serveNbd(
          image,
          { readable: there.readable, writable: back.writable },
          { writable: true },
        );
        return { readable: back.readable, writable: there.writable };
      },
    };
    await createImage("qcow2", file, { size });
    const open = () => openNode({ driver: "qcow2", file });
    return { node: await open(), reopen: open, dispose: () => image.close() };
  },
});
