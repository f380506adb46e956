/**
 * Names in certificates, formatted as by GnuTLS, and so by QEMU.
 *
 * @module
 */

/** Attributes by their object identifiers' bytes in hexadecimal (X.520, RFC 4519). */
const ATTRIBUTES: { readonly [identifier: string]: string } = {
  "550403": "CN",
  "550404": "SURNAME",
  "550405": "serialNumber",
  "550406": "C",
  "550407": "L",
  "550408": "ST",
  "550409": "STREET",
  "55040a": "O",
  "55040b": "OU",
  "55040c": "T",
  "55042a": "givenName",
  "0992268993f22c640101": "UID",
  "0992268993f22c640119": "DC",
  "2a864886f70d010901": "EMAIL",
};

const SET = 0x31;
const BMP_STRING = 30;
/** `[0]`: the version of a certificate, absent from the oldest ones. */
const VERSION = 0xa0;

interface Element {
  readonly tag: number;
  readonly content: Uint8Array;
}

/** Split DER into its elements (X.690). */
function elementsOf(bytes: Uint8Array): Element[] {
  const found: Element[] = [];
  for (let at = 0; at < bytes.length;) {
    const tag = bytes[at];
    let length = bytes[at + 1];
    at += 2;
    if (length & 0x80) {
      const count = length & 0x7f;
      length = 0;
      for (let i = 0; i < count; i++) length = length * 256 + bytes[at++];
    }
    if (!(at + length <= bytes.length)) throw new RangeError("Broken DER");
    found.push({ tag, content: bytes.subarray(at, at + length) });
    at += length;
  }
  return found;
}

/**
 * The subject of a certificate in DER: `C=DE,O=Acme,CN=client`, in the
 * certificate's order.
 *
 * @throws {RangeError} if it is not a certificate.
 */
export function subjectOf(certificate: Uint8Array): string {
  const [whole] = elementsOf(certificate);
  const [signed] = elementsOf(whole.content);
  const fields = elementsOf(signed.content);
  // Serial number, algorithm, issuer, validity, and then the subject.
  const subject = fields[fields[0].tag === VERSION ? 5 : 4];
  return elementsOf(subject.content).map(({ tag, content }) => {
    if (tag !== SET) throw new RangeError("Broken name");
    return elementsOf(content).map(attribute).join("+");
  }).join(",");
}

function attribute({ content }: Element): string {
  const [identifier, value] = elementsOf(content);
  const known = ATTRIBUTES[hexOf(identifier.content)];
  const text = known && textOf(value);
  return text === undefined
    ? `${dotted(identifier.content)}=#${hexOf(value.content)}`
    : `${known}=${escaped(text)}`;
}

function textOf({ tag, content }: Element): string {
  if (tag === BMP_STRING) {
    return new TextDecoder("utf-16be").decode(content);
  }
  return new TextDecoder().decode(content);
}

function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

/** Escaped as in RFC 4514, section 2.4. */
function escaped(text: string): string {
  return text.replace(/[,+"\\<>;]|^[# ]| $/g, "\\$&");
}

/** An object identifier in dotted decimal. */
function dotted(bytes: Uint8Array): string {
  const numbers: number[] = [];
  let value = 0;
  for (const byte of bytes) {
    value = value * 128 + (byte & 0x7f);
    if (byte & 0x80) continue;
    if (numbers.length > 0) numbers.push(value);
    else {
      const first = Math.min(2, Math.floor(value / 40));
      numbers.push(first, value - first * 40);
    }
    value = 0;
  }
  return numbers.join(".");
}
