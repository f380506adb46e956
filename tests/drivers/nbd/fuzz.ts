/**
 * Conversations with bytes changed, left out and inserted, for both ends of the
 * wire: each must end in good time, whatever comes, and leave nothing behind.
 *
 * `deno run -A tests/drivers/nbd/fuzz.ts [COUNT] [SEED]` runs COUNT of them for
 * each end, and prints how long the longest took, and how much memory was
 * needed.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { ByteStream } from "../../../core/platform/sockets.ts";
import {
  COMMAND,
  COMMAND_FLAG,
  joined,
  lengthAndText,
  message,
  OPTION,
  u16Bytes,
  u32Bytes,
} from "../../../drivers/nbd/wire.ts";
import { BlockError, type Image, listExports, serveNbd } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { entered, memoryImage, RawClient } from "./peers.ts";
import { streamPair } from "./streams.ts";

/** A conversation longer than this counts as hanging, in milliseconds. */
const LIMIT = 10_000;

/** What a client does with a server; errors do not matter. */
type Talk = (stream: ByteStream) => Promise<void>;

/** Enter the export, and make requests of all kinds. */
function requests(replies: "extended" | "structured" | "simple"): Talk {
  return async (stream) => {
    const client = await entered(stream, { replies });
    const buffer = new Uint8Array(70_000);
    await Promise.allSettled([
      client.write(1000, [new Uint8Array(3000).fill(7)], true),
      client.read(0, [buffer]),
      client.read(65536, [new Uint8Array(10)]),
      client.status(0, 1 << 20, true),
      client.status(0, 1 << 21, false),
      client.command(COMMAND.WRITE_ZEROES, 0, 512, COMMAND_FLAG.FAST_ZERO),
      client.command(COMMAND.TRIM, 0, 65536, 0),
      client.command(COMMAND.CACHE, 0, 65536, 0),
      client.command(COMMAND.FLUSH, 0, 0, 0),
      client.read(1 << 30, [new Uint8Array(10)]),
    ]);
    await client.close();
  };
}

/** All options in turn, and data where there should be none. */
async function options(stream: ByteStream): Promise<void> {
  const client = new RawClient(stream);
  await client.greet();
  const queries = joined(
    lengthAndText(""),
    u32Bytes(2),
    lengthAndText("base:allocation"),
    lengthAndText("qemu:"),
  );
  const info = joined(lengthAndText(""), u16Bytes(2), u16Bytes(3), u16Bytes(1));
  for (
    const [option, data] of [
      [OPTION.LIST, message(0).bytes],
      [OPTION.INFO, info],
      [OPTION.STARTTLS, message(0).bytes],
      [OPTION.SET_META_CONTEXT, queries],
      [OPTION.STRUCTURED_REPLY, message(0).bytes],
      [OPTION.LIST_META_CONTEXT, queries],
      [OPTION.SET_META_CONTEXT, joined(queries, message(16).bytes)],
      [OPTION.EXTENDED_HEADERS, message(0).bytes],
      [77, message(40).bytes],
      [OPTION.GO, info],
    ] as const
  ) await client.option(option, data);
  await client.request(COMMAND.READ, 0, 512);
  await client.request(COMMAND.DISCONNECT, 0, 0);
  while (!await client.isAtEnd());
}

/** The oldest handshake, and no more. */
async function oldest(stream: ByteStream): Promise<void> {
  const client = new RawClient(stream);
  await client.greet(0);
  await client.option(OPTION.EXPORT_NAME);
  await client.request(COMMAND.READ, 0, 512);
  await client.request(COMMAND.DISCONNECT, 0, 0);
  while (!await client.isAtEnd());
}

/** What our client does; other clients may do more. */
const OURS: readonly Talk[] = [
  requests("extended"),
  requests("structured"),
  requests("simple"),
  async (stream) => void await listExports(stream),
];
const OTHERS: readonly Talk[] = [options, oldest];

/** A stream that records its bytes, to be replayed. */
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

interface Conversation {
  readonly talk: Talk;
  /** What each end sends when nothing is wrong. */
  readonly client: Uint8Array;
  readonly server: Uint8Array;
}

