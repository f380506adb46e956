/**
 * The location of an image, and how to reach its cluster: the driver's options.
 *
 * @module
 */
import { BlockError, invalid } from "../../core/errors.ts";
import { notAmong, type OptionValues } from "../../core/options.ts";
import { isPlainObject } from "../../core/values.ts";
import { type ImageName, parseRbdFilename, SETTINGS } from "./names.ts";

/** The location of an image, and how to reach its cluster. */
export interface Place extends ImageName {
  /** Path of Ceph's configuration. Default: Ceph's own search path. */
  readonly conf?: string;
  /** Name of Ceph's user, without `client.`. */
  readonly user?: string;
  /** Monitor addresses in Ceph's notation, instead of the configured ones. */
  readonly monitors?: string;
  /** Authentication methods, instead of the configured ones. */
  readonly auth?: string;
  /** Id of the secret that holds the user's key. */
  readonly keySecret?: string;
  /** Further Ceph settings. */
  readonly settings: readonly (readonly [name: string, value: string])[];
}

const TEXTS = [
  "pool",
  "namespace",
  "image",
  "snapshot",
  "conf",
  "user",
  "key-secret",
  SETTINGS,
];

/**
 * Parse the options of the driver.
 *
 * @throws {BlockError} EINVAL with QEMU's messages; ENOTSUP for Ceph's own
 * encryption.
 */
export function parsePlace({ filename, ...given }: OptionValues): Place {
  if (typeof filename === "string") {
    for (const [name, value] of Object.entries(parseRbdFilename(filename))) {
      if (name === "namespace" && value === "") continue;
      if (given[name] !== undefined) {
        throw invalid(`Option '${name}' cannot be used with a file name`);
      }
      given[name] = value;
    }
  }
  const text: { [name: string]: string | undefined } = {};
  const lists: { [name: string]: unknown } = {};
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (TEXTS.includes(name)) text[name] = textOf(name, value);
    else addTo(lists, name, value);
  }
  const { server, "auth-client-required": auth, encrypt, ...unknown } = lists;
  if (encrypt !== undefined) {
    throw new BlockError(
      "ENOTSUP",
      "Ceph's own encryption ('encrypt') is not supported: use the format " +
        "'luks' on the image",
    );
  }
  for (const name of Object.keys(unknown)) {
    throw invalid(`Parameter '${name}' is unexpected`);
  }
  return {
    pool: required("pool", text.pool),
    namespace: text.namespace,
    image: required("image", text.image),
    snapshot: text.snapshot,
    conf: text.conf,
    user: text.user,
    monitors: server === undefined ? undefined : monitorsOf(server),
    auth: auth === undefined ? undefined : authOf(auth),
    keySecret: text["key-secret"],
    settings: settingsOf(text[SETTINGS]),
  };
}

function textOf(name: string, value: unknown): string {
  if (!["string", "number", "boolean"].includes(typeof value)) {
    throw invalid(`Invalid parameter type for '${name}', expected: string`);
  }
  const text = String(value);
  if (text.includes("\0")) throw invalid(`'${name}' holds a zero byte`);
  return text;
}

/** Add an option with a dotted name to its nested groups. */
function addTo(
  groups: { [name: string]: unknown },
  name: string,
  value: unknown,
): void {
  const dot = name.indexOf(".");
  if (dot < 0) {
    groups[name] = value;
    return;
  }
  const group = (groups[name.slice(0, dot)] ??= {}) as OptionValues;
  addTo(group, name.slice(dot + 1), value);
}

function required(name: string, value: string | undefined): string {
  if (value === undefined) throw invalid(`Parameter '${name}' is missing`);
  return value;
}

/** The items of a list, or of an object numbered from 0. */
function itemsOf(name: string, value: unknown): unknown[] {
  if (Array.isArray(value)) return value;
  const numbers = isPlainObject(value) ? Object.keys(value) : [""];
  if (!numbers.every((number) => /^\d+$/.test(number))) {
    throw invalid(`Invalid parameter type for '${name}', expected: array`);
  }
  // Numeric names are in order.
  return Object.values(value as OptionValues);
}

function monitorsOf(server: unknown): string | undefined {
  const addresses = itemsOf("server", server).map((item, index) => {
    const at = `server.${index}`;
    if (!isPlainObject(item)) {
      throw invalid(`Invalid parameter type for '${at}', expected: object`);
    }
    const { host, port, ...others } = item as OptionValues;
    for (const name of Object.keys(others)) {
      throw invalid(`Parameter '${at}.${name}' is unexpected`);
    }
    const name = textOf(
      `${at}.host`,
      required(`${at}.host`, host as string | undefined),
    );
    const number = String(
      required(`${at}.port`, port as string | undefined),
    );
    return name.includes(":") ? `[${name}]:${number}` : `${name}:${number}`;
  });
  return addresses.length > 0 ? addresses.join(";") : undefined;
}

const AUTH = ["cephx", "none"];

function authOf(auth: unknown): string {
  const modes = itemsOf("auth-client-required", auth).map(String);
  const odd = modes.find((mode) => !AUTH.includes(mode));
  if (odd !== undefined) {
    throw notAmong(
      `Parameter 'auth-client-required' does not accept value '${odd}'`,
      AUTH,
    );
  }
  return modes.join(";");
}

function settingsOf(json: string | undefined): [string, string][] {
  if (json === undefined) return [];
  const texts = JSON.parse(json) as string[];
  const pairs: [string, string][] = [];
  for (let at = 0; at < texts.length; at += 2) {
    pairs.push([texts[at], texts[at + 1]]);
  }
  return pairs;
}

/**
 * Parse `POOL/NAMESPACE/IMAGE@SNAPSHOT`, as in a file name; `rbd:` may precede
 * it.
 *
 * @throws {BlockError} EINVAL if it names none.
 */
export function parseParent(text: string): ImageName & { snapshot: string } {
  const name = parsePlace({
    filename: text.startsWith("rbd:") ? text : `rbd:${text}`,
  });
  const { pool, namespace, image, snapshot, conf, user, settings } = name;
  if (!snapshot || conf || user || settings.length > 0) {
    throw invalid(
      `'clone_from' must be POOL/NAMESPACE/IMAGE@SNAPSHOT, not '${text}'`,
    );
  }
  return { pool, namespace, image, snapshot };
}
