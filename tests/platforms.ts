/**
 * What other runtimes provide, tried in this one.
 *
 * @module
 */
import { platform, usePlatform } from "../core/platform/mod.ts";
import { denoPlatform } from "../core/platform/deno.ts";
import { webPlatform } from "../core/platform/web.ts";

/** Whether the system's C library is there and permitted. */
export function isLibcAvailable(): boolean {
  return platform().libc() !== null;
}

/**
 * Have the runtime provide all of its own, all but libraries of the system, or
 * no more than a browser does.
 */
export function setPortable(value: boolean | "libraries"): void {
  if (value === "libraries") {
    const { libraries: _, ...others } = denoPlatform()!;
    usePlatform({ ...others, libc: () => null });
  } else usePlatform(value ? webPlatform() : undefined);
}
