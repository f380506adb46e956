/**
 * The platform Deno: its files, the libraries of a Linux system where
 * `--allow-ffi` permits them, and the modules of Node.js.
 *
 * @module
 */
import { files } from "./deno_files.ts";
import { libc, libraries } from "./deno_ffi.ts";
import { nodeModules } from "./node_modules.ts";
import type { Platform } from "./platform.ts";
import { webPlatform } from "./web.ts";

/** The Deno platform; `null` in another runtime. */
export function denoPlatform(): Platform | null {
  if (!("Deno" in globalThis)) return null;
  return {
    ...webPlatform(),
    ...nodeModules(),
    isWindows: Deno.build.os === "windows",
    files,
    sockets: async () => (await import("./deno_sockets.ts")).sockets,
    tls: async () => (await import("./node_tls.ts")).nodeTls(),
    libc,
    libraries,
    environment(variable) {
      // Reading without permission could prompt the user.
      const { state } = Deno.permissions.querySync({ name: "env", variable });
      return state === "granted" ? Deno.env.get(variable) : null;
    },
    unrefTimer: (timer) => Deno.unrefTimer(timer as number),
    surviveSignal(signal) {
      try {
        Deno.addSignalListener(signal as Deno.Signal, () => {});
      } catch {
        // Not every system has every signal.
      }
    },
  };
}
