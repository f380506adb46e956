/**
 * Inspecting: what an image is, and whether it is safe to use, before opening
 * it.
 *
 * @module
 */
import { checkSignal } from "../abort.ts";
import { allocate } from "../bytes.ts";
import { checkNode, checkOptions } from "../checks.ts";
import { asBlockError, BlockError, invalid } from "../errors.ts";
import {
  formatOfTail,
  formatsOfHead,
  hasVhdFooter,
  HEAD_LENGTH,
  type ImageFormat,
  TAIL_LENGTH,
  wrappingOf,
} from "../formats.ts";
import { type Gate, passes, passesByDefault } from "../gate.ts";
import {
  fileSystemOf,
  hasPartitionTable,
  inspectPartitions,
  isIso,
} from "../inspect/disk.ts";
import { inspectVhd, inspectVhdx } from "../inspect/microsoft.ts";
import {
  inspectAsif,
  inspectBochs,
  inspectCloop,
  inspectDmg,
  inspectLuks,
  inspectParallels,
  inspectQed,
  inspectVdi,
} from "../inspect/others.ts";
import { inspectQcow2 } from "../inspect/qcow2.ts";
import {
  type Finding,
  type Inspection,
  type NamedFile,
  type Naming,
  Report,
  type Severity,
  type Verdict,
} from "../inspect/report.ts";
import { inspectVmdk, isDescription } from "../inspect/vmdk.ts";
import { BUDGET, bytesOf, has, Window } from "../inspect/window.ts";
import type { BlockNode } from "../node.ts";
import { resolveFrom } from "../node_names.ts";
import { openProtocol } from "../open.ts";
import { noDriverText } from "../probe.ts";
import { findDriver, getDriver } from "../registry.ts";
import { protocolStack } from "../sources.ts";
import { isNode, type Source } from "../spec.ts";

export type {
  Finding,
  Inspection,
  NamedFile,
  PartitionTable,
  Severity,
  Verdict,
} from "../inspect/report.ts";

/**
 * How to inspect.
 *
 * @category Jobs
 */
export interface InspectOptions {
  /** Inspect it even if another process is writing to it. Default: false. */
  forceShare?: boolean;
  /**
   * Read a stream to its end: only then are its size and any footer known.
   * Default: its first MiB, and up to 8 MiB if the header refers further.
   */
  whole?: boolean;
  /**
   * Which of the files that the image names would be opened with it. Default:
   * as for `openImage`. None is opened to find out.
   */
  gate?: Gate;
  /** Ends the job with ECANCELED. */
  signal?: AbortSignal;
}

/**
 * Inspect an image: its format by all magics, its header, and reasons not to
 * use it. At most 1 MiB of the file is read, and no file that it names is
 * opened.
 *
 * Whatever OpenStack's `format_inspector` refuses is a `danger` here too, as is
 * every other file that belongs to the image.
 *
 * @param source The file, by its name or the description of a protocol node; an
 * open node; or a stream of its bytes.
 * @throws {BlockError} EINVAL if the source is the description of an image of
 * some format instead of its file, and whatever reading the file throws.
 *
 * @example
 * ```ts
 * import { createImage, inspect, MemoryStore } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 30 });
 * const { format, virtualSize, verdict } = await inspect(file);
 * assertEquals([format, virtualSize, verdict], ["qcow2", 1 << 30, "safe"]);
 * ```
 *
 * @category Jobs
 */
export async function inspect(
  source: Source | BlockNode | AsyncIterable<Uint8Array>,
  options: InspectOptions = {},
): Promise<Inspection> {
  checkOptions("inspect", options, {
    forceShare: "boolean",
    whole: "boolean",
    signal: "object",
  });
  try {
    if (isStream(source)) return await inspectStream(source, options);
    return await inspectFile(source, options);
  } catch (error) {
    throw asBlockError(error);
  }
}

function isStream(source: unknown): source is AsyncIterable<Uint8Array> {
  return typeof source === "object" && source !== null &&
    Symbol.asyncIterator in source;
}

async function inspectFile(
  source: Source | BlockNode,
  options: InspectOptions,
): Promise<Inspection> {
  const { forceShare, signal, gate } = options;
  if (isNode(source)) checkNode("The source", source);
  else checkIsFile(source);
  const node = isNode(source)
    ? source
    : await openProtocol(source, { readOnly: true, forceShare, signal });
  try {
    const window = new Window(node.size, async (offset, bytes) => {
      checkSignal(signal);
      await node.readv(offset, [bytes]);
      return true;
    });
    return await inspectWindow(window, async (file) => {
      const filename = nameFrom(node, file.filename);
      if (filename === undefined) return false;
      const request = { ...file, filename, namedBy: node.filename };
      return gate === undefined
        ? passesByDefault(source, node, request)
        : await passes(gate, request);
    });
  } finally {
    if (node !== source) await node.close();
  }
}

