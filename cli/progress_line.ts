/**
 * The progress line of `-p` on a terminal: percentage, rate and time left.
 * Pipes and logs get QEMU's line instead.
 *
 * @module
 */
import { humanSize } from "./numbers.ts";
import { fixed } from "../core/values.ts";

/** What `done` and `total` count; only bytes have a rate. */
export type ProgressUnit = "bytes" | "steps";

/** Fewest milliseconds between two lines, so that they are readable. */
const LEAST_PAUSE = 100;
/** The rate is measured over this many milliseconds. */
const WINDOW = 5000;
/** No estimate is made before this many milliseconds: it would be a guess. */
const WARM_UP = 500;

/** An amount of work done at a time. */
interface Sample {
  /** Milliseconds. */
  readonly at: number;
  readonly done: number;
}

/** Formats the line. Times are milliseconds from any origin. */
export class ProgressLine {
  readonly #unit: ProgressUnit;
  readonly #start: number;
  /** In order of time, at most {@linkcode WINDOW} apart, but for the first. */
  #samples: Sample[] = [];
  #done = 0;
  #total = 0;
  #shownAt = -Infinity;

  /** The work begins at `now`. */
  constructor(unit: ProgressUnit, now: number) {
    this.#unit = unit;
    this.#start = now;
  }

  /** Record what is done; returns whether it is time for a new line. */
  update(done: number, total: number, now: number): boolean {
    // More work has turned up, or its next part has begun: the rate so far says
    // nothing about that.
    if (done < this.#done) this.#samples = [];
    this.#done = Math.min(done, total);
    this.#total = total;
    const last = this.#samples.at(-1);
    if (!last || now - last.at >= LEAST_PAUSE) {
      this.#samples.push({ at: now, done });
      while (this.#samples.length > 2 && now - this.#samples[1].at >= WINDOW) {
        this.#samples.shift();
      }
    }
    return now - this.#shownAt >= LEAST_PAUSE;
  }

  /**
   * The line at `now` with `percent` done: as many parts as fit into `columns`,
   * in order of importance.
   */
  text(percent: number, now: number, columns: number): string {
    this.#shownAt = now;
    const parts = [`${fixed(percent, 2).padStart(6)} %`, ...this.#details(now)];
    return fitting(parts, columns);
  }

  /** The line after success. */
  summary(now: number, columns: number): string {
    const elapsed = now - this.#start;
    const parts = ["100.00 %"];
    if (this.#isOfBytes) {
      parts.push(humanSize(this.#total));
      if (elapsed >= WARM_UP) parts.push(rateText(this.#total, elapsed));
    }
    parts.push(`in ${timeText(elapsed)}`);
    return fitting(parts, columns);
  }

  get #isOfBytes(): boolean {
    return this.#unit === "bytes" && this.#total > 0;
  }

  #details(now: number): string[] {
    const parts: string[] = [];
    if (this.#isOfBytes) {
      const { length } = humanSize(this.#total);
      parts.push(
        `${humanSize(this.#done).padStart(length)} of ${
          humanSize(this.#total)
        }`,
      );
    }
    const [first] = this.#samples;
    if (!first || now - first.at < WARM_UP) return parts;
    const [done, elapsed] = [this.#done - first.done, now - first.at];
    if (this.#isOfBytes) parts.push(rateText(done, elapsed).padStart(10));
    const rest = this.#total - this.#done;
    if (done > 0 && rest > 0) {
      parts.push(`${timeText(rest / done * elapsed)} left`);
    }
    return parts;
  }
}

/** The first parts that fit into `columns` together. */
function fitting(parts: readonly string[], columns: number): string {
  let line = `  ${parts[0]}`;
  for (const part of parts.slice(1)) {
    const longer = `${line}  ${part}`;
    // Writing to the last column wraps the line on some terminals.
    if (longer.length >= columns) break;
    line = longer;
  }
  return line;
}

/** The rate of a number of bytes in a number of milliseconds. */
function rateText(bytes: number, elapsed: number): string {
  return `${humanSize(Math.round(bytes / elapsed * 1000))}/s`;
}

/** Milliseconds as `m:ss`, `h:mm:ss`, or days and hours. */
export function timeText(milliseconds: number): string {
  const seconds = Math.ceil(milliseconds / 1000);
  const two = (value: number) => String(value).padStart(2, "0");
  const [minutes, hours] = [Math.floor(seconds / 60), seconds / 3600];
  if (hours >= 1000 * 24) return "over 1000 d";
  if (hours >= 100) {
    return `${Math.floor(hours / 24)} d ${Math.floor(hours % 24)} h`;
  }
  return hours >= 1
    ? `${Math.floor(hours)}:${two(minutes % 60)}:${two(seconds % 60)}`
    : `${minutes}:${two(seconds % 60)}`;
}
