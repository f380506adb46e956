/**
 * How to open an image: what a caller may wish.
 *
 * @module
 */
import { checkOptions, type OptionKind } from "./checks.ts";
import { invalid } from "./errors.ts";
import type { Gate, ImplicitOpen } from "./gate.ts";
import type { SecretSource } from "./secrets.ts";
import type { OpenPurpose } from "./traits.ts";
import { valueText } from "./values.ts";

/** How writes reach the disk; the names are qemu-img's `-t`. */
export type CacheMode =
  | "writeback"
  | "writethrough"
  | "none"
  | "directsync"
  | "unsafe";

/** How to open an image. */
export interface OpenOptions {
  /** The format's driver; found by probing if absent. */
  format?: string;
  /** Refuse to write. Default: false. */
  readOnly?: boolean;
  /**
   * Why it is opened. Default: `io`. For `info`, also an image can be opened
   * whose format has no driver, and so no size that is known.
   */
  purpose?: OpenPurpose;
  /**
   * Open it even if another process is writing to it: what is read may then be
   * half done. Read-only images only. Default: false.
   */
  forceShare?: boolean;
  /** Whether others may write to it meanwhile if it can take it. Default: true. */
  share?: boolean;
  /** Whether its size will be changed: others must agree now. Default: false. */
  resize?: boolean;
  /** Whether to open backing files. Default: true. */
  backing?: boolean;
  /**
   * Which backing files may be written to, as `commit` needs it, apart from
   * those that an option says so of. Default: none.
   */
  writableBacking?(request: ImplicitOpen): boolean;
  /**
   * Which files the image may have opened. Default: plain files in or below
   * the folder of the file that was asked for; none if that has no folder: if
   * it is a device, or lies in memory.
   */
  gate?: Gate;
  /** Most images in a chain of backing files. Default: 256. */
  maxChain?: number;
  /** How writes reach the disk. Default: `writeback`. */
  cache?: CacheMode;
  /** Whether files are to have the option `aio=native`. Default: false. */
  nativeAio?: boolean;
  /** Where the keys of encrypted images come from. Default: nowhere. */
  secrets?: SecretSource;
  /**
   * Whether encrypted images are opened without their keys; their data can
   * neither be read nor written then. Default: false, but of images that are
   * opened for `info` keys are never asked for.
   */
  withoutKeys?: boolean;
  /**
   * Stops what takes long, such as finding the key of an encrypted image: the
   * opening fails with ECANCELED.
   */
  signal?: AbortSignal;
  /**
   * Receives what drivers do as they do it (allocation, copy-on-write, loads
   * and updates of metadata, flushes), by the names QEMU's `blkdebug` uses.
   */
  onEvent?(name: string, filename: string): void;
  /** Receives warnings. Default: they are dropped. */
  warn?(message: string): void;
  /**
   * Learns that a file that is written to cannot be locked, so that nothing
   * keeps another process off. Default: nobody does.
   */
  onUnlocked?(why: string): void;
  /**
   * Receives findings, a line each: damage, and repairs made on opening.
   * Default: they are dropped.
   */
  report?(line: string): void;
}

const KINDS: { readonly [name in keyof OpenOptions]: OptionKind } = {
  format: "string",
  readOnly: "boolean",
  purpose: ["io", "info", "check"],
  forceShare: "boolean",
  share: "boolean",
  resize: "boolean",
  backing: "boolean",
  writableBacking: "function",
  maxChain: { least: 0 },
  cache: ["writeback", "writethrough", "none", "directsync", "unsafe"],
  nativeAio: "boolean",
  withoutKeys: "boolean",
  onEvent: "function",
  warn: "function",
  onUnlocked: "function",
  report: "function",
};

/**
 * Refuse options that make no sense.
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
