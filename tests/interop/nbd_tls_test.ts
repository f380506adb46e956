/**
 * Encrypted connections between our own ends, over streams in memory; the
 * certificates are OpenSSL's.
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

qemuTest("TLS is required or not, of one end or of both", async () => {
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
}, ["openssl"]);
