import { assertEquals, assertThrows } from "@std/assert";
import { subjectOf } from "../../../core/platform/distinguished_name.ts";
import { qemuTest, runOk, TempDir } from "../../qemu.ts";

/** The certificate in a PEM file, as DER. */
function certificateOf(path: string): Uint8Array {
  const text = Deno.readTextFileSync(path);
  const lines = text.split("\n").filter((line) => !line.startsWith("-----"));
  return Uint8Array.from(atob(lines.join("")), (char) => char.charCodeAt(0));
}

qemuTest("subjectOf() writes names as GnuTLS does", async () => {
  await using dir = new TempDir();
  for (
    const [subject, name] of [
      ["/CN=client", "CN=client"],
      [
        '/C=DE/ST=Bay, ern/O=Acme "A"/OU=x/OU=y/CN=client 1/emailAddress=a@b.c',
        'C=DE,ST=Bay\\, ern,O=Acme \\"A\\",OU=x,OU=y,CN=client 1,EMAIL=a@b.c',
      ],
      [
        "/DC=org/DC=example/UID=#7/CN=<a;b>",
        "DC=org,DC=example,UID=\\#7,CN=\\<a\\;b\\>",
      ],
      ["/O=one+CN=two", "O=one+CN=two"],
      ["/CN=Jürgen", "CN=Jürgen"],
      ["/1.2.840.113549.1.9.2=x", "1.2.840.113549.1.9.2=#78"],
    ]
  ) {
    await runOk([
      ...["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-utf8"],
      ...["-pkeyopt", "ec_paramgen_curve:prime256v1", "-multivalue-rdn"],
      ...["-keyout", dir.file("key.pem"), "-out", dir.file("cert.pem")],
      ...["-subj", subject],
    ]);
    const found = subjectOf(certificateOf(dir.file("cert.pem")));
    // Within a set, the order is that of the encoding.
    assertEquals(found.split("+").sort(), name.split("+").sort());
  }
}, ["openssl"]);

Deno.test("subjectOf() refuses anything but a certificate", () => {
  assertThrows(() => subjectOf(new Uint8Array([0x30, 0x84, 1, 1, 1, 1])));
  assertThrows(() => subjectOf(new Uint8Array(3)));
  assertThrows(() => subjectOf(new Uint8Array()));
});
