/**
 * Files that must not be left half done.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import { nodesOf } from "../core/extents.ts";
import type { BlockNode } from "../core/node.ts";
import { protocolStack } from "../core/sources.ts";
import type { Program } from "./program.ts";

/** The signals by which a user or a system ends a program. */
export const SIGNALS: readonly [name: Deno.Signal, number: number][] = [
  ["SIGINT", 2],
  ["SIGTERM", 15],
  ["SIGHUP", 1],
];

/**
 * The target of a command that writes an image. If the command fails or is
 * interrupted before {@linkcode Target.complete}, a file that it made is removed:
 * what is left could be taken for a good image.
 */
export class Target implements Disposable {
  readonly #program: Program;
  readonly #name: string;
  /** Where it lies, if it is a local file. */
  readonly #path: string | undefined;
  readonly #listeners: [Deno.Signal, () => void][] = [];
  /** Whose file it is, once it is being written to. */
  #state: "untouched" | "ours" | "theirs" = "untouched";
  /** What tells whether their file was changed. */
  #fingerprintBefore = "";

  /** Further files that were made for it. */
  readonly #parts: string[] = [];
  /** What is being read meanwhile. */
  readonly #sources: readonly BlockNode[];

  /** `name` as the user gave it. */
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
      try {
        Deno.addSignalListener(signal, listener);
      } catch {
        continue; // Not all systems know all of them.
      }
      this.#listeners.push([signal, listener]);
    }
  }

  /** Whether it is a plain file, or is not there yet. */
  get isPlainFile(): boolean {
    return this.#path !== undefined && fileKind(this.#path) !== "other";
  }

  /** Run what makes the file. */
  async make(create: () => Promise<void>): Promise<void> {
    this.#spareSources();
    // If this fails, a file that was there may still be what it was.
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
   * Refuse to empty a file of which something is yet to be read: an image, or
   * one below it. Where files can be locked, the locks would do so as well, and
   * tell of another process; elsewhere the image would be lost.
   */
  #spareSources(): void {
    // QEMU says of a device what opening it is for.
    if (!this.#program.isOurs && !this.isPlainFile) return;
    this.#spare(this.#name, "it");
  }

  #spare(name: string, called: string): void {
    const files = filesOf(this.#sources);
    if (!files.some(({ filename }) => isSameFile(filename, name))) return;
    throw this.#program.isOurs
      ? new BlockError(
        "EBUSY",
        `${called} is to be read, and cannot be overwritten`,
      )
      : new BlockError("EAGAIN", 'Failed to get "write" lock', {
        hint: `Is another process using the image [${name}]?`,
      });
  }

  /** Another file of the image is about to be made, or emptied. */
  addPart(name: string): void {
    this.#spare(name, `'${name}'`);
    const path = localPath(name);
    if (path !== undefined && fileKind(path) === "none") this.#parts.push(path);
  }

  /** Begin to use a file that others have made. */
  use(): void {
    this.#state = "theirs";
    this.#fingerprintBefore = fingerprint(this.#path);
  }

  /** Everything is written. */
  complete(): void {
    this.#state = "untouched";
  }

  /** Removes what is not complete. */
  [Symbol.dispose](): void {
    for (const [signal, listener] of this.#listeners) {
      Deno.removeSignalListener(signal, listener);
    }
    const left = this.#removeOurs();
    // QEMU's tools leave it at the error, and scripts compare what they say.
    if (left && this.#program.isOurs) this.#tellIncomplete();
  }

  /** The file is removed while it is open: nothing else may take long. */
  #interrupt(signal: number): never {
    if (this.#removeOurs()) this.#tellIncomplete();
    Deno.exit(this.#program.finish(128 + signal));
  }

  /** Remove what is ours; answers whether something incomplete is left. */
  #removeOurs(): boolean {
    const state = this.#state;
    this.#state = "untouched";
    if (state === "untouched") return false;
    for (const part of this.#parts.splice(0)) removeQuietly(part);
    if (fileKind(this.#path) === "none") return false;
    if (fileKind(this.#path) !== "file") return true;
    // It may have failed before anything was written.
    if (state === "theirs") {
      return fingerprint(this.#path) !== this.#fingerprintBefore;
    }
    try {
      Deno.removeSync(Deno.realPathSync(this.#path!));
      return false;
    } catch {
      return true;
    }
  }

  #tellIncomplete(): void {
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
    Deno.removeSync(path);
  } catch {
    // It may not have been made yet.
  }
}

/** Whether two names stand for one local file, or for one device. */
export function isSameFile(a: string, b: string): boolean {
  const paths = [a, b].map(localPath);
  try {
    const [first, second] = paths.map((path) => Deno.statSync(path!));
    if (first.isBlockDevice) {
      return second.isBlockDevice === true && first.rdev === second.rdev;
    }
    return first.isFile && first.dev === second.dev && first.ino === second.ino;
  } catch {
    return false;
  }
}

const PATH_DRIVERS = ["file", "host_device", "host_cdrom"];

/** The path of a name that stands for a local file or device. */
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

/** What tells that a file has been written to; nothing if there is none. */
function fingerprint(path: string | undefined): string {
  if (fileKind(path) !== "file") return fileKind(path) === "none" ? "" : "?";
  const { size, blocks, mtime, ctime } = Deno.statSync(path!);
  return [size, blocks, mtime?.getTime(), ctime?.getTime()].join();
}

function fileKind(path: string | undefined): "none" | "file" | "other" {
  if (path === undefined) return "other";
  try {
    return Deno.statSync(path).isFile ? "file" : "other";
  } catch (error) {
    return error instanceof Deno.errors.NotFound ? "none" : "other";
  }
}
