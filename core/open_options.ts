/**
 * Options of opening an image.
 *
 * @module
 */
import { checkOptions, type OptionKind } from "./checks.ts";
import { invalid } from "./errors.ts";
import type { Gate, ImplicitOpen } from "./gate.ts";
import type { SecretSource } from "./secrets.ts";
import type { OpenPurpose } from "./traits.ts";
import { valueText } from "./values.ts";
import type { AioMode } from "./traits.ts";

/**
 * How writes reach the disk, by the names of qemu-img's `-t`.
 *
 * @category Images
 */
export type CacheMode =
  | "writeback"
  | "writethrough"
  | "none"
  | "directsync"
  | "unsafe";

/**
 * The progress of unlocking an encrypted image.
 *
 * @category Images
 */
export interface UnlockProgress {
  /** The image, by its user's name for it. */
  readonly filename: string;
  /** Iterations done so far; each key slot has its own number. */
  readonly done: number;
  /** Iterations if only the last slot matches. */
  readonly total: number;
}

/**
 * Options of opening an image.
 *
 * @category Images
 */
export interface OpenOptions {
  /** The format's driver; found by probing if absent. */
  format?: string;
  /** Refuse to write. Default: false. */
  readOnly?: boolean;
  /**
   * Whether to look for the image inside an archive or a compressed file, and
   * to refuse one for which there is no driver. Default: false; the file is then
   * taken for raw, with a warning, as in QEMU.
   */
  unpack?: boolean;
  /**
   * Why it is opened. Default: `io`. With `info`, it is read-only, and an image
   * whose format has no driver can be opened as well; its size is then unknown.
   */
  purpose?: OpenPurpose;
  /**
   * Open it even if another process is writing to it: reads may then see
   * inconsistent data. Read-only images only. Default: false.
   */
  forceShare?: boolean;
  /**
   * Whether others may write to it meanwhile, if its driver supports that.
   * Default: true.
   */
  share?: boolean;
  /** Whether its size will be changed: others must agree now. Default: false. */
  resize?: boolean;
  /** Whether to open backing files. Default: true. */
  backing?: boolean;
  /**
   * Which backing files to open for writing, as `commit` needs, besides those
   * with an option that says so. Default: none.
   */
  writableBacking?(request: ImplicitOpen): boolean;
  /**
   * Which of the files that an image names may be opened. Default: plain files
   * in or below the folder of the opened file; none if that has no folder, as a
   * device or a memory store.
   */
  gate?: Gate;
  /** Longest chain of backing files. Default: 256. */
  maxChain?: number;
  /** How writes reach the disk. Default: `writeback`. */
  cache?: CacheMode;
  /** How requests to files are made, unless their own options say so. */
  aio?: AioMode;
  /** Where the keys of encrypted images come from. Default: nowhere. */
  secrets?: SecretSource;
  /**
   * Whether encrypted images are opened without their keys; their data can
   * neither be read nor written then. Default: false, but an image opened for
   * `info` never asks for keys.
   */
  withoutKeys?: boolean;
  /**
   * Cancels opening, which fails with ECANCELED at once. What is being opened is
   * closed as soon as its driver is done.
   */
  signal?: AbortSignal;
  /**
   * Called while an encrypted image is being unlocked: before each key slot is
   * tried, and once the key is found. Default: ignored.
   */
  onUnlocking?(progress: UnlockProgress): void;
  /**
   * Receives the steps of drivers (allocation, copy-on-write, loads and updates
   * of metadata, flushes), by QEMU's `blkdebug` names.
   */
  onEvent?(name: string, filename: string): void;
  /** Receives warnings. Default: they are dropped. */
  warn?(message: string): void;
  /**
   * Called if a file open for writing cannot be locked, so that nothing keeps
   * other processes away. Default: ignored.
   */
  onUnlocked?(why: string): void;
  /**
   * Receives findings, a line each: damage, and repairs made on opening.
   * Default: they are dropped. `named` marks an error message, which a program
   * prefixes with its name.
   */
  report?(line: string, named?: boolean): void;
}

const KINDS: { readonly [name in keyof OpenOptions]: OptionKind } = {
  format: "string",
  readOnly: "boolean",
  unpack: "boolean",
  purpose: ["io", "info", "check"],
  forceShare: "boolean",
  share: "boolean",
  resize: "boolean",
  backing: "boolean",
  writableBacking: "function",
  maxChain: { least: 0 },
  cache: ["writeback", "writethrough", "none", "directsync", "unsafe"],
  aio: ["threads", "native", "io_uring"],
  withoutKeys: "boolean",
  onUnlocking: "function",
  onEvent: "function",
  warn: "function",
  onUnlocked: "function",
  report: "function",
};

/**
 * Refuse invalid options.
 *
 * @throws {BlockError} EINVAL
 */
export function checkOpenOptions(options: OpenOptions): void {
  checkOptions("open", options, KINDS);
  const { gate, secrets } = options;
  if (gate !== undefined && !isGate(gate)) {
    throw invalid(
      "Cannot open: option 'gate' must be 'allow', 'deny', a function, or " +
        `{ below: FOLDER }, not ${valueText(gate)}`,
    );
  }
  if (typeof secrets === "function") return;
  checkOptions("open", { secrets }, { secrets: "object" });
}

function isGate(gate: unknown): boolean {
  if (typeof gate === "function" || gate === "allow" || gate === "deny") {
    return true;
  }
  const folder = (gate as { below?: unknown } | null)?.below;
  return typeof gate === "object" && typeof folder === "string";
}