async function conversation(talk: Talk): Promise<Conversation> {
  await using image = await memoryImage(2 << 20);
  const [ours, theirs] = streamPair();
  const client: number[] = [];
  const server: number[] = [];
  await serveNbd(image, recorded(theirs, server), { writable: true });
  await talk(recorded(ours, client));
  return {
    talk,
    client: Uint8Array.from(client),
    server: Uint8Array.from(server),
  };
}

function mutated(bytes: Uint8Array, random: Random): Uint8Array {
  let result: Uint8Array = bytes.slice();
  for (let count = 1 + random.below(4); count > 0; count--) {
    // Favour the beginning, with its lengths and magic numbers.
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
        result = joined(result.subarray(0, at), result.subarray(end));
        break;
      }
      default: {
        const from = random.below(result.length || 1);
        const part = result.slice(from, from + random.below(60));
        result = joined(result.subarray(0, at), part, result.subarray(at));
      }
    }
  }
  return result;
}

/** Send something, read the replies, and hang up. */
async function say(stream: ByteStream, bytes: Uint8Array): Promise<void> {
  const into = new Uint8Array(65536);
  const listening = (async () => {
    while (await stream.read(into));
  })();
  await stream.write(bytes).catch(() => {});
  // By then the peer has read as much of it as it ever will.
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  stream.close();
  await listening.catch(() => {});
}

async function withTimeout<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} hangs`)), LIMIT);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Concurrent conversations: a single one spends most of its time waiting. */
const AT_ONCE = 20;

/** Conversations mutated in a sequence that a seed determines. */
export class Fuzzer {
  readonly #random: Random;
  readonly #said: readonly Conversation[];
  readonly #image: Image;
  #count = 0;

  private constructor(
    seed: number,
    said: readonly Conversation[],
    image: Image,
  ) {
    this.#random = new Random(seed);
    this.#said = said;
    this.#image = image;
  }

  /** Record what is sent when nothing is wrong. */
  static async start(seed: number): Promise<Fuzzer> {
    const said = await Promise.all([...OURS, ...OTHERS].map(conversation));
    return new Fuzzer(seed, said, await memoryImage(2 << 20));
  }

  /** Send nonsense to a server. */
  async server(): Promise<void> {
    const random = this.#random;
    const { client } = this.#said[random.below(this.#said.length)];
    const bytes = mutated(client, random);
    const [ours, theirs] = this.#connection();
    const server = await serveNbd(this.#image, theirs, { writable: true });
    await withTimeout(
      `conversation ${this.#count}`,
      Promise.all([say(ours, bytes), server.ended]),
    );
    assertEquals(server.clients, 0);
  }

  /** Answer a client with nonsense. */
  async client(): Promise<void> {
    const random = this.#random;
    const { talk, server } = this.#said[random.below(OURS.length)];
    const bytes = mutated(server, random);
    const [ours, theirs] = this.#connection();
    const talking = talk(ours).catch((error) => {
      if (!(error instanceof BlockError)) throw error;
    }).finally(() => ours.close());
    await withTimeout(
      `conversation ${this.#count}`,
      Promise.all([say(theirs, bytes), talking]),
    );
  }

  /** Run `count` conversations with one of the ends. */
  async run(end: "server" | "client", count: number): Promise<void> {
    for (let i = 0; i < count; i += AT_ONCE) {
      const batch = Array.from(
        { length: Math.min(AT_ONCE, count - i) },
        () => this[end](),
      );
      await Promise.all(batch);
    }
  }

  #connection(): [ByteStream, ByteStream] {
    this.#count++;
    return streamPair({ most: this.#random.below(3) ? 65536 : 61 });
  }
}

if (import.meta.main) {
  const [count = 100_000, seed = 1] = Deno.args.map(Number);
  const fuzzer = await Fuzzer.start(seed);
  let longest = 0;
  let most = 0;
  const before = Deno.memoryUsage().rss;
  for (const end of ["server", "client"] as const) {
    for (let done = 0; done < count; done += AT_ONCE) {
      const start = performance.now();
      await fuzzer.run(end, Math.min(AT_ONCE, count - done));
      longest = Math.max(longest, performance.now() - start);
      most = Math.max(most, Deno.memoryUsage().rss);
    }
  }
  const mebibytes = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MiB`;
  console.log(
    `${count} conversations with each end, ${AT_ONCE} at once: those that ` +
      `took longest ${Math.round(longest)} ms; memory ${
        mebibytes(before)
      } at first, ` +
      `${mebibytes(most)} at most`,
  );
}
