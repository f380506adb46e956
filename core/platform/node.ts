/**
 * The platforms Node.js (22.3 and later) and Bun.
 *
 * @module
 */
import { nodeFiles } from "./node_files.ts";
import { nodeModule, nodeModules } from "./node_modules.ts";
import type { Platform, WorkerThread } from "./platform.ts";
import { webPlatform } from "./web.ts";

interface NodeProcess {
  readonly platform: string;
  readonly env: { readonly [name: string]: string | undefined };
  on(signal: string, listener: () => void): void;
}

interface NodeWorker {
  postMessage(message: unknown): void;
  on(event: "error", listener: () => void): void;
  unref(): void;
}

interface WorkerThreads {
  readonly Worker: new (
    program: string,
    options: { eval: true },
  ) => NodeWorker;
}

/** The platform of Node.js or Bun; `null` in another runtime. */
export function nodePlatform(): Platform | null {
  const { process } = globalThis as { process?: NodeProcess };
  const files = nodeFiles();
  if (!process || !files) return null;
  return {
    ...webPlatform(),
    ...nodeModules(),
    isWindows: process.platform === "win32",
    files,
    sockets: async () => (await import("./node_sockets.ts")).nodeSockets(),
    tls: async () => (await import("./node_tls.ts")).nodeTls(),
    // Bun ignores them, as Deno does.
    hasSharedKeys: !("Bun" in globalThis),
    startWorker,
    environment: (name) => process.env[name],
    unrefTimer: (timer) => (timer as { unref?(): void }).unref?.(),
    surviveSignal(signal) {
      try {
        process.on(signal, () => {});
      } catch {
        // Not every system has every signal.
      }
    },
  };
}

/**
 * The globals of a browser's worker, implemented with `node:worker_threads`.
 */
const GLOBALS = `
const { parentPort } = process.getBuiltinModule("node:worker_threads");
globalThis.close = () => parentPort.close();
parentPort.once("message", (data) => globalThis.onmessage({ data }));
`;

function startWorker(program: string): WorkerThread {
  const { Worker } = nodeModule<WorkerThreads>("node:worker_threads")!;
  const worker = new Worker(GLOBALS + program, { eval: true });
  const thread: WorkerThread = {
    post: (message) => worker.postMessage(message),
  };
  worker.on("error", () => thread.onFailure?.());
  worker.unref();
  return thread;
}
