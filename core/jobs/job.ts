/**
 * What a job holds of the graph: the nodes it works on.
 *
 * @module
 */
import { hold } from "../drain.ts";
import { BlockError } from "../errors.ts";
import { detach, type Edge } from "../graph.ts";
import type { BlockNode } from "../node.ts";
import { RequestGate } from "../lock.ts";

/** A node in use by a job. */
export interface JobNode {
  /**
   * The node. It changes when a filter is inserted above it or removed, and
   * when it is reopened: valid within one request.
   */
  readonly node: BlockNode;
}

/**
 * The nodes of a job, which stay open until it ends, and its requests to them,
 * which wait while one of the nodes is drained. Steps that belong together,
 * such as queries of a chain's layers, are one request: the graph may change
 * between two requests.
 */
export class Job implements AsyncDisposable {
  readonly #signal?: AbortSignal;
  readonly #gate = new RequestGate();
  readonly #roots: Edge[] = [];
  /** A node that could not be kept open. */
  #lost?: string;

  /** `signal` cancels requests that wait. */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  /** Use a node until the job ends. */
  use(node: BlockNode): JobNode {
    const root = hold(node, this.#gate);
    root.lost = () => this.#lost = node.filename;
    // Closing the node is up to whoever opened it; the job releases it in time.
    root.end = () => Promise.resolve();
    this.#roots.push(root);
    return {
      get node() {
        return root.target.node!;
      },
    };
  }

  /**
   * Make a request, which must not wait for another one of the job: that one
   * may be held back until this one has ended.
   *
   * @throws {BlockError} ECANCELED if the job is cancelled before it begins,
   * EBADF if a node is not open any more.
   */
  async request<T>(act: () => T): Promise<Awaited<T>> {
    const turn = this.enter();
    if (turn) await turn;
    try {
      this.#checkOpen();
      return await act();
    } finally {
      this.leave();
    }
  }

  /**
   * Begin a request, for those that are too small and frequent for
   * {@linkcode request}; {@linkcode leave} ends it.
   */
  enter(): Promise<void> | undefined {
    this.#checkOpen();
    return this.#gate.enter(this.#signal);
  }

  /** End a request. */
  leave(): void {
    this.#gate.leave();
  }

  #checkOpen(): void {
    if (this.#lost === undefined) return;
    throw new BlockError("EBADF", `'${this.#lost}' is closed`);
  }

  /** Release the nodes. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const root of this.#roots.splice(0)) await detach(root);
  }
}
