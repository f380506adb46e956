/**
 * Connections between programs: streams of bytes, as far as the block layer
 * uses them.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { hostError } from "./system_calls.ts";

/**
 * Bytes that come and go, in order: a connection by whatever means. One read
 * and one write may be under way at a time.
 *
 * @category Network
 */
export interface ByteStream {
  /**
   * Read what is there, at least one byte, into a buffer that is lent until the
   * promise settles; answers how many, or `null` at the end.
   */
  read(into: Uint8Array): Promise<number | null>;
  /** Write some bytes, at least one; answers how many. */
  write(bytes: Uint8Array): Promise<number>;
  /** End it: what is under way fails, or comes to its end. */
  close(): void;
}

/**
 * Where a socket is: in the file system, or on the network.
 *
 * @category Network
 */
export type SocketAddress =
  | { readonly path: string }
  | { readonly host: string; readonly port: number };

/**
 * A socket to which others connect.
 *
 * @category Network
 */
export interface Listener {
  /** The next connection; `null` once it has been closed. */
  accept(): Promise<ByteStream | null>;
  /** Where it is; of port 0, the port that was found. */
  readonly address: SocketAddress;
  /** Take no more connections. A path that was made for it is removed. */
  close(): void;
}

/** The sockets of a runtime. */
export interface Sockets {
  /** Connect to a socket. */
  connect(address: SocketAddress): Promise<ByteStream>;
  /** Make a socket. */
  listen(address: SocketAddress): Promise<Listener>;
  /** Take over a socket that another program has made and handed down. */
  inherited(descriptor: number): Promise<Listener>;
}

/** An address as messages have it. */
export function addressText(address: SocketAddress): string {
  return "path" in address ? address.path : `${address.host}:${address.port}`;
}

/** The error for what a runtime threw when it looked for, or made, a socket. */
export function socketError(
  thrown: unknown,
  address: SocketAddress,
): BlockError {
  const { message = "", code } = thrown as { message?: string; code?: string };
  const isUnknown = /lookup address|ENOTFOUND|EAI_/.test(`${message} ${code}`);
  if (!isUnknown) return hostError(thrown);
  return new BlockError(
    "EIO",
    `address resolution failed for ${addressText(address)}: ` +
      "Name or service not known",
    { cause: thrown },
  );
}
