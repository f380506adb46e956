/**
 * Parsing the drivers' options.
 *
 * @module
 */
import type { OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import {
  type OptionTable,
  type OptionValues,
  parseOption,
  parseOptions,
} from "../../core/options.ts";
import {
  DEFAULT_CONNECTIONS,
  DEFAULT_READ_AHEAD,
} from "../../core/remote/remote_reader.ts";
import type { Patience } from "../../core/remote/retry.ts";
import { isPlainObject, shortened } from "../../core/values.ts";
import { checkedUrl } from "./options.ts";

/** Options of the drivers, with QEMU's names where it has them. */
export const OPEN_OPTIONS: OptionTable = {
  url: { type: "string", help: "URL of the image" },
  readahead: {
    type: "size",
    default: DEFAULT_READ_AHEAD,
    help: "Most bytes to fetch ahead of sequential reads",
  },
  sslverify: {
    type: "boolean",
    default: true,
    help: "Verify the certificate of the server; cannot be turned off",
  },
  timeout: {
    type: "number",
    default: 10,
    help: "Seconds without a byte from the server until it is asked again",
  },
  retries: {
    type: "number",
    range: [0, 1000],
    default: 4,
    help: "Further attempts after failures that may pass",
  },
  connections: {
    type: "number",
    range: [1, 256],
    default: DEFAULT_CONNECTIONS,
    help: "Most requests at once",
  },
  username: { type: "string", help: "User name for basic authorisation" },
  "password-secret": { type: "string", help: "Id of a secret: the password" },
  "bearer-secret": {
    type: "string",
    help: "Id of a secret: the token of bearer authorisation",
  },
  cookie: { type: "string", help: "Cookies to send (NAME=CONTENT; ...)" },
  "cookie-secret": { type: "string", help: "Id of a secret: the cookies" },
  "headers-secret": {
    type: "string",
    help: "Id of a secret: more headers to send, one a line (NAME: VALUE)",
  },
  "proxy-username": {
    type: "string",
    help: "Refused: the runtime's HTTPS_PROXY has it",
  },
  "proxy-password-secret": {
    type: "string",
    help: "Refused: the runtime's HTTPS_PROXY has it",
  },
  download: {
    type: "string",
    help: "Where to fetch all of it to if the server has no ranges: " +
      "'memory', or a new file",
  },
  "download-limit": {
    type: "size",
    default: 256 * 1024 * 1024,
    help: "Most bytes to fetch so; only in memory limited by default",
  },
};

/** The settings of a node, from its options. */
export interface Settings {
  /** The object's URL, without user name and password. */
  readonly url: URL;
  /** Headers sent to the server of that URL, and to no other. */
  readonly headers: Headers;
  readonly patience: Patience;
  /** Bytes. */
  readonly readAhead: number;
  readonly connections: number;
  /** Where the object is downloaded to if the server has no ranges. */
  readonly download?: string;
  /** Bytes. */
  readonly downloadLimit: number;
}

/** Longest timeout, in seconds, as in QEMU. */
const MAX_TIMEOUT = 10_000;

/**
 * Determine the settings of a node.
 *
 * @param scheme The name of its driver.
 * @throws {BlockError} EINVAL, with QEMU's messages where it has them; ENOTSUP
 * for what the runtime cannot do.
 */
export async function settingsOf(
  scheme: string,
  given: OptionValues,
  context: OpenContext,
): Promise<Settings> {
  const { filename, headers, ...options } = given;
  const [plain, dotted] = takeDotted(options, "headers.");
  // A description may give a file name instead of a URL.
  const parsed = parseOptions(OPEN_OPTIONS, {
    ...plain,
    url: plain.url ?? filename,
  });
  const text = (name: string) => parsed[name] as string | undefined;
  const number = (name: string) =>
    (parsed[name] ?? OPEN_OPTIONS[name].default) as number;
  refuseWhatCannotBe(parsed);
  const url = checkedUrl(scheme, text("url"));
  const readAhead = number("readahead");
  if (readAhead % 512 !== 0) {
    throw invalid(`HTTP_READAHEAD_SIZE ${readAhead} is not a multiple of 512`);
  }
  const timeout = number("timeout");
  if (timeout > MAX_TIMEOUT) {
    throw invalid("timeout parameter is too large or negative");
  }
  const download = text("download");
  return {
    url: withoutUser(url),
    headers: await headersOf(url, text, { headers, dotted }, context),
    patience: {
      retries: number("retries"),
      timeout: timeout === 0 ? Infinity : timeout * 1000,
    },
    readAhead,
    connections: number("connections"),
    download,
    downloadLimit: parsed["download-limit"] as number | undefined ??
      (download === "memory"
        ? OPEN_OPTIONS["download-limit"].default as number
        : Infinity),
  };
}

function takeDotted(
  options: OptionValues,
  prefix: string,
): [plain: OptionValues, dotted: OptionValues] {
  const [plain, dotted]: OptionValues[] = [{}, {}];
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith(prefix)) dotted[name.slice(prefix.length)] = value;
    else plain[name] = value;
  }
  return [plain, dotted];
}

