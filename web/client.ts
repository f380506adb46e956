/// <reference lib="dom" />
/**
 * Requests to the worker.
 *
 * @module
 */
import type { Call, Cancel, Reply, Requests, Traffic } from "./messages.ts";

/** A question to the worker that may take a while. */
export interface Pending<Answer> {
  readonly answer: Promise<Answer>;
  cancel(): void;
}

interface Waiting {
  resolve(answer: unknown): void;
  reject(error: Error): void;
  progress?(done: number, total: number): void;
}

/** The worker, as the page sees it. */
export class Client {
  readonly #worker: Promise<Worker>;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  /** Receives how much has been read. */
  onTraffic?: (traffic: Traffic) => void;

  constructor() {
    this.#worker = startWorker();
    this.#worker.then(
      (worker) => {
        worker.onmessage = ({ data }: MessageEvent<Reply>) => this.#take(data);
        worker.onerror = ({ message }) => this.#fail(message);
      },
      (error: Error) => this.#fail(error.message),
    );
  }

  #fail(message: string): void {
    const error = new Error(message || "The page's program cannot be loaded");
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  /** Ask for something. */
  ask<Name extends keyof Requests>(
    name: Name,
    ask: Requests[Name]["ask"],
    progress?: Waiting["progress"],
  ): Pending<Requests[Name]["answer"]> {
    const id = ++this.#lastId;
    const answer = new Promise<unknown>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, progress });
    }) as Promise<Requests[Name]["answer"]>;
    this.#send({ id, name, ask });
    return { answer, cancel: () => this.#send({ cancel: id }) };
  }

  /** What it was not sent has failed already. */
  #send(message: Call | Cancel): void {
    this.#worker.then((worker) => worker.postMessage(message), () => {});
  }

  #take(reply: Reply): void {
    if ("traffic" in reply) {
      this.onTraffic?.(reply.traffic);
      return;
    }
    const waiting = this.#waiting.get(reply.id);
    if (!waiting) return;
    if ("total" in reply) {
      waiting.progress?.(reply.done, reply.total);
      return;
    }
    this.#waiting.delete(reply.id);
    if ("error" in reply) waiting.reject(new Error(reply.error));
    else waiting.resolve(reply.answer);
  }
}

/** The file with the whole program, for a page that is itself a file. */
const WHOLE_PROGRAM = "offline.js";

/** Has the text of the program once that file is loaded. */
declare const WORKER_PROGRAM: string;

/**
 * Start the worker. Its program is loaded part by part, when it is needed; a
 * page that is opened from the disk may load nothing but scripts.
 */
async function startWorker(): Promise<Worker> {
  if (location.protocol !== "file:") {
    const url = new URL("worker.js", document.baseURI);
    return new Worker(url, { type: "module" });
  }
  await loadScript(WHOLE_PROGRAM);
  const type = "text/javascript";
  return new Worker(URL.createObjectURL(new Blob([WORKER_PROGRAM], { type })));
}

function loadScript(name: string): Promise<void> {
  const script = document.createElement("script");
  script.src = name;
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  script.onload = () => resolve();
  script.onerror = () => reject(new Error(`${name} is missing`));
  document.head.append(script);
  return promise;
}
