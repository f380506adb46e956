/**
 * TLS, as far as the block layer uses it.
 *
 * @module
 */
import type { ByteStream } from "./sockets.ts";

/**
 * The identity of one end, and whom it trusts. All in PEM.
 *
 * @category Security
 */
export interface TlsIdentity {
  /** Certificates of trusted authorities. Default: the system's. */
  readonly ca?: string;
  /** The certificate, followed by intermediate ones. */
  readonly certificate?: string;
  /** The private key. */
  readonly key?: string;
  /** The passphrase of an encrypted key. */
  readonly passphrase?: string;
  /** Whether the peer must present a trusted certificate. Default: true. */
  readonly verifyPeer?: boolean;
}

/** Keys that both ends have been given in advance (PSK). */
export interface SharedKeys {
  /** The key of each user. A client has just its own. */
  readonly keys: ReadonlyMap<string, Uint8Array>;
}

/** A runtime's TLS. */
export interface Tls {
  /**
   * Act as the client; the server's certificate must be for `host`, unless it
   * proves that it has the key.
   */
  connect(
    stream: ByteStream,
    identity: TlsIdentity | SharedKeys,
    host: string,
  ): Promise<ByteStream>;
  /**
   * Act as the server. If `authorize` is given, only clients for whose subject
   * it returns true are accepted.
   */
  accept(
    stream: ByteStream,
    identity: TlsIdentity | SharedKeys,
    authorize?: (name: string) => boolean,
  ): Promise<ByteStream>;
}
