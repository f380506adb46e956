/**
 * Groups of disks that share limits on bytes and requests per second.
 *
 * Each limit is a leaky bucket: requests fill it, time empties it, and while it
 * is too full, requests wait.
 *
 * @module
 */
import { delay, lockUnlessAborted } from "./abort.ts";
import { AMOUNT, checkOptions } from "./checks.ts";
import { BlockError, invalid } from "./errors.ts";
import { Mutex } from "./lock.ts";
import { valueText } from "./values.ts";

/**
 * The kinds of limits: `bps` counts bytes, `iops` requests.
 *
 * @category Stacks
 */
export type ThrottleKind =
  | "bps-total"
  | "bps-read"
  | "bps-write"
  | "iops-total"
  | "iops-read"
  | "iops-write";

const KINDS: readonly ThrottleKind[] = [
  "bps-total",
  "bps-read",
  "bps-write",
  "iops-total",
  "iops-read",
  "iops-write",
];

/**
 * A name among {@linkcode ThrottleLimits}.
 *
 * @category Stacks
 */
export type ThrottleLimit =
  | ThrottleKind
  | `${ThrottleKind}-max`
  | `${ThrottleKind}-max-length`
  | "iops-size";

/**
 * Limits, each a number per second; `-max` allows bursts of `-max-length`
 * seconds. A request of more than `iops-size` bytes counts as several.
 *
 * @category Stacks
 */
export type ThrottleLimits = { [limit in ThrottleLimit]?: number };

/** The names of all limits. */
export const THROTTLE_LIMITS: readonly ThrottleLimit[] = [
  ...KINDS.flatMap((kind): ThrottleLimit[] => [
    kind,
    `${kind}-max`,
    `${kind}-max-length`,
  ]),
  "iops-size",
];

const MOST = 1e15;

/** One limit, and how much of it is used up. */
class Bucket {
  readonly #average: number;
  readonly #burst: number;
  readonly #burstSeconds: number;
  #level = 0;
  #burstLevel = 0;

  constructor(average = 0, burst = 0, burstSeconds = 1) {
    if (average > MOST || burst > MOST) {
      throw invalid(`bps/iops/max values must be within [0, ${MOST}]`);
    }
    if (burstSeconds === 0) throw invalid("the burst length cannot be 0");
    if (burstSeconds > 1 && burst === 0) {
      throw invalid("burst length set without burst rate");
    }
    if (burst > 0 && burstSeconds > MOST / burst) {
      throw invalid("burst length too high for this burst rate");
    }
    if (burst > 0 && average === 0) {
      throw invalid(
        "bps_max/iops_max require corresponding bps/iops values",
      );
    }
    if (burst > 0 && burst < average) {
      throw invalid("bps_max/iops_max cannot be lower than bps/iops");
    }
    this.#average = average;
    this.#burst = burst;
    this.#burstSeconds = burstSeconds;
  }

  leak(seconds: number): void {
    this.#level = Math.max(0, this.#level - this.#average * seconds);
    this.#burstLevel = Math.max(0, this.#burstLevel - this.#burst * seconds);
  }

