/**
 * What is known of the drivers before they are loaded.
 *
 * @module
 */
import { invalid } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import type { DriverTraits } from "../../core/traits.ts";
import { shortened } from "../../core/values.ts";

/** Options that are not needed to reach the same content again. */
const TUNING = ["readahead", "timeout", "retries", "connections"];

/** The driver of a scheme, apart from its work. */
export function httpFacts(scheme: "http" | "https"): DriverTraits {
  return {
    name: scheme,
    role: "protocol",
    schemes: [scheme],
    isReadOnly: true,
    // Neither cookies nor headers: names are shown.
    strongOptions: [
      "url",
      "sslverify",
      "username",
      "password-secret",
      "bearer-secret",
      "cookie-secret",
      "headers-secret",
      "download",
    ],
    parseFilename: (url) => ({ url }),
    plainName,
    canonicalName,
    ownFolder: (url) => canonicalName(url).replace(/[^/]*$/, ""),
  };
}

function plainName({ url, ...others }: OptionValues): string | undefined {
  const strong = Object.keys(others).filter((name) => !TUNING.includes(name));
  return strong.length === 0 && typeof url === "string" ? url : undefined;
}

/**
 * The server and the path of a URL. Escaped slashes count as such, since the
 * server may take them so.
 */
function canonicalName(name: string): string {
  try {
    const { origin, pathname } = new URL(name);
    return new URL(origin + pathname.replace(/%2f|%5c/gi, "/")).href;
  } catch {
    return name;
  }
}

/**
 * The URL of an image, for the driver of its scheme.
 *
 * @throws {BlockError} EINVAL in QEMU's words.
 */
export function checkedUrl(scheme: string, name?: string): URL {
  if (name === undefined) {
    throw invalid(`${scheme} block driver requires an 'url' option`);
  }
  if (!name.toLowerCase().startsWith(`${scheme}://`)) {
    throw invalid(
      `${scheme} curl driver cannot handle the URL '${
        shortened(name)
      }' (does not start ` +
        `with '${scheme}://')`,
    );
  }
  try {
    return new URL(name);
  } catch {
    throw invalid(`'${shortened(name)}' is not a valid URL`);
  }
}
