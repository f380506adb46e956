/**
 * Disks served within a test, and peers that speak the protocol by hand.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { Image } from "../../../core/image.ts";
import { openNode } from "../../../core/open.ts";
import type { ByteStream } from "../../../core/platform/sockets.ts";
import { NbdClient } from "../../../drivers/nbd/client.ts";
import {
  ClientHandshake,
  type HandshakeRequest,
} from "../../../drivers/nbd/client_handshake.ts";
import { MessageReader } from "../../../drivers/nbd/bytes.ts";
import {
  type Fields,
  joined,
  message,
  OPTION_MAGIC,
  REQUEST_MAGIC,
} from "../../../drivers/nbd/wire.ts";
import {
  createImage,
  MemoryStore,
  type NbdServer,
  type NbdServerOptions,
  serveNbd,
} from "../../../mod.ts";
import { type PairOptions, streamPair } from "./streams.ts";

/** A disk of a few MiB in memory. */
export async function memoryImage(size = 4 << 20): Promise<Image> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size });
  return new Image(await openNode({ driver: "qcow2", file }));
}

/** A server of one connection, and our end of that connection. */
export async function served(
  image: Image,
  options: NbdServerOptions = {},
  how: PairOptions = {},
): Promise<[stream: ByteStream, server: NbdServer]> {
  const [ours, theirs] = streamPair(how);
  return [ours, await serveNbd(image, theirs, { writable: true, ...options })];
}

/** A client on a connection. */
export async function entered(
  stream: ByteStream,
  requested: Partial<HandshakeRequest> = {},
): Promise<NbdClient> {
  const context = "base:allocation";
  const all = { exportName: "", context, ...requested };
  return new NbdClient(await new ClientHandshake(stream, all).enter());
}

/** A client that sends whatever it is told to. */
export class RawClient {
  readonly stream: ByteStream;
  readonly #reader: MessageReader;

  constructor(stream: ByteStream) {
    this.stream = stream;
    this.#reader = new MessageReader(stream);
  }

  /** Answer the greeting. */
  async greet(flags = 3): Promise<void> {
    await this.#reader.next(18);
    const answer = message(4);
    answer.setU32(0, flags);
    await this.send(answer.bytes);
  }

  async send(...pieces: Uint8Array[]): Promise<void> {
    const bytes = joined(...pieces);
    for (let at = 0; at < bytes.length;) {
      at += await this.stream.write(bytes.subarray(at));
    }
  }

  /** Send an option; `length` may be a lie. */
  async option(
    option: number,
    data: Uint8Array = new Uint8Array(0),
    length = data.length,
  ): Promise<void> {
    const header = message(16);
    header.setMagic(0, OPTION_MAGIC);
    header.setU32(8, option);
    header.setU32(12, length);
    await this.send(header.bytes, data);
  }

  /** The next reply to an option. */
  async reply(): Promise<{ type: number; text: string; data: Uint8Array }> {
    const header = await this.#reader.message(20);
    const data = await this.#reader.bytes(header.u32(16));
    return { type: header.u32(12), data, text: new TextDecoder().decode(data) };
  }

  async request(
    type: number,
    offset: number,
    length: number,
    { flags = 0, cookie = 1, data = new Uint8Array(0) } = {},
  ): Promise<void> {
    const header = message(28);
    header.setU32(0, REQUEST_MAGIC);
    header.setU16(4, flags);
    header.setU16(6, type);
    header.setU64(8, cookie);
    header.setU64(16, offset);
    header.setU32(24, length);
    await this.send(header.bytes, data);
  }

  /** The error number and the cookie of a simple reply. */
  async simpleReply(): Promise<[error: number, cookie: number]> {
    const reply = await this.read(16);
    assertEquals(reply.u32(0), 0x67446698);
    return [reply.u32(4), reply.u64(8)];
  }

  read(length: number): Promise<Fields> {
    return this.#reader.message(length);
  }

  /** Whether the connection has ended. */
  async isAtEnd(): Promise<boolean> {
    return await this.#reader.next(1).then(() => false, () => true);
  }
}