  /** How many seconds a request has to wait before it may begin. */
  get wait(): number {
    if (this.#average === 0) return 0;
    // Without an explicit burst, a tenth of a second's worth is allowed.
    const room = this.#burst > 0
      ? this.#burst * this.#burstSeconds
      : this.#average / 10;
    const excess = this.#level - room;
    if (excess > 0) return excess / this.#average;
    if (this.#burstSeconds <= 1) return 0;
    return Math.max(0, (this.#burstLevel - this.#burst / 10) / this.#burst);
  }

  fill(units: number): void {
    this.#level += units;
    this.#burstLevel += units;
  }
}

/**
 * Limits that all members of the group share.
 *
 * @example At most 1 MiB a second
 * ```ts
 * import { MemoryStore, openImage, ThrottleGroup } from "@bdrv/bdrv";
 * const group = new ThrottleGroup({ "bps-total": 1 << 20 });
 * await using image = await openImage({
 *   driver: "throttle",
 *   "throttle-group": group,
 *   file: { driver: "memory", store: new MemoryStore(4096) },
 * });
 * await image.write(0, new Uint8Array(4096));
 * ```
 *
 * @category Stacks
 */
export class ThrottleGroup {
  readonly #buckets = new Map<ThrottleKind, Bucket>();
  readonly #requestSize: number;
  /** Requests begin in order of arrival, reads and writes separately. */
  readonly #turns = { read: new Mutex(), write: new Mutex() };
  #lastLeak = performance.now();

  /**
   * Create a group.
   *
   * @throws {BlockError} EINVAL if the limits are invalid or contradict each
   * other.
   */
  constructor(limits: ThrottleLimits) {
    checkLimits(limits);
    checkTotals(limits);
    this.#requestSize = limits["iops-size"] ?? 0;
    const hasRate = KINDS.some((kind) =>
      kind.startsWith("iops") && limits[kind]
    );
    if (this.#requestSize > 0 && !hasRate) {
      throw new BlockError(
        "EINVAL",
        "iops size requires an iops value to be set",
      );
    }
    for (const kind of KINDS) {
      const seconds = limits[`${kind}-max-length`];
      const bucket = new Bucket(limits[kind], limits[`${kind}-max`], seconds);
      if (limits[kind]) this.#buckets.set(kind, bucket);
    }
  }

  /**
   * Wait until a request of `bytes` bytes may begin.
   *
   * @throws {BlockError} ECANCELED if `signal` is aborted meanwhile.
   */
  async admit(
    direction: "read" | "write",
    bytes: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const turn = this.#turns[direction].lock();
    using _ = await lockUnlessAborted(turn, signal);
    const kinds = [
      "bps-total",
      "iops-total",
      `bps-${direction}`,
      `iops-${direction}`,
    ] as const;
    for (;;) {
      this.#leak();
      const waits = kinds.map((kind) => this.#buckets.get(kind)?.wait ?? 0);
      const wait = Math.max(...waits);
      if (wait === 0) break;
      await delay(Math.ceil(wait * 1000), signal);
    }
    const requests = this.#requestSize > 0 && bytes > this.#requestSize
      ? bytes / this.#requestSize
      : 1;
    for (const kind of kinds) {
      const units = kind.startsWith("bps") ? bytes : requests;
      this.#buckets.get(kind)?.fill(units);
    }
  }

  #leak(): void {
    const now = performance.now();
    for (const bucket of this.#buckets.values()) {
      bucket.leak((now - this.#lastLeak) / 1000);
    }
    this.#lastLeak = now;
  }
}

function checkLimits(limits: ThrottleLimits): void {
  const kinds = THROTTLE_LIMITS.map((limit) => [limit, AMOUNT] as const);
  checkOptions("limit requests", limits, Object.fromEntries(kinds));
  const known: readonly string[] = THROTTLE_LIMITS;
  const odd = Object.keys(limits).find((name) => !known.includes(name));
  if (odd !== undefined) {
    throw invalid(`Cannot limit requests: there is no limit ${valueText(odd)}`);
  }
}

function checkTotals(limits: ThrottleLimits): void {
  for (const unit of ["bps", "iops"] as const) {
    for (const suffix of ["", "-max"] as const) {
      const read = limits[`${unit}-read${suffix}`];
      const write = limits[`${unit}-write${suffix}`];
      if (limits[`${unit}-total${suffix}`] && (read || write)) {
        throw new BlockError(
          "EINVAL",
          "bps/iops/max total values and read/write values cannot be used at the same time",
        );
      }
    }
  }
}

const groups = new Map<string, ThrottleGroup>();

/** Register a group under a name, as `--object throttle-group,id=…` does. */
export function defineThrottleGroup(id: string, group: ThrottleGroup): void {
  if (groups.has(id)) {
    throw new BlockError(
      "EEXIST",
      `attempt to add duplicate property '${id}' to object (type 'container')`,
    );
  }
  groups.set(id, group);
}

/** The group with a name, if there is one. */
export function findThrottleGroup(id: string): ThrottleGroup | undefined {
  return groups.get(id);
}

/**
 * A group that limits writes.
 *
 * @param rate Bytes a second; 0 for no limit and no group.
 */
export function limitedWrites(rate: number): ThrottleGroup | undefined {
  if (rate <= 0) return undefined;
  return new ThrottleGroup({ "bps-write": Math.min(rate, MOST) });
}
