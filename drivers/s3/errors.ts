/**
 * Errors of the service, as errors of the block layer.
 *
 * @module
 */
import { BlockError, type ErrorCode } from "../../core/errors.ts";
import { TransientError } from "../../core/remote/retry.ts";
import { shortened } from "../../core/values.ts";

/** A condition on the object's version does not hold. */
export class ConflictError extends BlockError {
  /** Create an error. */
  constructor() {
    super("EBUSY", "Another program has written to it meanwhile");
  }
}

/** The request that failed. */
export interface FailedRequest {
  readonly bucket: string;
  readonly key: string;
  readonly region: string;
  /** Whether the request was signed. */
  readonly isSigned: boolean;
  /** Environment variables that could not be read. */
  readonly unread: readonly string[];
}

/** The service's report of an error. */
export interface ErrorReport {
  readonly status: number;
  /** The error's name, if the answer has one. */
  readonly code?: string;
  readonly message?: string;
  /** The region in which the bucket is. */
  readonly region?: string;
  /** How long the service asks to wait, in milliseconds. */
  readonly pause?: number;
}

/** Names of transient errors. */
const TRANSIENT = new Set([
  "InternalError",
  "OperationAborted",
  "RequestTimeout",
  "ServiceUnavailable",
  "SlowDown",
  "ThrottlingException",
  "Throttling",
]);

/** Statuses of transient errors. */
const TRANSIENT_STATUSES = new Set([408, 425, 429, 500, 502, 503, 504]);

/** Names of errors about the keys. */
const OF_KEYS: { readonly [code: string]: string } = {
  InvalidAccessKeyId: "The service does not know the access key",
  SignatureDoesNotMatch: "The secret key does not belong to the access key",
  RequestTimeTooSkewed:
    "This computer's clock differs too much from the service's",
  ExpiredToken: "The session token has expired",
  InvalidToken: "The session token is not valid",
  TokenRefreshRequired: "The session token has expired",
};

/** The error for an unexpected response. */
export function serviceError(
  said: ErrorReport,
  asked: FailedRequest,
): BlockError {
  const { status, code = "", pause } = said;
  if (status === 412 || code === "PreconditionFailed") {
    return new ConflictError();
  }
  if (code === "ConditionalRequestConflict") return new ConflictError();
  if (TRANSIENT.has(code) || TRANSIENT_STATUSES.has(status)) {
    const detail = code === "" ? "" : ` (${shortened(code, 40)})`;
    return new TransientError(
      "EIO",
      `The service answers with status ${status}${detail}`,
      pause,
    );
  }
  if (code === "NoSuchBucket") {
    return new BlockError("ENOENT", `There is no bucket '${asked.bucket}'`);
  }
  if (code === "NoSuchKey" || (status === 404 && code === "")) {
    return new BlockError(
      "ENOENT",
      `There is no object '${shortened(asked.key)}' in the bucket ` +
        `'${asked.bucket}'`,
    );
  }
  if (code in OF_KEYS) return new BlockError("EACCES", OF_KEYS[code]);
  const region = said.region === asked.region ? undefined : said.region;
  if (region !== undefined && status < 500 && status !== 403) {
    return new BlockError(
      "EINVAL",
      `The bucket '${asked.bucket}' is in the region ` +
        `'${shortened(region, 40)}', not in '${asked.region}'`,
      { hint: "Set the variable AWS_REGION, or the option 'region'." },
    );
  }
  if (status === 401 || status === 403) return denied(asked);
  return new BlockError(codeOf(status), messageOf(said));
}

function codeOf(status: number): ErrorCode {
  return status === 404 ? "ENOENT" : "EIO";
}

function messageOf({ status, code, message }: ErrorReport): string {
  const words = [code, message].filter((text) => text).map((text) =>
    // deno-lint-ignore no-control-regex -- they could move a terminal's cursor
    shortened(text!.replace(/[\x00-\x1f\x7f-\x9f]+/g, " "), 200)
  );
  return [`The service answers with status ${status}`, ...words].join(": ");
}

function denied({ bucket, isSigned, unread }: FailedRequest): BlockError {
  const flag = unread.includes("AWS_ACCESS_KEY_ID")
    ? "AWS's variables may not be read: run again with the --allow-env flag"
    : undefined;
  return isSigned
    ? new BlockError(
      "EACCES",
      `The service denies these keys access to the bucket '${bucket}'`,
    )
    : new BlockError(
      "EACCES",
      `The service denies access to the bucket '${bucket}' without keys`,
      {
        hint: flag ??
          "Set the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
      },
    );
}

/** The content of the first element with a name; absent if there is none. */
export function element(xml: string, name: string): string | undefined {
  const [, text] = new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml) ?? [];
  return text === undefined ? undefined : unescaped(text);
}

const ENTITIES: { readonly [name: string]: string } = {
  amp: "&",
  apos: "'",
  gt: ">",
  lt: "<",
  quot: '"',
};

function unescaped(text: string): string {
  return text.replace(/&(#x[0-9a-f]{1,6}|#\d{1,7}|[a-z]+);/gi, (all, name) => {
    if (name[0] !== "#") return ENTITIES[name] ?? all;
    const isHex = name[1].toLowerCase() === "x";
    const point = isHex ? parseInt(name.slice(2), 16) : Number(name.slice(1));
    return point <= 0x10ffff ? String.fromCodePoint(point) : all;
  });
}
