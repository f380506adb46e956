/**
 * A bounded view of a file for inspections.
 *
 * @module
 */
import { allocate } from "../bytes.ts";
import type { Report } from "./report.ts";

/** Most bytes of a file that an inspection reads. */
export const BUDGET = 1024 * 1024;

/** The file is read in pages of this size, each once. */
const PAGE = 4096;

/**
 * Fills `bytes` from an offset of the file; returns whether that was possible.
 */
type Fetch = (offset: number, bytes: Uint8Array) => Promise<boolean>;

/** The visible part of a file: at most {@linkcode BUDGET} bytes of it. */
export class Window {
  /** Bytes of the file; absent if its end was not reached. */
  readonly size?: number;
  /** Bytes read so far. */
  bytesRead = 0;
  readonly #fetch: Fetch;
  readonly #pages = new Map<number, Uint8Array>();

  /** A window of a file of `size` bytes, read by `fetch`. */
  constructor(size: number | undefined, fetch: Fetch) {
    this.size = size;
    this.#fetch = fetch;
  }

  /**
   * Bytes of the file; `undefined` unless all of them exist and the budget
   * suffices.
   */
  async read(offset: number, length: number): Promise<DataView | undefined> {
    const end = offset + length;
    if (!(offset >= 0 && end <= (this.size ?? Infinity))) return undefined;
    const [first, last] = [Math.floor(offset / PAGE), Math.ceil(end / PAGE)];
    if (!await this.#load(first, last)) return undefined;
    const bytes = allocate(length);
    for (let page = first; page < last; page++) {
      const from = Math.max(offset, page * PAGE);
      const to = Math.min(end, (page + 1) * PAGE);
      const part = this.#pages.get(page)!
        .subarray(from - page * PAGE, to - page * PAGE);
      if (part.length < to - from) return undefined;
      bytes.set(part, from - offset);
    }
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }

  /** As {@linkcode read}, with zeroes for missing bytes. */
  async readPadded(offset: number, length: number): Promise<DataView> {
    const there = Math.max(0, Math.min(length, (this.size ?? 0) - offset));
    const whole = await this.read(offset, length);
    if (whole) return whole;
    const bytes = allocate(length);
    const part = there > 0 ? await this.read(offset, there) : undefined;
    if (part) bytes.set(bytesOf(part));
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }

  /** Read the missing pages of a range, adjacent ones together. */
  async #load(first: number, last: number): Promise<boolean> {
    for (let page = first; page < last;) {
      if (this.#pages.has(page)) {
        page++;
        continue;
      }
      let end = page + 1;
      while (end < last && !this.#pages.has(end)) end++;
      const from = page * PAGE;
      const left = (this.size ?? Infinity) - from;
      const length = Math.min((end - page) * PAGE, left);
      if (length <= 0 || this.bytesRead + length > BUDGET) return false;
      const bytes = allocate(length);
      if (!await this.#fetch(from, bytes)) return false;
      this.bytesRead += length;
      for (; page < end; page++) {
        const at = page * PAGE - from;
        this.#pages.set(page, bytes.subarray(at, at + PAGE));
      }
    }
    return true;
  }
}

/** The header of an image; if it is cut short, that is reported. */
export async function readHeader(
  window: Window,
  report: Report,
  offset: number,
  length: number,
): Promise<DataView | undefined> {
  const header = await window.read(offset, length);
  if (!header) report.danger("truncated", "the file ends within its header");
  return header;
}

/** The bytes of a view. */
export function bytesOf(
  { buffer, byteOffset, byteLength }: DataView,
): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** Bytes as text, a character a byte. */
export function latin1(
  view: DataView,
  offset = 0,
  length = view.byteLength - offset,
): string {
  return new TextDecoder("latin1").decode(
    bytesOf(view).subarray(offset, offset + length),
  );
}

/** Whether a view contains a text at an offset, one character per byte. */
export function has(view: DataView, offset: number, text: string): boolean {
  return offset + text.length <= view.byteLength &&
    String.fromCharCode(
        ...bytesOf(view).subarray(offset, offset + text.length),
      ) ===
      text;
}
