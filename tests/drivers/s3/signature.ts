/**
 * AWS's Signature Version 4, computed from a request as it arrived:
 * independently of the library that signs, following AWS's documentation
 * ("Authenticating Requests: Using the Authorization Header").
 *
 * @module
 */

/** A request as it arrived. */
export interface Arrived {
  readonly method: string;
  /** The path and the query, encoded as they were sent. */
  readonly target: string;
  readonly headers: Headers;
  /** SHA-256 of the body, in hexadecimal digits. */
  readonly bodyHash: string;
}

/** The fault of a signature; `undefined` if it is correct. */
export async function faultOf(
  request: Arrived,
  keys: { readonly [accessKey: string]: string },
): Promise<string | undefined> {
  const [, id, date, region, signed, signature] =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/
      .exec(request.headers.get("authorization") ?? "") ?? [];
  if (id === undefined) return "AccessDenied";
  if (!Object.hasOwn(keys, id)) return "InvalidAccessKeyId";
  const names = signed.split(";");
  const required = [...request.headers.keys()].filter((name) =>
    name.startsWith("x-amz-") || name.startsWith("if-")
  );
  const isCovered = ["host", ...required].every((it) => names.includes(it));
  const isBody =
    request.headers.get("x-amz-content-sha256") === request.bodyHash;
  const expected = await sign(request, names, keys[id], date, region);
  return isCovered && isBody && expected === signature
    ? undefined
    : "SignatureDoesNotMatch";
}

/** The signature that a request should have. */
export async function sign(
  { method, target, headers, bodyHash }: Arrived,
  names: readonly string[],
  secret: string,
  date: string,
  region: string,
): Promise<string> {
  const [path, query = ""] = target.split("?");
  const parameters = query === "" ? [] : query.split("&").map((pair) => {
    const [name, value = ""] = pair.split("=");
    return [encoded(name), encoded(value)].join("=");
  }).sort();
  const canonical = [
    method,
    path.split("/").map(encoded).join("/"),
    parameters.join("&"),
    ...names.map((name) => `${name}:${headers.get(name)?.trim()}`),
    "",
    names.join(";"),
    bodyHash,
  ].join("\n");
  const scope = `${date}/${region}/s3/aws4_request`;
  const text = [
    "AWS4-HMAC-SHA256",
    headers.get("x-amz-date"),
    scope,
    await sha256(new TextEncoder().encode(canonical)),
  ].join("\n");
  let key: Uint8Array<ArrayBuffer> = new TextEncoder().encode(`AWS4${secret}`);
  for (const part of [date, region, "s3", "aws4_request"]) {
    key = await hmac(key, part);
  }
  return hex(await hmac(key, text));
}

/** Encoded as for signing, however it was sent. */
function encoded(part: string): string {
  return encodeURIComponent(decodeURIComponent(part)).replace(
    /[!'()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

async function hmac(
  key: Uint8Array<ArrayBuffer>,
  text: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const hash = { name: "HMAC", hash: "SHA-256" };
  const imported = await crypto.subtle.importKey("raw", key, hash, false, [
    "sign",
  ]);
  const bytes = new TextEncoder().encode(text);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, bytes));
}

/** SHA-256, in hexadecimal digits. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}

function hex(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
