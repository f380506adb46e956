/**
 * The platform of browsers and unknown runtimes: no files, no libraries.
 *
 * @module
 */
import type { Platform } from "./platform.ts";

/** The platform of a browser, or of an unknown runtime. */
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

/** The program is a `data:` URL, so that no read permission is needed. */
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