function refuseWhatCannotBe(parsed: OptionValues): void {
  if (parsed.sslverify === false) {
    throw new BlockError(
      "ENOTSUP",
      "sslverify=off is not possible for one image: the runtime verifies " +
        "certificates for all connections. Give it the authority " +
        "(DENO_CERT, NODE_EXTRA_CA_CERTS), or turn it off for all " +
        "(deno's --unsafely-ignore-certificate-errors)",
    );
  }
  for (const name of ["proxy-username", "proxy-password-secret"]) {
    if (parsed[name] === undefined) continue;
    throw new BlockError(
      "ENOTSUP",
      `${name} is not possible for one image: the runtime chooses the proxy, ` +
        "and takes the user from its environment (HTTPS_PROXY, with " +
        "USER:PASSWORD@ before the proxy's host)",
    );
  }
}

function withoutUser(url: URL): URL {
  const plain = new URL(url);
  plain.username = plain.password = plain.hash = "";
  return plain;
}

/** Headers that the driver sets itself. */
const OWN_HEADERS = /^(range|accept-encoding|host|if-.*|connection)$/i;

/** The headers only for the server that the user named. */
async function headersOf(
  url: URL,
  text: (name: string) => string | undefined,
  given: { headers: unknown; dotted: OptionValues },
  context: OpenContext,
): Promise<Headers> {
  const headers = new Headers();
  const set = (name: string, value: string) => {
    if (OWN_HEADERS.test(name)) {
      throw invalid(`The header '${shortened(name, 80)}' is the driver's own`);
    }
    setHeader(headers, name, value);
  };
  if (given.headers !== undefined && !isPlainObject(given.headers)) {
    throw invalid("Parameter 'headers' expects an object of names and values");
  }
  for (
    const [name, value] of Object.entries({ ...given.headers, ...given.dotted })
  ) {
    set(name, parseOption(name, { type: "string", help: "" }, value) as string);
  }
  const secret = async (name: string) => {
    const id = text(name);
    if (id === undefined) return undefined;
    // An empty secret is valid, too.
    return new TextDecoder().decode(await context.secret(id));
  };
  for (const line of (await secret("headers-secret") ?? "").split(/\r?\n/)) {
    if (line.trim() === "") continue;
    const colon = line.indexOf(":");
    if (colon < 0) throw invalid("headers-secret has a line without a colon");
    set(line.slice(0, colon).trim(), line.slice(colon + 1).trim());
  }
  const hidden = await secret("cookie-secret");
  const cookie = text("cookie");
  if (hidden !== undefined && cookie !== undefined) {
    throw invalid("curl driver cannot handle both cookie and cookie secret");
  }
  if (hidden !== undefined || cookie !== undefined) {
    setHeader(headers, "cookie", hidden ?? cookie!);
  }
  const authorization = authorizationOf(
    text("username") ?? decoded(url.username),
    // Passwords have no control characters (RFC 7617, section 2), but files end
    // with a newline.
    (await secret("password-secret"))?.replace(/\r?\n$/, "") ??
      decoded(url.password),
    await secret("bearer-secret"),
  );
  if (authorization) setHeader(headers, "authorization", authorization);
  return headers;
}

/** A missing part of a URL is an empty string. */
function decoded(part: string): string | undefined {
  if (part === "") return undefined;
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function authorizationOf(
  username: string | undefined,
  password: string | undefined,
  token: string | undefined,
): string | undefined {
  if (token !== undefined) {
    if (username !== undefined || password !== undefined) {
      throw invalid("Either username or bearer-secret can be given, not both");
    }
    return `Bearer ${token.trim()}`;
  }
  if (username === undefined) {
    if (password === undefined) return undefined;
    throw invalid("password-secret is of no use without username");
  }
  if (username.includes(":")) {
    throw invalid("A user name for basic authorisation has no colon");
  }
  const bytes = new TextEncoder().encode(`${username}:${password ?? ""}`);
  return `Basic ${btoa(String.fromCharCode(...bytes))}`;
}

function setHeader(headers: Headers, name: string, value: string): void {
  try {
    headers.set(name, value);
    // Browsers drop headers under their own control, such as cookies.
    const { headers: sent } = new Request("http://localhost/", {
      headers: { [name]: value },
    });
    if (sent.has(name)) return;
  } catch {
    // The value may be a secret.
    throw invalid(`The header '${shortened(name, 80)}' cannot be sent so`);
  }
  throw new BlockError(
    "ENOTSUP",
    `This runtime does not let programs set the header '${name}'`,
  );
}
