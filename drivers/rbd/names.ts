/**
 * File names of RBD images, `rbd:POOL/NAMESPACE/IMAGE@SNAPSHOT:NAME=VALUE`.
 * They are known before the rest of the driver is loaded.
 *
 * @module
 */
import { invalid } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";

/**
 * The option for a file name's Ceph settings, as JSON: names and values
 * alternate. The name is QEMU's internal one.
 */
export const SETTINGS = "=keyvalue-pairs";

/**
 * The options for a file name. A backslash escapes the next character.
 *
 * @throws {BlockError} EINVAL with QEMU's messages.
 */
export function parseRbdFilename(filename: string): OptionValues {
  if (!filename.startsWith("rbd:")) {
    throw invalid("File name must start with 'rbd:'");
  }
  const [pool, place] = cut(filename.slice("rbd:".length), "/");
  if (place === undefined) throw invalid("Pool name is required");
  const options: OptionValues = { pool: unescaped(pool) };
  // As in QEMU, any `@` begins a snapshot, wherever it is.
  let [image, rest] = cut(place, place.includes("@") ? "@" : ":");
  if (place.includes("@") && rest !== undefined) {
    let snapshot: string;
    [snapshot, rest] = cut(rest, ":");
    options.snapshot = unescaped(snapshot);
  }
  options.namespace = "";
  if (image.includes("/")) {
    const [namespace, name] = cut(image, "/");
    options.namespace = unescaped(namespace);
    image = name ?? "";
  }
  options.image = unescaped(image);
  addSettings(options, rest);
  return options;
}

function addSettings(options: OptionValues, rest: string | undefined): void {
  const settings: string[] = [];
  while (rest !== undefined) {
    const [name, assigned] = cut(rest, "=");
    if (assigned === undefined) {
      throw invalid(`conf option ${name} has no value`);
    }
    const [value, others] = cut(assigned, ":");
    rest = others;
    const key = unescaped(name);
    if (key === "conf") options.conf = unescaped(value);
    else if (key === "id") options.user = unescaped(value);
    else settings.push(key, unescaped(value));
  }
  if (settings.length > 0) options[SETTINGS] = JSON.stringify(settings);
}

/** Split at the first delimiter that is not escaped. */
function cut(text: string, delimiter: string): [string, string?] {
  for (let at = 0; at < text.length; at++) {
    if (text[at] === delimiter) {
      return [text.slice(0, at), text.slice(at + 1)];
    }
    if (text[at] === "\\") at++;
  }
  return [text];
}

function unescaped(text: string): string {
  return text.replace(/\\(.)/gs, "$1");
}

/** The components of a file name. */
export interface ImageName {
  readonly pool: string;
  /** Empty for the default namespace. */
  readonly namespace?: string;
  readonly image: string;
  readonly snapshot?: string;
}

/** The file name of an image, without Ceph settings. */
export function rbdName(
  { pool, namespace, image, snapshot }: ImageName,
): string {
  const place = [pool, ...namespace ? [namespace] : [], image];
  const named = place.map(escaped).join("/");
  return `rbd:${named}${snapshot === undefined ? "" : `@${escaped(snapshot)}`}`;
}

function escaped(text: string): string {
  return text.replace(/[\\/@:=]/g, "\\$&");
}
