/**
 * Listing and selecting snapshots.
 *
 * @module
 */
import { asBlockError } from "../core/errors.ts";
import type { BlockNode, Snapshot } from "../core/node.ts";
import { parseKeyValueList } from "../core/options.ts";
import { humanSize } from "./numbers.ts";
import { CommandError, type Program } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";

/**
 * The snapshot that an option names: an id, a name, or
 * `snapshot.id=ID,snapshot.name=NAME`. Mistakes in the latter are reported
 * before anything is opened.
 *
 * @param quote How messages introduce the value.
 */
export function snapshotArgument(
  program: Program,
  wanted: string,
  quote = "'",
): string {
  if (!wanted.startsWith("snapshot.")) return wanted;
  for (const [name] of parseKeyValueList(wanted)) {
    if (name === "snapshot.id" || name === "snapshot.name") continue;
    program.error(`Invalid parameter '${name}'`);
    throw new CommandError(
      `Failed in parsing snapshot param ${quote}${wanted}'`,
    );
  }
  return wanted;
}

/**
 * Present a snapshot in place of the disk. `wanted` is an id, a name, or
 * `snapshot.id=ID,snapshot.name=NAME`.
 */
export async function showSnapshot(
  node: BlockNode,
  wanted: string,
): Promise<void> {
  const failed = (why: string, cause?: unknown) =>
    new CommandError(`Failed to load snapshot: ${why}`, { cause });
  const { snapshots } = node;
  if (!snapshots) {
    throw failed(
      `Block format '${node.driver.name}' used by device '' does not ` +
        "support temporarily loading internal snapshots",
    );
  }
  const found = findSnapshot(await snapshots.list(), wanted);
  if (!found) throw failed("Can't find snapshot");
  try {
    await snapshots.loadTemporary(found.id);
  } catch (error) {
    throw failed(asBlockError(error).message, error);
  }
}

function findSnapshot(
  list: readonly Snapshot[],
  wanted: string,
): Snapshot | undefined {
  if (!wanted.startsWith("snapshot.")) {
    return list.find(({ id }) => id === wanted) ??
      list.find(({ name }) => name === wanted);
  }
  const given = new Map(parseKeyValueList(wanted));
  const fits = (key: string, value: string) =>
    !given.has(key) || given.get(key) === value;
  return list.find(({ id, name }) =>
    fits("snapshot.id", id) && fits("snapshot.name", name)
  );
}

/** The table of snapshots, one per line. */
export function snapshotList(snapshots: readonly Snapshot[]): string[] {
  const { join, unknown } = inRelease("snapshotList");
  const titles = ["ID", "TAG", `VM${join}SIZE`, "DATE", `VM${join}CLOCK`];
  const rows = snapshots.map((snapshot) => [
    snapshot.id,
    snapshot.name,
    humanSize(snapshot.vmStateSize),
    localDate(snapshot.dateSeconds),
    clock(snapshot),
    String(snapshot.icount ?? unknown),
  ]);
  return [[...titles, "ICOUNT"], ...rows].map(snapshotLine);
}

function snapshotLine(columns: readonly string[]): string {
  const { id: width, clock: clockWidth, gap } = inRelease("snapshotList");
  const [id, name, size, date, clock, icount] = columns;
  return `${id.padEnd(width)} ${name.padEnd(16)} ${size.padStart(8)}` +
    ` ${date.padStart(19)}${gap}${clock.padStart(clockWidth)}` +
    `${gap}${icount.padStart(11 - gap.length)}`;
}

/** A point in time as `2025-12-31 23:59:59`, in the local time zone. */
function localDate(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = [date.getFullYear(), date.getMonth() + 1, date.getDate()];
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()];
  return `${day.map(twoDigits).join("-")} ${time.map(twoDigits).join(":")}`;
}

function clock(snapshot: Snapshot): string {
  const clock = Number(snapshot.vmClockNanoseconds / 1_000_000n);
  const seconds = Math.floor(clock / 1000);
  const { hours: digits } = inRelease("snapshotList");
  const hours = String(Math.floor(seconds / 3600)).padStart(digits, "0");
  const parts = [Math.floor(seconds / 60) % 60, seconds % 60];
  return `${hours}:${parts.map(twoDigits).join(":")}.` +
    String(clock % 1000).padStart(3, "0");
}

function twoDigits(value: number): string {
  return String(value).padStart(2, "0");
}
