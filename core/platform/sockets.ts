/**
 * Connections to other programs, as byte streams.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { hostError } from "./system_calls.ts";

/**
 * An ordered stream of bytes in both directions, by whatever means. At most one
 * read and one write may be under way at a time.
 *
 * @category Network
 */
export interface ByteStream {
  /**
   * Read available bytes, at least one, into a buffer that is lent until the
   * promise settles; returns their number, or `null` at the end.
   */
  read(into: Uint8Array): Promise<number | null>;
  /** Write some of the bytes, at least one; returns their number. */
  write(bytes: Uint8Array): Promise<number>;
  /** End it: requests under way fail or reach the end. */
  close(): void;
}

/**
 * The address of a socket: a path, or host and port.
 *
 * @category Network
 */
export type SocketAddress =
  | { readonly path: string }
  | { readonly host: string; readonly port: number };

/**
 * A listening socket.
 *
 * @category Network
 */
export interface Listener {
  /** Wait for the next connection; `null` once the socket is closed. */
  accept(): Promise<ByteStream | null>;
  /** Its address, with the actual port in place of port 0. */
  readonly address: SocketAddress;
  /** Stop listening. A path created for it is removed. */
  close(): void;
}

/** A runtime's sockets. */
export interface Sockets {
  /** Connect to a socket. */
  connect(address: SocketAddress): Promise<ByteStream>;
  /** Listen on a socket. */
  listen(address: SocketAddress): Promise<Listener>;
  /** Take over a listening socket that another program has passed on. */
  inherited(descriptor: number): Promise<Listener>;
}

/** An address for messages. */
export function addressText(address: SocketAddress): string {
  return "path" in address ? address.path : `${address.host}:${address.port}`;
}

/** Bytes of the path of a Unix socket, with the NUL at its end (unix(7)). */
const MAX_PATH = 108;

/** The error for an exception of a runtime's socket function. */
export function socketError(
  thrown: unknown,
  address: SocketAddress,
): BlockError {
  const { message = "", code } = thrown as { message?: string; code?: string };
  const isUnknown = /lookup address|ENOTFOUND|EAI_/.test(`${message} ${code}`);
  if (!isUnknown) {
    const error = hostError(thrown);
    const isTooLong = "path" in address && error.code === "EINVAL" &&
      new TextEncoder().encode(address.path).length >= MAX_PATH;
    if (!isTooLong) return error;
    return new BlockError(
      "EINVAL",
      `UNIX socket path '${address.path}' is too long`,
      { cause: thrown, hint: `Path must be less than ${MAX_PATH} bytes` },
    );
  }
  return new BlockError(
    "EIO",
    `address resolution failed for ${addressText(address)}: ` +
      "Name or service not known",
    { cause: thrown },
  );
}
