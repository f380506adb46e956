/**
 * Simulating other runtimes in this one.
 *
 * @module
 */
import { platform, usePlatform } from "../core/platform/mod.ts";
import { denoPlatform } from "../core/platform/deno.ts";
import { webPlatform } from "../core/platform/web.ts";

/** Whether the system's C library is available and permitted. */
export function isLibcAvailable(): boolean {
  return platform().libc() !== null;
}

/**
 * Provide everything of this runtime (`false`), everything but system libraries
 * (`"libraries"`), or only what a browser has (`true`).
 */
export function setPortable(value: boolean | "libraries"): void {
  if (value === "libraries") {
    const { libraries: _, ...others } = denoPlatform()!;
    usePlatform({ ...others, libc: () => null });
  } else usePlatform(value ? webPlatform() : undefined);
}
