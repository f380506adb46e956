/**
 * Encrypted connections between our own ends, over streams in memory; the
 * certificates are made by OpenSSL.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../core/runtime.ts";
import {
  BlockError,
  type Image,
  type NbdServerOptions,
  openImage,
  serveNbd,
  TlsCredentials,
} from "../../mod.ts";
import { breakEverywhere, endingsOf } from "../drivers/nbd/breaks.ts";
import { memoryImage } from "../drivers/nbd/peers.ts";
import { streamPair } from "../drivers/nbd/streams.ts";
import { qemuTest, TempDir } from "../qemu.ts";
import { makeCertificates } from "./nbd_peers.ts";

/** Connect to a server with these options. */
function connected(
  image: Image,
  served: NbdServerOptions,
  options: object,
): Promise<Image> {
  return openImage({
    driver: "raw",
    file: {
      driver: "nbd",
      "tls-hostname": "localhost",
      ...options,
      async connect() {
        const [ours, theirs] = streamPair();
        await serveNbd(image, theirs, { writable: true, ...served });
        return ours;
      },
    },
  });
}

qemuTest("TLS is required or not, by one end or by both", async () => {
  await using dir = new TempDir();
  await using image = await memoryImage();
  const folder = await makeCertificates(dir);
  const pem = (name: string) => Deno.readTextFileSync(`${folder}/${name}.pem`);
  const ca = pem("ca-cert");
  const identity = (end: string) => ({
    certificate: pem(`${end}-cert`),
    key: pem(`${end}-key`),
  });
  const server = (verifyPeer: boolean) =>
    new TlsCredentials({
      endpoint: "server",
      ca,
      verifyPeer,
      ...identity("server"),
    });
  const stranger = new TlsCredentials({ endpoint: "client", ca });
  const known = new TlsCredentials({
    endpoint: "client",
    ca,
    ...identity("client"),
  });
  const works = async (served: NbdServerOptions, options: object) => {
    await using disk = await connected(image, served, options);
    const data = crypto.getRandomValues(new Uint8Array(60_000));
    await disk.write(1000, data, { fua: true });
    assert(isEqual(await disk.read(1000, data.length), data));
  };
  const fails = (served: NbdServerOptions, options: object) =>
    assertRejects(() => connected(image, served, options), BlockError);
  const both = { tls: server(true) };
  const one = { tls: server(false) };
  await works(both, { "tls-creds": known });
  await works(one, { "tls-creds": stranger });
  await works(one, { "tls-creds": known });
  await works({ ...one, requireTls: false }, {});
  await works({ ...one, requireTls: false }, { "tls-creds": stranger });
  await fails(both, { "tls-creds": stranger });
  const names: string[] = [];
  const only = (wanted: string) => (name: string) => {
    names.push(name);
    return name === wanted;
  };
  await works({ ...both, authorize: only("CN=client") }, {
    "tls-creds": known,
  });
  await fails({ ...both, authorize: only("CN=other") }, { "tls-creds": known });
  await fails({ ...one, authorize: () => true }, { "tls-creds": stranger });
  assertEquals(new Set(names), new Set(["CN=client"]));
  await fails(one, { "tls-creds": stranger, "tls-hostname": "other.example" });
  const plain = await fails(one, {});
  assert(plain.message.includes("TLS negotiation required before option 7"));
  const none = await fails({}, { "tls-creds": known });
  assert(none.message.endsWith("Denied by server for option 5 (starttls)"));
  const wrong = await fails({}, { "tls-creds": server(true) });
  assert(
    wrong.message.endsWith("Expected TLS credentials for a client endpoint"),
  );
  const unknown = await fails({}, { "tls-creds": "nothing" });
  assertEquals(
    unknown.message.split("': ").at(-1),
    "No TLS credentials with id 'nothing'",
  );
  const nameless = await fails(one, {
    "tls-creds": stranger,
    "tls-hostname": undefined,
  });
  assert(nameless.message.endsWith("No hostname for certificate validation"));
  const distrustful = new TlsCredentials({
    endpoint: "client",
    ca: pem("server-cert"),
  });
  const untrusted = await fails(one, { "tls-creds": distrustful });
  assert(/: The certificate [^:]*$/.test(untrusted.message), untrusted.message);
}, ["openssl"]);

qemuTest("leaving during a TLS handshake blocks nobody", async () => {
  await using dir = new TempDir();
  await using image = await memoryImage();
  const folder = await makeCertificates(dir);
  const pem = (name: string) => Deno.readTextFileSync(`${folder}/${name}.pem`);
  const identity = {
    certificate: pem("server-cert"),
    key: pem("server-key"),
  };
  const ca = pem("ca-cert");
  const tls = new TlsCredentials({ endpoint: "server", ca, ...identity });
  const client = new TlsCredentials({ endpoint: "client", ca });
  // What each end sends before it leaves: nothing, or the beginning of a
  // record.
  for (const said of [[], [22, 3, 1, 0]]) {
    for (const end of [tls, client]) {
      const [ours, theirs] = streamPair();
      const lost = assertRejects(
        () => end === tls ? tls.accept(theirs) : end.connect(theirs, "x"),
        BlockError,
      );
      if (said.length > 0) await ours.write(Uint8Array.from(said));
      ours.close();
      const { message } = await lost;
      assert(message.startsWith("TLS handshake failed: "));
    }
  }
  // A peer that rejects the certificate does not block a slot, either.
  const left: (string | undefined)[] = [];
  const options = {
    tls,
    maxClients: 1,
    onDisconnect: (_: boolean, why?: string) => void left.push(why),
  };
  await using server = await serveNbd(
    image,
    { host: "127.0.0.1", port: 0 },
    options,
  );
  const { port } = server.address as { port: number };
  const stranger = { "tls-creds": client, "tls-hostname": "other.example" };
  for (let count = 1; count < 4; count++) {
    const error = await assertRejects(
      () =>
        openImage({
          driver: "nbd",
          server: { type: "inet", host: "127.0.0.1", port: String(port) },
          ...stranger,
        }),
      BlockError,
    );
    assert(error.message.endsWith("match the hostname other.example"));
    while (left.length < count) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
  assertEquals(server.clients, 0);
  const why = "TLS handshake failed: " +
    "The TLS connection was non-properly terminated.";
  assertEquals(
    new Set(left),
    new Set([`option negotiation failed: ${why}`]),
  );
}, ["openssl"]);

qemuTest(
  "nothing promised is lost when an encrypted connection breaks",
  async () => {
    await using dir = new TempDir();
    const folder = await makeCertificates(dir);
    const pem = (name: string) =>
      Deno.readTextFileSync(`${folder}/${name}.pem`);
    const of = (endpoint: "client" | "server") =>
      new TlsCredentials({
        endpoint,
        ca: pem("ca-cert"),
        certificate: pem(`${endpoint}-cert`),
        key: pem(`${endpoint}-key`),
      });
    const setting = { tls: { client: of("client"), server: of("server") } };
    for (const ending of endingsOf(setting)) {
      await breakEverywhere(ending, setting, 41);
    }
  },
  ["openssl"],
);
