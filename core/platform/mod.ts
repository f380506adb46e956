/**
 * The current runtime's platform. Node.js and Bun are provided by `on_node.ts`,
 * which the command line does not load on Deno.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { denoPlatform } from "./deno.ts";
import type { Files } from "./files.ts";
import type { Platform } from "./platform.ts";
import type { Process } from "./process.ts";
import type { Sockets } from "./sockets.ts";
import { webPlatform } from "./web.ts";

export type { Platform } from "./platform.ts";

/** What runtimes other than Deno provide. */
export const provided: {
  platform?: () => Platform | null;
  process?: () => Process;
} = {};

let current: Platform | undefined;

/** The current platform. */
export function platform(): Platform {
  return current ??= denoPlatform() ?? provided.platform?.() ?? webPlatform();
}

/**
 * The platform's local files.
 *
 * @throws {BlockError} ENOTSUP where there are none.
 */
export function localFiles(): Files {
  const { files } = platform();
  if (files) return files;
  throw new BlockError("ENOTSUP", "This runtime has no local files");
}

/**
 * The platform's sockets.
 *
 * @throws {BlockError} ENOTSUP where there are none, as in a browser.
 */
export async function localSockets(): Promise<Sockets> {
  const { sockets } = platform();
  if (sockets) return await sockets();
  throw new BlockError("ENOTSUP", "This runtime has no sockets");
}

/** Use another platform, for tests; or the runtime's own again. */
export function usePlatform(other?: Platform): void {
  current = other;
}
