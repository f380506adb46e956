/**
 * The table of an image's snapshots, as `info` and `snapshot -l` print it.
 *
 * @module
 */
import type { Snapshot } from "../core/driver.ts";
import { humanSize } from "./numbers.ts";

const HEADER = "ID".padEnd(10) + "TAG".padEnd(17) +
  "VM SIZE".padStart(8) + "DATE".padStart(20) + "VM CLOCK".padStart(13) +
  "ICOUNT".padStart(11);

/** The table of snapshots, a line each. */
export function snapshotList(snapshots: readonly Snapshot[]): string[] {
  return [HEADER, ...snapshots.map(snapshotLine)];
}

function snapshotLine(snapshot: Snapshot): string {
  return `${snapshot.id.padEnd(9)} ${snapshot.name.padEnd(16)} ` +
    humanSize(snapshot.vmStateSize).padStart(8) +
    localDate(snapshot.dateSeconds).padStart(20) +
    clock(snapshot).padStart(13) +
    String(snapshot.icount ?? "").padStart(11);
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
  const parts = [
    Math.floor(seconds / 3600),
    Math.floor(seconds / 60) % 60,
    seconds % 60,
  ];
  return `${parts.map(twoDigits).join(":")}.` +
    String(clock % 1000).padStart(3, "0");
}

function twoDigits(value: number): string {
  return String(value).padStart(2, "0");
}
