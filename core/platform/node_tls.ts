/**
 * TLS by `node:tls`, over any byte stream.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { nodeModule } from "./node_modules.ts";
import { type NodeSocket, nodeStream } from "./node_sockets.ts";
import type { ByteStream } from "./sockets.ts";
import type { SharedKeys, Tls, TlsIdentity } from "./tls.ts";

interface Duplex extends NodeSocket {
  push(bytes: Uint8Array | null): void;
  destroy(error?: unknown): void;
}

interface DuplexOptions {
  read(this: Duplex): void;
  write(
    bytes: Uint8Array,
    encoding: string,
    done: (error?: unknown) => void,
  ): void;
  final(done: () => void): void;
  destroy(error: unknown, done: (error: unknown) => void): void;
}

interface PeerCertificate {
  readonly raw?: Uint8Array;
}

interface TlsSocket extends NodeSocket {
  getPeerCertificate(): PeerCertificate;
  /** Why the client's certificate is not trusted. */
  readonly authorizationError?: string | null;
}

interface NodeTls {
  connect(options: object): NodeSocket;
  createServer(options: object): {
    on(event: string, listener: (error: Error) => void): void;
    on(
      event: "tlsClientError",
      listener: (error: Error, socket?: TlsSocket) => void,
    ): void;
    on(event: "secureConnection", listener: (socket: TlsSocket) => void): void;
    emit(event: "connection", socket: Duplex): void;
  };
}

/** TLS by the runtime's `node:tls`. */
export function nodeTls(): Tls {
  const tls = () => nodeModule<NodeTls>("node:tls")!;
  return {
    connect: (...given) => connect(tls(), ...given),
    accept: (...given) => accept(tls(), ...given),
  };
}

/** A byte stream as a Node.js duplex stream. */
function duplexOf(stream: ByteStream): Duplex {
  const { Duplex } = nodeModule<
    { Duplex: new (options: DuplexOptions) => Duplex }
  >("node:stream")!;
  const buffer = new Uint8Array(64 * 1024);
  return new Duplex({
    read() {
      stream.read(buffer).then(
        (count) => this.push(count ? buffer.slice(0, count) : null),
        (error) => this.destroy(error),
      );
    },
    write(bytes, _encoding, done) {
      writeAll(stream, bytes).then(() => done(), done);
    },
    final: (done) => done(),
    destroy(error, done) {
      try {
        stream.close();
      } catch {
        // Closed already.
      }
      done(error);
    },
  });
}

async function writeAll(stream: ByteStream, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += await stream.write(bytes.subarray(done));
  }
}

/**
 * The cipher suites that can be used with shared keys. OpenSSL allows those of
 * TLS 1.3 whose hash is SHA-256; those of TLS 1.2 are off by default.
 */
const SHARED_KEY_CIPHERS = [
  ...["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"],
  ...["kECDHEPSK+HIGH", "kDHEPSK+HIGH", "kPSK+HIGH", "!eNULL"],
].join(":");

function optionsOf(identity: TlsIdentity | SharedKeys): object {
  const minVersion = "TLSv1.2";
  if ("keys" in identity) return { minVersion, ciphers: SHARED_KEY_CIPHERS };
  const { ca, certificate, key, passphrase, verifyPeer = true } = identity;
  return {
    ca,
    cert: certificate,
    key,
    passphrase,
    minVersion,
    rejectUnauthorized: verifyPeer,
  };
}

/** What a client is asked for its key by. */
function clientKey({ keys }: SharedKeys): object {
  const [[identity, psk]] = keys;
  return {
    pskCallback: () => ({ identity, psk }),
    // A server without the key could show a certificate that anybody can have.
    checkServerIdentity: (_host: string, { raw }: PeerCertificate) =>
      raw && new Error("The server has a certificate, but not the key."),
  };
}