/**
 * Refuse the description of an image: opening it would open files that it
 * names.
 */
function checkIsFile(source: Source): void {
  for (let at: unknown = protocolStack(source); at;) {
    if (typeof at !== "object" || isNode(at)) return;
    const { driver, file, image } = at as Record<string, unknown>;
    if (typeof driver === "string" && getDriver(driver).role === "format") {
      throw invalid(
        `Cannot inspect an image by its format '${driver}': name its file`,
      );
    }
    at = file ?? image;
  }
}

function nameFrom(node: BlockNode, name: string): string | undefined {
  try {
    return resolveFrom(node, name);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return undefined;
  }
}

/** Bytes of a stream that inspection can reach, apart from its end. */
const REACH = 8 * BUDGET;
/** Bytes at its end that are kept, whatever their pages. */
const KEPT_END = 16 * 1024;

/** The beginning of a stream, as far as it was needed, and perhaps its end. */
class StreamView {
  /** Bytes received so far. */
  length = 0;
  hasEnded = false;
  readonly #chunks: AsyncIterator<Uint8Array>;
  readonly #signal?: AbortSignal;
  #head: Uint8Array = allocate(BUDGET);
  #end: Uint8Array = allocate(0);

  constructor(stream: AsyncIterable<Uint8Array>, signal?: AbortSignal) {
    this.#chunks = stream[Symbol.asyncIterator]();
    this.#signal = signal;
  }

