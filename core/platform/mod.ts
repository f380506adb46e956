/**
 * The runtime that this runs in, and what it provides. Only here it is asked
 * which one that is.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { denoPlatform } from "./deno.ts";
import type { Files } from "./files.ts";
import { nodePlatform } from "./node.ts";
import type { Platform } from "./platform.ts";
import type { Sockets } from "./sockets.ts";
import { webPlatform } from "./web.ts";

export type { Platform } from "./platform.ts";

let current: Platform | undefined;

/** What the runtime provides. */
export function platform(): Platform {
  return current ??= denoPlatform() ?? nodePlatform() ?? webPlatform();
}

/**
 * Its local files.
 *
 * @throws {BlockError} ENOTSUP where there are none.
 */
export function localFiles(): Files {
  const { files } = platform();
  if (files) return files;
  throw new BlockError("ENOTSUP", "This runtime has no local files");
}

/**
 * Its sockets.
 *
 * @throws {BlockError} ENOTSUP where there are none: in a browser.
 */
export function localSockets(): Sockets {
  const { sockets } = platform();
  if (sockets) return sockets;
  throw new BlockError("ENOTSUP", "This runtime has no sockets");
}

/** Have another one from now on, so that tests see other ways; or our own. */
export function usePlatform(other?: Platform): void {
  current = other;
}
