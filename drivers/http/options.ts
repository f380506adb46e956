/**
 * The drivers' traits, needed before they are loaded.
 *
 * @module
 */
import { invalid } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import { webTraits } from "../../core/names.ts";
import type { DriverTraits } from "../../core/traits.ts";
import { shortened } from "../../core/values.ts";

/** Options that do not affect the content. */
const TUNING = ["readahead", "timeout", "retries", "connections"];

/** The traits of the driver for a scheme. */
export function httpTraits(scheme: "http" | "https"): DriverTraits {
  return {
    ...webTraits(scheme),
    // Neither cookies nor headers, since names are shown.
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
    plainName,
  };
}

function plainName({ url, ...others }: OptionValues): string | undefined {
  const strong = Object.keys(others).filter((name) => !TUNING.includes(name));
  return strong.length === 0 && typeof url === "string" ? url : undefined;
}

/**
 * The URL of an image, for the driver of its scheme.
 *
 * @throws {BlockError} EINVAL with QEMU's messages.
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
