/**
 * The location of the service and the credentials, from options or AWS's
 * environment variables.
 *
 * @module
 */
import { BlockError, invalid } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import { platform } from "../../core/platform/mod.ts";
import type { Patience } from "../../core/remote/retry.ts";
import { shortened } from "../../core/values.ts";

/** The keys that sign requests. */
export interface Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

/** How to reach a bucket. */
export interface Settings {
  readonly bucket: string;
  /** The URL below which the keys are, without a slash at its end. */
  readonly base: string;
  readonly region: string;
  /** Absent for unsigned requests, to public objects. */
  readonly credentials?: Credentials;
  readonly patience: Patience;
  /** Environment variables that could not be read without permission. */
  readonly unread: readonly string[];
}

/** The bytes of a secret. */
export type FindSecret = (id: string) => Promise<Uint8Array | undefined>;

/**
 * Determine the settings.
 *
 * @throws {BlockError} EINVAL if they are invalid, or a secret is missing;
 * ENOTSUP if the keys would have to be looked for elsewhere.
 */
export async function settingsOf(
  options: OptionValues,
  secret: FindSecret,
): Promise<Settings> {
  const unread: string[] = [];
  const variable = (...names: string[]) => {
    for (const name of names) {
      const value = platform().environment?.(name);
      if (value === null) unread.push(name);
      else if (value) return value;
    }
  };
  const bucket = checkedBucket(options.bucket);
  const region = options.region as string | undefined ??
    variable("AWS_REGION", "AWS_DEFAULT_REGION") ?? "us-east-1";
  if (!/^[A-Za-z0-9-]{1,64}$/.test(region)) {
    throw invalid(`'${shortened(region, 80)}' is not the name of a region`);
  }
  const endpoint = options["endpoint-url"] as string | undefined ??
    variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL");
  return {
    bucket,
    region,
    base: baseUrl(
      bucket,
      region,
      endpoint,
      options["path-style"] as boolean | undefined,
    ),
    credentials: await credentialsOf(options, secret, variable),
    patience: {
      retries: options.retries as number ?? 5,
      timeout: (options.timeout as number ?? 30) * 1000,
    },
    unread,
  };
}

/** Old bucket names may be longer, with capitals and underscores. */
const BUCKET = /^[A-Za-z0-9][A-Za-z0-9._-]{2,254}$/;

function checkedBucket(bucket: unknown): string {
  if (typeof bucket === "string" && BUCKET.test(bucket)) return bucket;
  if (bucket === undefined || bucket === "") {
    throw invalid("The name of the bucket is missing");
  }
  // Messages must not quote what may be a password.
  if (String(bucket).includes("@")) {
    throw invalid("A bucket is named without a user or a password");
  }
  throw invalid(
    `'${shortened(String(bucket), 80)}' is not the name of a bucket`,
  );
}

/** Check a key, which may be empty for blocks whose keys are only numbers. */
export function checkedKey(key: unknown, mayBeEmpty = false): string {
  const text = String(key ?? "");
  if (text === "" && !mayBeEmpty) throw invalid("The key is missing");
  if (new TextEncoder().encode(text).length > 1000) {
    throw invalid("The key is longer than 1000 bytes");
  }
  const parts = text.split("/");
  if (parts.includes(".") || parts.includes("..")) {
    // Such parts of a URL would be resolved before it is sent.
    throw invalid("A key with a part '.' or '..' cannot be asked for");
  }
  if (!text.isWellFormed()) throw invalid("The key is not valid Unicode");
  return text;
}

function baseUrl(
  bucket: string,
  region: string,
  endpoint: string | undefined,
  wantsPath: boolean | undefined,
): string {
  const url = endpoint === undefined
    ? new URL(`https://s3.${region}.${domainOf(region)}`)
    : parsedEndpoint(endpoint);
  const path = url.pathname.replace(/\/+$/, "");
  // A certificate for all buckets only covers names without dots.
  const inPath = wantsPath ?? (endpoint !== undefined || bucket.includes("."));
  return inPath
    ? `${url.origin}${path}/${bucket}`
    : `${url.protocol}//${bucket}.${url.host}${path}`;
}

function domainOf(region: string): string {
  return region.startsWith("cn-") ? "amazonaws.com.cn" : "amazonaws.com";
}

function parsedEndpoint(text: string): URL {
  // Messages must not quote it: it may contain a password.
  const refuse = (why: string) => invalid(`The endpoint's URL ${why}`);
  if (!URL.canParse(text)) throw refuse("cannot be understood");
  const url = new URL(text);
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw refuse("must begin with http:// or https://");
  }
  if (url.username !== "" || url.password !== "") {
    throw refuse("must not hold a user or a password");
  }
  if (url.search !== "" || url.hash !== "") {
    throw refuse("must not have a query");
  }
  return url;
}

/** Variables by which AWS's own programs find keys elsewhere. */
const OTHER_SOURCES = [
  "AWS_PROFILE",
  "AWS_WEB_IDENTITY_TOKEN_FILE",
  "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
  "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/** Requests would not be signed where the user expects them to be. */
function refuseOtherSources(
  variable: (name: string) => string | undefined,
): void {
  const name = OTHER_SOURCES.find((name) => variable(name) !== undefined);
  if (name === undefined) return;
  throw new BlockError(
    "ENOTSUP",
    `${name} is not supported: keys come from options, or from ` +
      "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    {
      hint: "'aws configure export-credentials --format env' prints them. " +
        `For a public object, unset ${name}.`,
    },
  );
}

async function credentialsOf(
  options: OptionValues,
  secret: FindSecret,
  variable: (name: string) => string | undefined,
): Promise<Credentials | undefined> {
  const find = async (name: string) => {
    const id = options[name] as string | undefined;
    if (id === undefined) return undefined;
    // A file with the secret usually ends in a line break.
    return new TextDecoder().decode(await secret(id)).trim();
  };
  const named = options["access-key"] as string | undefined;
  const ownSecret = await find("secret-key-secret");
  const ownToken = await find("session-token-secret");
  if (named !== undefined && ownSecret === undefined) {
    throw invalid("'access-key' needs 'secret-key-secret'");
  }
  const accessKeyId = named ?? variable("AWS_ACCESS_KEY_ID");
  const secretAccessKey = ownSecret ?? variable("AWS_SECRET_ACCESS_KEY");
  if (accessKeyId === undefined && secretAccessKey === undefined) {
    refuseOtherSources(variable);
    return undefined;
  }
  if (accessKeyId === undefined) {
    throw invalid("There is a secret key without an access key");
  }
  if (secretAccessKey === undefined) {
    throw invalid("There is an access key without a secret key");
  }
  // A token of the environment belongs to its keys.
  const sessionToken = ownToken ??
    (ownSecret === undefined ? variable("AWS_SESSION_TOKEN") : undefined);
  return { accessKeyId, secretAccessKey, sessionToken };
}
