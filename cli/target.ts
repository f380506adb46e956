/**
 * Output files that must not be left incomplete.
 *
 * @module
 */
import { asBlockError, BlockError } from "../core/errors.ts";
import { nodesOf } from "../core/extents.ts";
import type { BlockNode } from "../core/node.ts";
import type { PathStatus } from "../core/platform/process.ts";
import { process } from "../core/platform/this_process.ts";
import { protocolStack } from "../core/sources.ts";
import type { Program } from "./program.ts";

/** The signals that end a program. */
export const SIGNALS: readonly [name: string, number: number][] = [
  ["SIGINT", 2],
  ["SIGTERM", 15],
  ["SIGHUP", 1],
];

/**
 * The target of a command that writes an image. If the command fails or is
 * interrupted before {@linkcode Target.complete}, a file that it created is
 * removed, because it could be taken for a good image.
 */
export class Target implements Disposable {
  readonly #program: Program;
  readonly #name: string;
  /** Its path, if it is a local file. */
  readonly #path: string | undefined;
  readonly #listeners: [string, () => void][] = [];
  /** Whether the command created the file, once it is being written to. */
  #state: "untouched" | "ours" | "theirs" = "untouched";
  /** The fingerprint of an existing file, to tell whether it was changed. */
  #fingerprintBefore = "";

  /** Further files created for it. */
  readonly #parts: string[] = [];
  /** The nodes being read meanwhile. */
  readonly #sources: readonly BlockNode[];

  /** Aborts the creation of the target, which leaves nothing behind. */
  abort?: () => Promise<void>;

  /** Create a target; `name` is as the user gave it. */
  constructor(
    program: Program,
    name: string,
    sources: readonly BlockNode[] = [],
  ) {
    this.#program = program;
    this.#name = name;
    this.#sources = sources;
    this.#path = localPath(name);
    for (const [signal, number] of SIGNALS) {
      const listener = () => this.#interrupt(number);
      // Not every system has every signal.
      if (!process.listen(signal, listener)) continue;
      this.#listeners.push([signal, listener]);
    }
  }

  /** Whether it is a plain file, or does not exist yet. */
  get isPlainFile(): boolean {
    return this.#path !== undefined && fileKind(this.#path) !== "other";
  }

  /** Run `create`, which creates the file. */
  async make(create: () => Promise<void>): Promise<void> {
    this.#spareSources();
    // If this fails, an existing file may still be intact.
    const before = fingerprint(this.#path);
    if (before === "") this.#state = "ours";
    try {
      await create();
      this.#state = "ours";
    } finally {
      if (fingerprint(this.#path) !== before) this.#state = "ours";
    }
  }

  /**
   * Refuse to empty a file that is still to be read: a source image, or one
   * below it. Locks would refuse it too, blaming another process; without locks
   * the image would be lost.
   */
  #spareSources(): void {
    // For a device, QEMU's message comes from opening it.
    if (!this.#program.isOurs && !this.isPlainFile) return;
    this.#spare(this.#path, "it");
  }

  #spare(path: string | undefined, called: string): void {
    const identity = identityOf(path);
    const isSource = identity !== undefined &&
      filesOf(this.#sources).some(({ filename }) =>
        identityOf(localPath(filename)) === identity
      );
    if (!isSource) return;
    throw this.#program.isOurs
      ? new BlockError(
        "EBUSY",
        `${called} is also a source, and cannot be overwritten`,
      )
      : new BlockError("EAGAIN", 'Failed to get "write" lock', {
        hint: `Is another process using the image [${name}]?`,
      });
  }

  /** Another file of the image is about to be created, or emptied. */
  addPart(name: string): void {
    const path = localPath(name);
    this.#spare(path, `'${name}'`);
    if (path !== undefined && fileKind(path) === "none") this.#parts.push(path);
  }

  /** Begin to use an existing file. */
  use(): void {
    this.#state = "theirs";
    this.#fingerprintBefore = fingerprint(this.#path);
  }

  /** Everything has been written. */
  complete(): void {
    this.#state = "untouched";
  }

  /** Remove an incomplete file. */
  [Symbol.dispose](): void {
    for (const [signal, listener] of this.#listeners) {
      process.unlisten(signal, listener);
    }
    const left = this.#removeOurs();
    // QEMU's tools print only the error, and scripts compare their output.
    if (left && this.#program.isOurs) this.#reportIncomplete();
  }

  /** Remove the open file and exit; at once on a second signal. */
  #interrupt(signal: number): void {
    const abort = this.abort;
    this.abort = undefined;
    if (!abort) this.#leave(signal);
    abort().finally(() => this.#leave(signal));
  }

  #leave(signal: number): never {
    if (this.#removeOurs()) this.#reportIncomplete();
    process.exit(this.#program.finish(128 + signal));
  }

  /**
   * Remove a file that we created; returns whether an incomplete one is left.
   */
  #removeOurs(): boolean {
    const state = this.#state;
    this.#state = "untouched";
    if (state === "untouched") return false;
    for (const part of this.#parts.splice(0)) removeQuietly(part);
    if (fileKind(this.#path) === "none") return false;
    if (fileKind(this.#path) !== "file") return true;
    // The command may have failed before anything was written.
    if (state === "theirs") {
      return fingerprint(this.#path) !== this.#fingerprintBefore;
    }
    try {
      process.remove(process.realPath(this.#path!));
      return false;
    } catch {
      return true;
    }
  }

  #reportIncomplete(): void {
    this.#program.error(`'${this.#name}' is left incomplete`);
  }
}

/** The protocol nodes of some stacks. */
function filesOf(nodes: readonly BlockNode[]): BlockNode[] {
  return nodes.flatMap((top) =>
    [...nodesOf(top)].map(({ node }) => node)
      .filter(({ driver }) => driver.role === "protocol")
  );
}

function removeQuietly(path: string): void {
  try {
    process.remove(path);
  } catch {
    // It may not have been created yet.
  }
}

/** Whether two names refer to the same local file or device. */
export function isSameFile(a: string, b: string): boolean {
  const identity = identityOf(localPath(a));
  return identity !== undefined && identity === identityOf(localPath(b));
}

/** What tells an existing file or block device from all others. */
function identityOf(path: string | undefined): string | undefined {
  const status = statusOf(path);
  return status?.isFile || status?.isBlockDevice ? status.identity : undefined;
}

const PATH_DRIVERS = ["file", "host_device", "host_cdrom"];

/** The path of a local file or device. */
function localPath(name: string): string | undefined {
  try {
    const { driver, filename } = protocolStack(name);
    return PATH_DRIVERS.includes(driver ?? "") && typeof filename === "string"
      ? filename
      : undefined;
  } catch {
    return undefined;
  }
}

/**
 * A fingerprint that changes when a file is written to; empty if there is none.
 */
function fingerprint(path: string | undefined): string {
  const status = statusOf(path);
  if (status === null) return "";
  return status?.isFile ? status.fingerprint : "?";
}

function fileKind(path: string | undefined): "none" | "file" | "other" {
  const status = statusOf(path);
  if (status === null) return "none";
  return status?.isFile ? "file" : "other";
}

/** The status of a file; `null` if there is none, `undefined` if unknown. */
function statusOf(
  path: string | undefined,
): PathStatus | null | undefined {
  if (path === undefined) return undefined;
  try {
    return process.status(path);
  } catch (error) {
    return asBlockError(error).code === "ENOENT" ? null : undefined;
  }
}
