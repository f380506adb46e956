/**
 * Files through `node:fs`: positional, but without holes.
 *
 * @module
 */
import type { IoVector } from "../bytes.ts";
import { BlockError } from "../errors.ts";
import type { FileInfo, Files, HostFile } from "./files.ts";
import {
  attempt,
  attemptLater,
  deviceNumbers,
  succeeds,
} from "./system_calls.ts";
import { nodeModule } from "./node_modules.ts";

/** The functions used of `node:fs`. */
interface FileSystem {
  openSync(path: string, flags: string | number, mode?: number): number;
  closeSync(descriptor: number): void;
  readSync: Transfer;
  writeSync: Transfer;
  read: LateTransfer;
  write: LateTransfer;
  fdatasync(descriptor: number, done: (error: unknown) => void): void;
  ftruncateSync(descriptor: number, size: number): void;
  fdatasyncSync(descriptor: number): void;
  fstatSync(descriptor: number): Stats;
  statSync(path: string): Stats;
  realpathSync: { native(path: string): string };
  readlinkSync(path: string): string;
  readFileSync(path: string, encoding: "utf8"): string;
  readonly constants: { readonly [name: string]: number };
}

type Transfer = (
  descriptor: number,
  bytes: Uint8Array,
  start: number,
  length: number,
  position: number,
) => number;

type LateTransfer = (
  ...parameters: [
    ...Parameters<Transfer>,
    done: (error: unknown, count: number) => void,
  ]
) => void;

interface Stats {
  isFile(): boolean;
  isDirectory(): boolean;
  isBlockDevice(): boolean;
  isCharacterDevice(): boolean;
  isSocket(): boolean;
  readonly size: number;
  readonly rdev: number;
  readonly blocks: number;
}

/** The files of Node.js; `null` where there is no `node:fs`. */
export function nodeFiles(): Files | null {
  const fs = nodeModule<FileSystem>("node:fs");
  if (!fs) return null;
  const { process } = globalThis as unknown as { process: { cwd(): string } };
  return {
    stat: (path) => infoOf(attempt(() => fs.statSync(path))),
    open: (path, write) =>
      new NodeFile(fs, attempt(() => fs.openSync(path, write ? "r+" : "r"))),
    create(path) {
      const { O_CREAT, O_RDWR } = fs.constants;
      const flags = O_CREAT | O_RDWR;
      attempt(() => fs.closeSync(fs.openSync(path, flags, 0o644)));
    },
    // deno-lint-ignore require-await
    async adopt(handle) {
      const { fd } = handle as { fd?: unknown };
      if (typeof fd !== "number") return undefined;
      const nothing = new Uint8Array(0);
      const isWritable = succeeds(() => fs.writeSync(fd, nothing, 0, 0, 0));
      return { file: new NodeFile(fs, fd), isWritable };
    },
    realPath: (path) => attempt(() => fs.realpathSync.native(path)),
    readLink: (path) => attempt(() => fs.readlinkSync(path)),
    readText: (path) => attempt(() => fs.readFileSync(path, "utf8")),
    workingFolder: () => attempt(() => process.cwd()),
    whyNoLibc: "that needs Deno on Linux, and --allow-ffi",
  };
}

function infoOf(stats: Stats): FileInfo {
  return {
    isFile: stats.isFile(),
    isDirectory: stats.isDirectory(),
    isBlockDevice: stats.isBlockDevice(),
    isCharDevice: stats.isCharacterDevice(),
    isSocket: stats.isSocket(),
    rdev: stats.rdev,
    // Windows has no block count.
    ...(stats.blocks !== undefined && { actualSize: stats.blocks * 512 }),
  };
}

class NodeFile implements HostFile {
  readonly #fs: FileSystem;
  readonly #descriptor: number;

  constructor(fs: FileSystem, descriptor: number) {
    this.#fs = fs;
    this.#descriptor = descriptor;
  }

  preadv(offset: number, iov: IoVector): void {
    for (const part of iov) {
      const count = this.#transfer("readSync", offset, part);
      part.fill(0, count);
      offset += part.length;
    }
  }

  pwritev(offset: number, iov: IoVector): void {
    for (const part of iov) {
      const count = this.#transfer("writeSync", offset, part);
      if (count < part.length) throw new BlockError("ENOSPC");
      offset += part.length;
    }
  }

  /** Read or write part of a vector; returns the number of bytes. */
  #transfer(
    call: "readSync" | "writeSync",
    offset: number,
    part: Uint8Array,
  ): number {
    let done = 0;
    while (done < part.length) {
      const rest = part.length - done;
      const count = attempt(() =>
        this.#fs[call](this.#descriptor, part, done, rest, offset + done)
      );
      if (count === 0) break;
      done += count;
    }
    return done;
  }

  async preadvLater(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      part.fill(0, await this.#transferLater("read", offset, part));
      offset += part.length;
    }
  }

  async pwritevLater(offset: number, iov: IoVector): Promise<void> {
    for (const part of iov) {
      const count = await this.#transferLater("write", offset, part);
      if (count < part.length) throw new BlockError("ENOSPC");
      offset += part.length;
    }
  }

  async #transferLater(
    call: "read" | "write",
    offset: number,
    part: Uint8Array,
  ): Promise<number> {
    let done = 0;
    while (done < part.length) {
      const count = await attemptLater(() =>
        new Promise<number>((resolve, reject) =>
          this.#fs[call](
            this.#descriptor,
            part,
            done,
            part.length - done,
            offset + done,
            (error, count) => error ? reject(error) : resolve(count),
          )
        )
      );
      if (count === 0) break;
      done += count;
    }
    return done;
  }

  syncLater(): Promise<void> {
    return attemptLater(() =>
      new Promise<void>((resolve, reject) =>
        this.#fs.fdatasync(
          this.#descriptor,
          (error) => error ? reject(error) : resolve(),
        )
      )
    );
  }

  size(): number {
    const stats = attempt(() => this.#fs.fstatSync(this.#descriptor));
    return stats.isBlockDevice() ? this.#deviceSize(stats.rdev) : stats.size;
  }

  /** A device's size, which `stat` lacks; Linux reports it in sectors. */
  #deviceSize(rdev: number): number {
    const [major, minor] = deviceNumbers(rdev);
    const path = `/sys/dev/block/${major}:${minor}/size`;
    return Number(attempt(() => this.#fs.readFileSync(path, "utf8"))) * 512;
  }

  truncate(size: number): void {
    attempt(() => this.#fs.ftruncateSync(this.#descriptor, size));
  }

  sync(): void {
    attempt(() => this.#fs.fdatasyncSync(this.#descriptor));
  }

  close(): void {
    attempt(() => this.#fs.closeSync(this.#descriptor));
  }
}
