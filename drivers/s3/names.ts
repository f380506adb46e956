/**
 * The driver's traits and options, needed before it is loaded.
 *
 * @module
 */
import { invalid } from "../../core/errors.ts";
import type { OptionTable, OptionValues } from "../../core/options.ts";
import type { DriverTraits } from "../../core/traits.ts";
import { shortened } from "../../core/values.ts";

/** The options of the driver. */
export const OPEN_OPTIONS: OptionTable = {
  url: { type: "string", help: "s3://BUCKET/KEY, instead of the next two" },
  bucket: { type: "string", help: "Name of the bucket" },
  key: {
    type: "string",
    help: "Key of the object, or what the keys of numbered blocks begin with",
  },
  size: {
    type: "size",
    help: "Size of a disk in numbered blocks; default: as it was created",
  },
  "object-size": {
    type: "size",
    help: "Size of a numbered block; default: as it was created",
  },
  layout: {
    type: "enum",
    values: ["nbdkit", "s3backer"],
    help: "Whose names numbered blocks have: nbdkit's (default) or s3backer's",
  },
  lease: {
    type: "number",
    range: [0, 3600],
    default: 30,
    help: "Seconds for which a writer keeps others away at a time; 0: never",
  },
  "part-size": {
    type: "size",
    help: "Bytes of a part of an upload; default: 8 MiB or more",
  },
  "endpoint-url": {
    type: "string",
    help: "URL of the service; default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL",
  },
  region: {
    type: "string",
    help: "Region; default: AWS_REGION, AWS_DEFAULT_REGION, us-east-1",
  },
  "path-style": {
    type: "boolean",
    help: "Whether URLs have the bucket in the path; default: with an endpoint",
  },
  "access-key": {
    type: "string",
    help: "Id of the access key; default: AWS_ACCESS_KEY_ID",
  },
  "secret-key-secret": {
    type: "string",
    help: "Id of the secret that holds the key; default: AWS_SECRET_ACCESS_KEY",
  },
  "session-token-secret": {
    type: "string",
    help: "Id of the secret that holds the token; default: AWS_SESSION_TOKEN",
  },
  readahead: {
    type: "size",
    help: "Most bytes to read ahead of a reader that reads in order",
  },
  timeout: {
    type: "number",
    range: [1, 10_000],
    default: 30,
    help: "Seconds without an answer after which a request is made again",
  },
  retries: {
    type: "number",
    range: [0, 1000],
    default: 5,
    help: "Most times that a failing request is made again",
  },
};

/** Options of `create`. */
const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Size of the new disk" },
  "object-size": {
    type: "size",
    help: "Store numbered blocks of this size, which can be written to",
  },
};

/** The driver's traits. */
export const S3_TRAITS: DriverTraits = {
  name: "s3",
  role: "protocol",
  schemes: ["s3"],
  openOptions: OPEN_OPTIONS,
  createOptions: CREATE_OPTIONS,
  createsZeroes: true,
  strongOptions: [
    "url",
    "bucket",
    "key",
    "size",
    "object-size",
    "layout",
    "endpoint-url",
  ],
  parseFilename: (url) => ({ url }),
  plainName({ url, bucket, key, ...others }) {
    if (Object.keys(others).length > 0) return undefined;
    return typeof url === "string" ? url : s3Name(String(bucket), String(key));
  },
  // Keys are not normalized.
  canonicalName: (name) => name,
  ownFolder: (name) => name.replace(/[^/]*$/, ""),
};

/**
 * The bucket and the key of `s3://BUCKET/KEY`. The key is literal, not encoded,
 * as in other programs with such names.
 */
export function parseS3Name(name: string): { bucket: string; key: string } {
  const match = /^s3:\/\/([^/]*)(?:\/([^]*))?$/.exec(name);
  if (!match) {
    throw invalid(
      `'${shortened(name, 80)}' is not of the form s3://BUCKET/KEY`,
    );
  }
  const [, bucket, key = ""] = match;
  return { bucket, key };
}

/** The file name of an object. */
export function s3Name(bucket: string, key: string): string {
  return `s3://${bucket}/${key}`;
}

/** Whether a description is of a disk in numbered blocks. */
export function hasBlocks(options: OptionValues): boolean {
  return ["size", "object-size", "layout"].some((name) =>
    options[name] !== undefined
  );
}
