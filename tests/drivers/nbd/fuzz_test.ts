/**
 * Conversations with bytes changed, left out and put in, for both ends: each
 * ends in good time, whatever comes, and leaves nothing behind.
 *
 * `NBD_FUZZ=100000` runs as many of each; `NBD_SEED` begins elsewhere.
 *
 * @module
 */
import { assert } from "@std/assert";
import type { ByteStream } from "../../../core/platform/sockets.ts";
import { COMMAND, COMMAND_FLAG } from "../../../drivers/nbd/wire.ts";
import { BlockError, serveNbd } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { entered, memoryImage } from "./peers.ts";
import { streamPair } from "./streams.ts";

const env = (name: string) => {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Number(Deno.env.get(name) ?? 0) : 0;
};
const ROUNDS = env("NBD_FUZZ") || 600;
const SEED = env("NBD_SEED") || 1;

const REPLIES = ["extended", "structured", "simple"] as const;

/** What a client does with a server, whatever comes of it. */
async function converse(
  stream: ByteStream,
  replies: typeof REPLIES[number],
): Promise<void> {
  const client = await entered(stream, { replies });
  const buffer = new Uint8Array(70_000);
  await Promise.allSettled([
    client.write(1000, [new Uint8Array(3000).fill(7)], true),
    client.read(0, [buffer]),
    client.read(65536, [new Uint8Array(10)]),
    client.status(0, 1 << 20),
    client.command(COMMAND.WRITE_ZEROES, 0, 512, COMMAND_FLAG.FAST_ZERO),
    client.command(COMMAND.TRIM, 0, 65536, 0),
    client.command(COMMAND.CACHE, 0, 65536, 0),
    client.command(COMMAND.FLUSH, 0, 0, 0),
    client.read(1 << 30, [new Uint8Array(10)]),
  ]);
  await client.close();
}

/** A stream whose bytes are kept, to be said again. */
function recorded(stream: ByteStream, said: number[]): ByteStream {
  return {
    read: (into) => stream.read(into),
    write(bytes) {
      said.push(...bytes);
      return stream.write(bytes);
    },
    close: () => stream.close(),
  };
}

/** What both ends say when nothing is wrong. */
async function conversation(
  replies: typeof REPLIES[number],
): Promise<{ client: Uint8Array; server: Uint8Array }> {
  await using image = await memoryImage(2 << 20);
  const [ours, theirs] = streamPair();
  const client: number[] = [];
  const server: number[] = [];
  await serveNbd(image, recorded(theirs, server), { writable: true });
  await converse(recorded(ours, client), replies);
  return { client: Uint8Array.from(client), server: Uint8Array.from(server) };
}

function mutated(bytes: Uint8Array, random: Random): Uint8Array {
  let result = bytes.slice();
  for (let count = 1 + random.below(4); count > 0; count--) {
    // The beginning, where lengths and magic numbers are, more often.
    const within = random.below(2)
      ? result.length
      : Math.min(600, result.length);
    const at = random.below(Math.max(1, within));
    switch (random.below(6)) {
      case 0:
        result[at] ^= 1 << random.below(8);
        break;
      case 1:
        result[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
        break;
      case 2:
        result.fill(0xff, at, at + 4);
        break;
      case 3:
        result = result.slice(0, at);
        break;
      case 4: {
        const end = Math.min(result.length, at + 1 + random.below(40));
        result = Uint8Array.from([
          ...result.subarray(0, at),
          ...result.subarray(end),
        ]);
        break;
      }
      default: {
        const from = random.below(result.length || 1);
        const part = result.slice(from, from + random.below(60));
        result = Uint8Array.from([
          ...result.subarray(0, at),
          ...part,
          ...result.subarray(at),
        ]);
      }
    }
  }
  return result;
}

/** Say something, read what is answered, and hang up when told to. */
async function say(stream: ByteStream, bytes: Uint8Array): Promise<void> {
  const into = new Uint8Array(65536);
  const listening = (async () => {
    while (await stream.read(into));
  })();
  await stream.write(bytes).catch(() => {});
  // What is said has been taken by then, as far as it ever will be.
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  stream.close();
  await listening.catch(() => {});
}

async function inTime<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} hangs`)), 10_000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

Deno.test("a server outlives all that clients say", async () => {
  await using image = await memoryImage(2 << 20);
  const random = new Random(SEED);
  const said = await Promise.all(REPLIES.map(conversation));
  for (let round = 0; round < ROUNDS; round++) {
    const bytes = mutated(said[random.below(3)].client, random);
    const [ours, theirs] = streamPair({ most: random.below(3) ? 65536 : 61 });
    const server = await serveNbd(image, theirs, { writable: true });
    await inTime(
      `round ${round}`,
      Promise.all([say(ours, bytes), server.ended]),
    );
    assert(server.clients === 0);
  }
});

Deno.test("a client outlives all that servers say", async () => {
  const random = new Random(SEED);
  const said = await Promise.all(REPLIES.map(conversation));
  for (let round = 0; round < ROUNDS; round++) {
    const index = random.below(3);
    const bytes = mutated(said[index].server, random);
    const [ours, theirs] = streamPair({ most: random.below(3) ? 65536 : 61 });
    const talk = converse(ours, REPLIES[index]).catch((error) => {
      if (!(error instanceof BlockError)) throw error;
    }).finally(() => ours.close());
    await inTime(`round ${round}`, Promise.all([say(theirs, bytes), talk]));
  }
});
