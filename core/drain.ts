/**
 * Roots of the graph, and holding back the requests that come in through them.
 *
 * @module
 */
import { nodeOf } from "./checks.ts";
import { attach, Edge, type GraphNode, graphNodeOf, usable } from "./graph.ts";
import type { BlockNode, Disk } from "./node.ts";
import { ALL_ACCESS } from "./permissions.ts";
import { RequestGate } from "./lock.ts";
import type { Permissions } from "./traits.ts";

/** What messages call a root. */
const ROOT_NAME = "an unnamed block device";

/**
 * Use a node from outside the graph.
 *
 * @param gate What its requests pass; several roots may share one.
 * @throws {BlockError} EBADF if it is closed; EPERM, EAGAIN or EACCES if its
 * other users forbid it.
 */
export function attachRoot(
  node: BlockNode,
  permissions: Permissions,
  gate: RequestGate = new RequestGate(),
): Edge {
  const root = new Edge(usable(node), ROOT_NAME, { gate });
  attach(root, permissions);
  extendDrains();
  return root;
}

/** The root a node was opened with, if nobody has taken it over yet. */
export function rootToTake(node: BlockNode): Edge | undefined {
  return graphNodeOf(node).users.findLast(({ gate, end }) => gate && !end);
}

/** A root without claims, which only keeps the node open. */
export function hold(node: BlockNode, gate?: RequestGate): Edge {
  return attachRoot(node, { needs: 0, shares: ALL_ACCESS }, gate);
}

/**
 * Stop requests to a node that come in through a handle (an `Image`) of it or
 * of a node above it, or from a job (`convert`, `commit`) on one of them.
 * Requests under way are finished first; new ones wait, and
 * go on in order of arrival once the result is disposed of. Requests made
 * directly to nodes are not covered: their caller has to hold them back.
 *
 * Awaiting a request to a drained image, or a job on it, before the drain ends
 * would deadlock; closing the image is fine, unless requests are waiting.
 *
 * @example Take a copy of a file whose image is in use
 * ```ts
 * import { createImage, drain, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("raw", file, { size: 1024 });
 * await using image = await openImage({ driver: "raw", file });
 * let written = false;
 * {
 *   using _drained = await drain(image);
 *   image.write(0, new Uint8Array(512)).then(() => written = true);
 *   const copy = new Uint8Array(1024);
 *   await image.node.readv(0, [copy]);
 *   assertEquals(written, false);
 * }
 * await image.flush(); // Comes after the write.
 * assertEquals(written, true);
 * ```
 *
 * @category Stacks
 */
export async function drain(disk: Disk): Promise<Disposable> {
  const node = nodeOf("The node to drain", disk);
  const drained = new Drain(graphNodeOf(node));
  await drained.settle();
  drains.add(drained);
  return drained;
}

/** Drains in progress. */
const drains = new Set<Drain>();

/** The graph has changed: drain the new ancestors of drained nodes too. */
export function extendDrains(): void {
  for (const drain of drains) drain.extend();
}

class Drain implements Disposable {
  readonly #target: GraphNode;
  readonly #gates = new Set<RequestGate>();

  constructor(target: GraphNode) {
    this.#target = target;
  }

  /**
   * Shut the gates from the outermost inwards: a request that has passed one
   * may have to pass an inner one to finish.
   */
  async settle(): Promise<void> {
    for (let gates; (gates = this.#outermost());) {
      for (const gate of gates) this.#shut(gate);
      for (const gate of gates) await gate.idle();
    }
  }

  /** The open gates of the topmost node that has any. */
  #outermost(): RequestGate[] | undefined {
    for (const node of withAncestors(this.#target)) {
      const gates = this.#gatesOf(node);
      if (gates.length > 0) return gates;
    }
    return undefined;
  }

  #gatesOf({ users }: GraphNode): RequestGate[] {
    return users.flatMap(({ gate }) =>
      gate && !this.#gates.has(gate) ? [gate] : []
    );
  }

  /** Shut a gate, once: several roots may share it. */
  #shut(gate: RequestGate): void {
    if (this.#gates.has(gate)) return;
    this.#gates.add(gate);
    gate.shut();
  }

  /** Shut new gates above the node; nobody has passed them yet. */
  extend(): void {
    for (const node of withAncestors(this.#target)) {
      for (const gate of this.#gatesOf(node)) this.#shut(gate);
    }
  }

  [Symbol.dispose](): void {
    if (!drains.delete(this)) return;
    for (const gate of this.#gates) gate.open();
  }
}

/** A node and its ancestors, each after its own ancestors. */
export function withAncestors(start: GraphNode): GraphNode[] {
  const sorted: GraphNode[] = [];
  const seen = new Set<GraphNode>();
  const pending: [node: GraphNode, isNext: boolean][] = [[start, false]];
  for (let next; (next = pending.pop());) {
    const [node, isNext] = next;
    if (isNext) sorted.push(node);
    else if (!seen.has(node)) {
      seen.add(node);
      pending.push([node, true]);
      for (const { parent } of node.users) {
        if (parent) pending.push([parent, false]);
      }
    }
  }
  return sorted;
}
