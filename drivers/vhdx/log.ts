/**
 * The log of a VHDX image: metadata is changed through it, so that a power cut
 * leaves either the old metadata or the new.
 *
 * **Write order**: the data that new table entries refer to, and the log entry;
 * when both are durable, the header that activates the log; then the metadata
 * in its place; then the header that deactivates the log. Each of these four
 * steps is durable before the next one begins.
 *
 * @module
 */
import type { BlockNode } from "../../core/node.ts";
import type { ChangedUnit } from "../../core/paged_table.ts";
import { writeZeroes } from "../../core/requests.ts";
import { fault } from "./faults.ts";
import { newGuid, NO_GUID } from "./guid.ts";
import type { Headers } from "./headers.ts";
import {
  capacityOf,
  entriesOf,
  isWhole,
  type LogEntry,
  newEntry,
  stepsOf,
} from "./log_entry.ts";
import type { Region } from "./regions.ts";

/** The log of an image. */
export class Log {
  #file: BlockNode;
  readonly #headers: Headers;
  readonly #log: Region;
  /**
   * The half of the log for the next entry: the last entry may still be active.
   */
  #half = 0;

  constructor(file: BlockNode, headers: Headers) {
    const { logOffset: offset, logLength: length } = headers.current;
    this.#file = file;
    this.#headers = headers;
    this.#log = { offset, length };
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
    this.#headers.useFile(file);
  }

  /** The entries to replay before the image can be used, oldest first. */
  async pending(): Promise<LogEntry[]> {
    const { logGuid } = this.#headers.current;
    if (logGuid === NO_GUID) return [];
    const { filename } = this.#file;
    const entries = new Map<number, LogEntry>();
    // Overwritten entries hardly count, but each has to be checked.
    let most = 4 * this.#log.length;
    for (const entry of await entriesOf(this.#file, this.#log, logGuid)) {
      most -= entry.length;
      if (most < 0) throw fault(filename, "EINVAL", "its log is damaged");
      if (await isWhole(this.#file, this.#log, entry)) {
        entries.set(entry.offset, entry);
      }
    }
    return activeSequence(entries, this.#log.length);
  }

  /** Replay the log, and empty it. */
  async replay(pending: readonly LogEntry[]): Promise<void> {
    const file = this.#file;
    const newest = pending.at(-1)!;
    const invalid = (reason: string) => fault(file.filename, "EINVAL", reason);
    if (newest.flushedSize > BigInt(file.size)) {
      throw invalid("it is shorter than its log requires");
    }
    const end = [BigInt(file.size), ...pending.map(({ lastSize }) => lastSize)]
      .reduce((a, b) => a > b ? a : b);
    if (end > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw invalid("its log is damaged");
    }
    for (const entry of pending) {
      for await (const step of stepsOf(file, this.#log, entry)) {
        const length = step.kind === "zero"
          ? step.length
          : BigInt(step.bytes.length);
        if (step.offset + length > end) throw invalid("its log is damaged");
        const offset = Number(step.offset);
        if (step.kind === "data") await file.writev!(offset, [step.bytes]);
        else await writeZeroes(file, offset, Number(length));
      }
    }
    const lastSize = Number(newest.lastSize);
    if (file.size < lastSize) await file.truncate!(lastSize);
    await file.flush?.();
    await this.#headers.change({ logGuid: NO_GUID, fileWriteGuid: newGuid() });
    await file.flush?.();
  }

  /**
   * Change metadata, and make it and all earlier data durable.
   *
   * @param changes Sectors of 4096 bytes.
   */
  async write(changes: readonly ChangedUnit[]): Promise<void> {
    const most = capacityOf(this.#log.length / 2);
    for (let done = 0; done < changes.length; done += most) {
      await this.#writeEntry(changes.slice(done, done + most));
    }
  }

  async #writeEntry(changes: readonly ChangedUnit[]): Promise<void> {
    const file = this.#file;
    const guid = newGuid();
    const at = this.#half * this.#log.length / 2;
    const entry = newEntry(guid, at, changes, file.size);
    await file.writev!(this.#log.offset + at, [entry]);
    await file.flush?.();
    await this.#headers.change({ logGuid: guid });
    this.#half = 1 - this.#half;
    await file.flush?.();
    for (const { offset, bytes } of changes) {
      await file.writev!(offset, [bytes]);
    }
    await file.flush?.();
    await this.#headers.change({ logGuid: NO_GUID });
    await file.flush?.();
  }
}

/**
 * The active entries: of all sequences of adjacent entries with consecutive
 * numbers, the newest one. It must contain everything that its last entry
 * needs.
 */
function activeSequence(
  entries: ReadonlyMap<number, LogEntry>,
  length: number,
): LogEntry[] {
  const after = ({ offset, length: bytes, sequence }: LogEntry) => {
    const next = entries.get((offset + bytes) % length);
    return next?.sequence === sequence + 1n ? next : undefined;
  };
  const continued = new Set([...entries.values()].map(after));
  let active: LogEntry[] = [];
  let newest = 0n;
  for (const first of entries.values()) {
    if (continued.has(first)) continue;
    const run = [first];
    for (let next; (next = after(run.at(-1)!));) run.push(next);
    const { tail, sequence } = run.at(-1)!;
    const start = run.findIndex(({ offset }) => offset === tail);
    if (start < 0 || sequence <= newest) continue;
    active = run.slice(start);
    newest = sequence;
  }
  return active;
}