  /** Read until more than `length` bytes have been received, or to the end. */
  async pull(length: number): Promise<void> {
    while (!this.hasEnded && this.length <= length) {
      checkSignal(this.#signal);
      const { value, done } = await this.#chunks.next();
      if (done) this.hasEnded = true;
      else this.#add(value);
    }
  }

  #add(chunk: Uint8Array): void {
    const stop = Math.min(REACH, this.length + chunk.length);
    if (this.length < stop) {
      if (stop > this.#head.length) {
        const larger = allocate(Math.min(REACH, 2 * stop));
        larger.set(this.#head);
        this.#head = larger;
      }
      this.#head.set(chunk.subarray(0, stop - this.length), this.length);
    }
    const last = chunk.subarray(-KEPT_END);
    const room = KEPT_END - last.length;
    const before = this.#end.subarray(Math.max(0, this.#end.length - room));
    const end = allocate(before.length + last.length);
    end.set(before);
    end.set(last, before.length);
    this.#end = end;
    this.length += chunk.length;
  }

  /** Fill `bytes`; returns whether they are still available. */
  async fill(offset: number, bytes: Uint8Array): Promise<boolean> {
    const stop = offset + bytes.length;
    if (stop <= REACH) await this.pull(stop);
    if (stop > this.length) return false;
    const endAt = this.length - this.#end.length;
    if (stop <= REACH) bytes.set(this.#head.subarray(offset, stop));
    else if (offset >= endAt) {
      bytes.set(this.#end.subarray(offset - endAt, stop - endAt));
    } else return false;
    return true;
  }

  /** Cancel the stream. */
  async close(): Promise<void> {
    if (!this.hasEnded) await this.#chunks.return?.();
  }
}

async function inspectStream(
  stream: AsyncIterable<Uint8Array>,
  { whole = false, signal, gate }: InspectOptions,
): Promise<Inspection> {
  const view = new StreamView(stream, signal);
  try {
    await view.pull(whole ? Infinity : BUDGET);
    const size = view.hasEnded ? view.length : undefined;
    const window = new Window(
      size,
      (offset, bytes) => view.fill(offset, bytes),
    );
    return await inspectWindow(
      window,
      // The stream has no folder.
      async (file) =>
        gate !== undefined && await passes(gate, { ...file, namedBy: "" }),
    );
  } finally {
    await view.close();
  }
}

type Inspector = (window: Window, report: Report) => Promise<void>;

const INSPECTORS: { readonly [format: string]: Inspector } = {
  qcow: inspectQcow2,
  qcow2: inspectQcow2,
  qed: inspectQed,
  vdi: inspectVdi,
  vmdk: inspectVmdk,
  vhdx: inspectVhdx,
  vpc: inspectVhd,
  parallels: inspectParallels,
  luks: inspectLuks,
  cloop: inspectCloop,
  bochs: inspectBochs,
  asif: inspectAsif,
  dmg: inspectDmg,
};

/** Inspect the content of the window. */
async function inspectWindow(
  window: Window,
  isPermitted: (file: Naming) => Promise<boolean>,
): Promise<Inspection> {
  const report = new Report();
  const head = bytesOf(await window.readPadded(0, HEAD_LENGTH));
  const formats = formatsOfHead(head);
  if (formats.length === 0) formats.push(...await possibleFormats(window));
  if (window.size === 0) report.note("empty", "the file is empty");
  if (window.size === undefined) {
    report.warn("end-not-seen", "only the beginning of it was seen");
  }
  if (formats.length === 0) {
    const tail = await tailOf(window);
    const footed = tail && formatOfTail(tail, window.size!);
    if (footed) formats.push(footed);
    else await inspectDisk(window, report, head, tail);
  }
  const sector = await window.read(0, 512);
  const others = [
    ...await isIso(window) ? ["iso"] : [],
    ...sector && hasPartitionTable(sector) ? ["mbr"] : [],
  ];
  if (sector && others.includes("mbr") && formats.length === 0) {
    await inspectPartitions(window, sector, report);
  }
  const matches = [...formats.map(({ name }) => name), ...others];
  if (matches.length > 1) {
    report.danger(
      "multiple-formats",
      `it looks like several formats at once: ${matches.join(", ")}`,
    );
  }
  const [format, ...otherFormats] = formats;
  // With several formats, no header can be trusted.
  if (format && otherFormats.length === 0) {
    await INSPECTORS[format.name]?.(window, report);
    if (!findDriver(format.name)) {
      report.note("no-driver", `it ${noDriverText(format)}`);
    }
  }
  checkSizes(window, report);
  const files: NamedFile[] = [];
  for (const file of report.files) {
    const gate = await isPermitted(file) ? "allowed" : "refused";
    files.push({ ...file, gate });
  }
  const findings = inOrder(report.findings);
  return {
    ...(otherFormats.length === 0 && { format: format?.name ?? "raw" }),
    matches,
    verdict: verdictOf(findings),
    fileSize: window.size,
    virtualSize: report.virtualSize,
    bytesRead: window.bytesRead,
    encrypted: report.encrypted,
    snapshots: report.snapshots,
    partitionTable: report.partitionTable,
    fileSystem: report.fileSystem,
    files,
    findings,
  };
}

/**
 * Formats that other programs may take a file for, although no driver opens it.
 */
async function possibleFormats(window: Window): Promise<ImageFormat[]> {
  const start = await window.read(0, 512);
  if (start && has(start, 0, "QFI\xfb")) return [{ name: "qcow2" }];
  return await isDescription(window) ? [{ name: "vmdk" }] : [];
}

async function tailOf(window: Window): Promise<Uint8Array | undefined> {
  const { size } = window;
  if (size === undefined) return undefined;
  const length = Math.min(TAIL_LENGTH, size);
  const tail = await window.read(size - length, length);
  return tail && bytesOf(tail);
}

/** Inspect a file without a header: a disk from its first byte on. */
async function inspectDisk(
  window: Window,
  report: Report,
  head: Uint8Array,
  tail: Uint8Array | undefined,
): Promise<void> {
  report.virtualSize = window.size;
  report.fileSystem = await fileSystemOf(window);
  const wrapping = wrappingOf(head)?.what;
  if (wrapping) {
    report.warn(
      "wrapped",
      `it is ${wrapping}: its content was not inspected`,
    );
  }
  if (tail && hasVhdFooter(tail, window.size!)) {
    report.warn("vhd-footer", "it ends like a VHD of fixed size");
  }
}

/** Smaller disks do no harm, however small their files. */
const LEAST_BOMB = 1024n ** 4n;
/** Ratio of disk size to file size that is suspicious. */
const BOMB_RATIO = 1000n;

/** Compare the size of the disk with that of the file. */
function checkSizes({ size }: Window, report: Report): void {
  const { virtualSize } = report;
  if (size === undefined || virtualSize === undefined) return;
  const disk = BigInt(virtualSize);
  if (disk < LEAST_BOMB || disk <= BOMB_RATIO * BigInt(size)) return;
  report.warn(
    "size-bomb",
    `its disk of ${disk} bytes is more than ${BOMB_RATIO} times as large as ` +
      "its file",
  );
}

const SEVERITIES: readonly Severity[] = ["danger", "warning", "note"];

/** Sort by severity, the gravest first. */
function inOrder(findings: readonly Finding[]): Finding[] {
  return SEVERITIES.flatMap((wanted) =>
    findings.filter(({ severity }) => severity === wanted)
  );
}

function verdictOf([gravest]: readonly Finding[]): Verdict {
  if (gravest?.severity === "danger") return "unsafe";
  return gravest?.severity === "warning" ? "suspect" : "safe";
}