async function connect(
  tls: NodeTls,
  stream: ByteStream,
  identity: TlsIdentity | SharedKeys,
  host: string,
): Promise<ByteStream> {
  // An IP address is not valid for server name indication.
  const isAddress = /^[\d.]+$|:/.test(host);
  const raw = duplexOf(stream);
  const socket = tls.connect({
    ...optionsOf(identity),
    ..."keys" in identity && clientKey(identity),
    socket: raw,
    host,
    ...(!isAddress && { servername: host }),
  });
  await new Promise<void>((resolve, reject) => {
    const fail = (error: Error) => reject(tlsError(error, host));
    socket.once("secureConnect", () => resolve());
    socket.on("error", fail);
    onceGone([raw, socket], fail);
  });
  return nodeStream(socket);
}

async function accept(
  tls: NodeTls,
  stream: ByteStream,
  identity: TlsIdentity | SharedKeys,
  authorize?: (name: string) => boolean,
): Promise<ByteStream> {
  const options = {
    ...optionsOf(identity),
    ..."keys" in identity
      ? { pskCallback: (_: object, name: string) => identity.keys.get(name) }
      : { requestCert: identity.verifyPeer ?? true },
  };
  const server = tls.createServer(options);
  const raw = duplexOf(stream);
  const socket = await new Promise<TlsSocket>((resolve, reject) => {
    const fail = (error: Error) => reject(tlsError(error));
    server.on("secureConnection", resolve);
    server.on("tlsClientError", (error, socket) => {
      // What is wrong with a client's certificate is not in the error.
      const code = socket?.authorizationError;
      fail(code ? Object.assign(new Error(code), { code }) : error);
    });
    server.on("error", fail);
    raw.on("error", fail);
    onceGone([raw], fail);
    server.emit("connection", raw);
  });
  if (authorize) {
    try {
      await checkPeer(socket, authorize);
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }
  return nodeStream(socket);
}

/**
 * Call `fail` when the peer has disconnected, which not every runtime's
 * `node:tls` reports during the handshake. One that does has a better reason,
 * and a turn of the event loop to give it.
 */
function onceGone(
  sockets: readonly NodeSocket[],
  fail: (error: Error) => void,
): void {
  const gone = new Error("The TLS connection was non-properly terminated.");
  for (const socket of sockets) {
    for (const event of ["end", "close"]) {
      socket.once(event, () => setTimeout(fail, 0, gone));
    }
  }
}

/**
 * Refuse a client without a certificate, or with one that is not authorized.
 */
async function checkPeer(
  socket: TlsSocket,
  authorize: (name: string) => boolean,
): Promise<void> {
  const { raw } = socket.getPeerCertificate();
  if (!raw) throw tlsError(new Error("no certificate"));
  const { subjectOf } = await import("./distinguished_name.ts");
  const name = subjectOf(raw);
  if (authorize(name)) return;
  throw new BlockError("EACCES", `TLS x509 authz check for ${name} is denied`);
}

/** GnuTLS's words for what is wrong with a certificate, by OpenSSL's codes. */
const UNTRUSTED: { readonly [code: string]: string } = {
  CERT_HAS_EXPIRED: "is not trusted",
  CERT_NOT_YET_VALID: "is not trusted",
  CERT_REVOKED: "has been revoked",
  DEPTH_ZERO_SELF_SIGNED_CERT: "hasn't got a known issuer",
  SELF_SIGNED_CERT_IN_CHAIN: "hasn't got a known issuer",
  UNABLE_TO_GET_ISSUER_CERT: "hasn't got a known issuer",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "hasn't got a known issuer",
  // On Deno, this can mean any of them.
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "is not trusted",
};

function tlsError(error: Error, host?: string): BlockError {
  const { code = "", message } = error as Error & { code?: string };
  const text = code === "ERR_TLS_CERT_ALTNAME_INVALID" ||
      /NotValidForName|not valid for name/i.test(message)
    ? `Certificate does not match the hostname ${host}`
    : UNTRUSTED[code]
    ? `The certificate ${UNTRUSTED[code]}`
    : /no certificate|did not return a certificate/i.test(message)
    ? "Verify failed: No certificate was found."
    : `TLS handshake failed: ${reasonIn(message.split("\n")[0])}`;
  return new BlockError("EACCES", text, { cause: error });
}

/** The reason in a message, which of OpenSSL's is one of many fields. */
function reasonIn(message: string): string {
  const fields = message.split(":");
  const at = fields.indexOf("SSL routines");
  return at < 0 ? message : fields[at + 2] || message;
}
