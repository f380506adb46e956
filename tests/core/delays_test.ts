/**
 * Times of a month and more, for which the runtime's timers are too short:
 * nothing ends at once for that.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BlockError, type ByteStream, openImage, serveNbd } from "../../mod.ts";
import { memoryImage } from "../drivers/nbd/peers.ts";
import { streamPair } from "../drivers/nbd/streams.ts";

const LONG = 5_000_000;

/** `waiting` is still waiting after some turns of the event loop. */
async function stillWaits(waiting: Promise<unknown>): Promise<void> {
  const pause = new Promise((resolve) => setTimeout(resolve, 50, "waits"));
  assertEquals(await Promise.race([waiting, pause]), "waits");
}

Deno.test("nbd: open-timeout and the handshake's limit are long", async () => {
  await using image = await memoryImage();
  const connect = async (): Promise<ByteStream> => {
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, {
      writable: true,
      handshakeLimit: LONG,
    });
    // The server waits for the client's flags, and the client for us.
    return {
      ...ours,
      async read(buffer) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        return ours.read(buffer);
      },
    };
  };
  const options = { "open-timeout": LONG, "reconnect-delay": LONG };
  await using disk = await openImage({ driver: "nbd", connect, ...options });
  assertEquals((await disk.read(0, 16)).length, 16);
});

Deno.test("null-co: a request may take a month", async () => {
  const disk = await openImage({
    driver: "null-co",
    size: 4096,
    "latency-ns": 3_000_000_000_000_000,
  });
  const controller = new AbortController();
  const reading = disk.read(0, 512, { signal: controller.signal })
    .catch((error) => error instanceof BlockError && error.code);
  await stillWaits(reading);
});
