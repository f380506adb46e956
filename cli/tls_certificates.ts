/**
 * Checks of the certificates of `--object tls-creds-x509`: with a wrong one,
 * every connection would fail without saying so to whom it is wrong.
 *
 * @module
 */
import { invalid } from "../core/errors.ts";
import { platform } from "../core/platform/mod.ts";

/** The files that hold an end's identity, and their content. */
export interface CertificateFiles {
  readonly endpoint: "client" | "server";
  readonly dir: string;
  readonly ca?: string;
  readonly certificate?: string;
  readonly key?: string;
  readonly passphrase?: string;
}

interface Certificate {
  readonly ca: boolean;
  readonly validFrom: string;
  readonly validTo: string;
  checkIssued(issuer: Certificate): boolean;
  checkPrivateKey(key: object): boolean;
}

interface Certificates {
  X509Certificate: new (pem: string) => Certificate;
  createPrivateKey(
    key: { key: string; format: "pem"; passphrase?: string },
  ): object;
}

const PEM =
  /-----BEGIN (?:[A-Z\d]+ )?CERTIFICATE-----[^-]*-----END [^-]+-----/g;

/**
 * Refuse certificates that cannot be read, are out of date, or belong neither
 * to the key nor to an authority.
 *
 * @throws {BlockError} EINVAL with QEMU's messages.
 */
export function checkCertificates(files: CertificateFiles): void {
  const { endpoint, dir, ca, certificate } = files;
  const path = `${dir}/${endpoint}-cert.pem`;
  const authorityPath = `${dir}/ca-cert.pem`;
  const own = certificatesIn(certificate);
  if (own instanceof Error || own?.length === 0) {
    const why = own instanceof Error
      ? "ASN1 parser: Error in DER parsing."
      : "Base64 unexpected header error.";
    throw invalid(`Unable to import ${endpoint} certificate ${path}: ${why}`);
  }
  const authorities = certificatesIn(ca);
  if (authorities instanceof Error || authorities?.length === 0) {
    throw invalid(`Unable to import CA certificate list ${authorityPath}`);
  }
  if (own) checkDate(own[0], endpoint, path);
  for (const authority of authorities ?? []) {
    checkDate(authority, "CA", authorityPath);
  }
  if (!own) return;
  const [first, ...others] = own;
  if (first.ca) {
    throw invalid(
      `The certificate ${path} basic constraints show a CA, but we need one ` +
        `for a ${endpoint}`,
    );
  }
  const issuers = authorities && [...others, ...authorities];
  if (issuers && !issuers.some((issuer) => first.checkIssued(issuer))) {
    throw invalid(
      `Our own certificate ${path} failed validation against ` +
        `${authorityPath}: The certificate hasn't got a known issuer`,
    );
  }
  checkKey(first, path, files);
}

/** The certificates in a file: none, if there is nothing like one in it. */
function certificatesIn(text?: string): Certificate[] | undefined | Error {
  if (text === undefined) return undefined;
  const { X509Certificate } = crypto();
  try {
    return [...text.matchAll(PEM)].map(([pem]) => new X509Certificate(pem));
  } catch (error) {
    return error as Error;
  }
}

function checkDate(
  { validFrom, validTo }: Certificate,
  whose: string,
  path: string,
): void {
  const named = `The ${whose} certificate ${path}`;
  if (Date.parse(validTo) < Date.now()) throw invalid(`${named} has expired`);
  if (Date.parse(validFrom) > Date.now()) {
    throw invalid(`${named} is not yet active`);
  }
}

function checkKey(
  certificate: Certificate,
  path: string,
  { endpoint, dir, key = "", passphrase }: CertificateFiles,
): void {
  const refuse = (why: string) =>
    invalid(
      `Cannot load certificate '${path}' & key '${dir}/${endpoint}-key.pem': ` +
        why,
    );
  if (!/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(key)) {
    throw refuse("The requested data were not available.");
  }
  let loaded: object;
  try {
    loaded = crypto().createPrivateKey({ key, format: "pem", passphrase });
  } catch {
    throw refuse(
      key.includes("ENCRYPTED")
        ? "Decryption has failed."
        : "ASN1 parser: Error in DER parsing.",
    );
  }
  if (!certificate.checkPrivateKey(loaded)) {
    throw refuse("The certificate and the given key do not match.");
  }
}

function crypto(): Certificates {
  return platform().crypto() as unknown as Certificates;
}
