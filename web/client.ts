/// <reference lib="dom" />
/**
 * Asking the worker.
 *
 * @module
 */
import type { Call, Reply, Requests, Traffic } from "./messages.ts";

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
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  /** Receives how much has been read. */
  onTraffic?: (traffic: Traffic) => void;

  /** Start the worker of a program. */
  constructor(program: string) {
    const type = "text/javascript";
    const url = URL.createObjectURL(new Blob([program], { type }));
    this.#worker = new Worker(url);
    this.#worker.onmessage = ({ data }: MessageEvent<Reply>) =>
      this.#take(data);
    this.#worker.onerror = (event) => {
      const error = new Error(event.message || "The worker has failed");
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
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
    this.#worker.postMessage({ id, name, ask } satisfies Call);
    return { answer, cancel: () => this.#worker.postMessage({ cancel: id }) };
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
