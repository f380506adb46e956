/**
 * Encryption of connections, as far as the block layer uses it.
 *
 * @module
 */
import type { ByteStream } from "./sockets.ts";

/** What one end shows of itself, and whom it trusts. All in PEM. */
export interface TlsIdentity {
  /** Those who may have signed the peer's certificate; default: the system's. */
  readonly ca?: string;
  /** The certificate, and those between it and the one who signs. */
  readonly certificate?: string;
  /** Its key. */
  readonly key?: string;
  /** What the key is encrypted with, if it is. */
  readonly passphrase?: string;
  /** Whether the peer must show a certificate that is trusted. Default: true. */
  readonly verifyPeer?: boolean;
}

/** Encryption of connections. */
export interface Tls {
  /** Be the client; the server's certificate must be that of `host`. */
  connect(
    stream: ByteStream,
    identity: TlsIdentity,
    host: string,
  ): Promise<ByteStream>;
  /**
   * Be the server; of clients with a certificate only for those for whose name
   * `authorize` answers true, if it is there.
   */
  accept(
    stream: ByteStream,
    identity: TlsIdentity,
    authorize?: (name: string) => boolean,
  ): Promise<ByteStream>;
}
