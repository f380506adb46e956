/**
 * What every runtime provides, a browser for one: no files, no libraries.
 *
 * @module
 */
import type { Platform } from "./platform.ts";

/** A browser, or a runtime that nothing else is known of. */
export function webPlatform(): Platform {
  return {
    isWindows: false,
    libc: () => null,
    zlib: () => null,
    crypto: () => null,
    startWorker,
    unrefTimer: () => {},
    surviveSignal: () => {},
  };
}

/** The program is the address itself, so that no permission to read is needed. */
const startWorker: Platform["startWorker"] = (program) => {
  const url = `data:text/javascript,${encodeURIComponent(program)}`;
  const worker = new Worker(url, { type: "module" });
  const thread: ReturnType<Platform["startWorker"]> = {
    post: (message) => worker.postMessage(message),
  };
  worker.onerror = (event) => {
    event.preventDefault();
    thread.onFailure?.();
  };
  return thread;
};
