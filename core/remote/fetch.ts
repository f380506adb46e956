/**
 * Single requests through the runtime's `fetch`, and the meaning of its errors.
 *
 * The runtime chooses the proxy and the trusted authorities, by its environment
 * variables.
 *
 * @module
 */
import { BlockError, type ErrorCode } from "../errors.ts";
import { TransientError } from "./retry.ts";

/**
 * Make a request, without following redirects.
 *
 * @throws {TransientError} if the connection broke; {@linkcode BlockError}
 * EACCES, ECONNREFUSED, … if there was none.
 */
export async function fetchOnce(
  url: string | URL,
  init: RequestInit,
): Promise<Response> {
  try {
    return await fetch(url, {
      redirect: "manual",
      cache: "no-store",
      ...init,
    });
  } catch (error) {
    throw fetchError(error, new URL(url));
  }
}

/** No connection could be made; trying again later may help. */
export class NoConnectionError extends TransientError {}

/** Kinds of failures, by the runtimes' messages. */
const KINDS: readonly [
  words: RegExp,
  error: (at: URL, text: string) => BlockError,
][] = [
  [
    /^Requires net access/m,
    // One line: the missing permission, and the flag that grants it.
    (_, text) => new BlockError("EACCES", lineWith(text, /Requires net/)),
  ],
  [
    /\bCA file\b/,
    (_, text) =>
      new BlockError(
        "EACCES",
        "The file with authorities that DENO_CERT names is of no use: " +
          lineWith(text, /\bCA file\b/),
      ),
  ],
  [
    /NotValidForName|ALTNAME|certificate|UnknownIssuer|SELF_SIGNED|\bCERT_/i,
    ({ host }, text) =>
      new BlockError(
        "EACCES",
        `The certificate of ${host} is not accepted (${reasonIn(text)}); an ` +
          "authority of your own is given to the runtime: DENO_CERT, " +
          "NODE_EXTRA_CA_CERTS",
      ),
  ],
  [
    /dns error|ENOTFOUND|EAI_|lookup address/i,
    ({ hostname }) =>
      new NoConnectionError("EIO", `Could not resolve host: ${hostname}`),
  ],
  [
    /refused/i,
    (at) => noConnection("ECONNREFUSED", at, "Couldn't connect to server"),
  ],
  [
    /unreachable|EHOSTUNREACH|ENETUNREACH/i,
    (at) => noConnection("EHOSTUNREACH", at, "No route to host"),
  ],
  [
    /ETIMEDOUT|timed out|CONNECT_TIMEOUT/i,
    (at) => noConnection("ETIMEDOUT", at, "Connection timed out"),
  ],
  [
    // Browsers tell a page no more than this.
    /^(Failed to fetch|Load failed|NetworkError when )/,
    ({ host }) =>
      new NoConnectionError(
        "EIO",
        `It cannot be fetched: ${host} does not answer, or does not permit ` +
          "this page to read it (CORS)",
      ),
  ],
  [
    /\bTLS\b|EPROTO|InvalidContentType|corrupt message|wrong version number/i,
    ({ host }) =>
      new BlockError("EIO", `${host} does not answer as a server of TLS does`),
  ],
  [
    /port \d+ (is|are) blocked|bad port/i,
    ({ port }) =>
      new BlockError("EACCES", `The runtime makes no requests to port ${port}`),
  ],
];

function noConnection(code: ErrorCode, at: URL, why: string): BlockError {
  const port = at.port || (at.protocol === "https:" ? "443" : "80");
  return new NoConnectionError(
    code,
    `Failed to connect to ${at.hostname} port ${port}: ${why}`,
  );
}

/** The error for what `fetch` threw. */
function fetchError(thrown: unknown, at: URL): BlockError {
  const texts: string[] = [];
  let cause = thrown as
    | { message?: string; code?: string; cause?: unknown }
    | undefined;
  for (; cause && texts.length < 8; cause = cause.cause as typeof cause) {
    texts.push(`${cause.message ?? ""}`, `${cause.code ?? ""}`);
    // Node tries each address of a host, and reports an error for each.
    const { errors } = cause as { errors?: { message?: string }[] };
    if (Array.isArray(errors)) texts.push(...errors.map((e) => `${e.message}`));
  }
  const text = texts.join("\n");
  const kind = KINDS.find(([words]) => words.test(text));
  // The message itself would quote the URL with its secrets.
  return kind?.[1](at, text) ??
    new TransientError("ECONNRESET", `The connection to ${at.host} broke`);
}

function lineWith(text: string, words: RegExp): string {
  return text.split("\n").find((line) => words.test(line)) ?? "";
}

/** The reason for which a certificate was refused, in a runtime's message. */
function reasonIn(text: string): string {
  return /invalid peer certificate: (\w+)/.exec(text)?.[1] ??
    /\b([A-Z]+(?:_[A-Z]+)+)\b/.exec(text)?.[1] ?? "not trusted";
}
