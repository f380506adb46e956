/**
 * What an inspection reports.
 *
 * @module
 */
import type { ImplicitOpen } from "../gate.ts";

/**
 * How grave a finding is: a `note` is a fact worth knowing, a `warning` is worth
 * a look before the image is used, and an image with a `danger` should not be
 * taken from anyone who is not trusted.
 *
 * @category Jobs
 */
export type Severity = "note" | "warning" | "danger";

/**
 * What the gravest finding makes of an image.
 *
 * @category Jobs
 */
export type Verdict = "safe" | "suspect" | "unsafe";

/**
 * Something that was found.
 *
 * @category Jobs
 */
export interface Finding {
  /** How grave it is. */
  readonly severity: Severity;
  /** Which check found it, in lower case with hyphens: `backing-file`. */
  readonly check: string;
  /** A sentence without a full stop. */
  readonly message: string;
}

/**
 * A file that the image names. Nobody has looked whether it exists.
 *
 * @category Jobs
 */
export interface NamedFile {
  /** What it is to the image. */
  readonly role: NonNullable<ImplicitOpen["role"]>;
  /** Its name, as the image has it. */
  readonly filename: string;
  /** Its format, if the image says so. */
  readonly format?: string;
  /** Whether opening the image would let it be opened as well. */
  readonly gate: "allowed" | "refused";
}

/**
 * The table that divides a disk.
 *
 * @category Jobs
 */
export interface PartitionTable {
  /** Its kind. */
  readonly type: "mbr" | "gpt";
  /** How many partitions it has. */
  readonly partitions: number;
}

/**
 * What an image is, as far as its first look tells.
 *
 * @category Jobs
 */
export interface Inspection {
  /** The name of its driver; absent if several formats match. */
  readonly format?: string;
  /** The formats, and for raw disks partition tables, whose magic is there. */
  readonly matches: readonly string[];
  /** What the gravest finding makes of it. */
  readonly verdict: Verdict;
  /** Bytes of the file; absent if its end was not seen. */
  readonly fileSize?: number;
  /** Bytes of the disk, as the image says; absent if it was not found out. */
  readonly virtualSize?: number | bigint;
  /** Bytes of the file that were read. */
  readonly bytesRead: number;
  /** Whether its data is encrypted. */
  readonly encrypted: boolean;
  /** How many snapshots it has within itself. */
  readonly snapshots: number;
  /** How a raw disk is divided. */
  readonly partitionTable?: PartitionTable;
  /** The file system that a raw disk begins with. */
  readonly fileSystem?: string;
  /** The files that it names. */
  readonly files: readonly NamedFile[];
  /** What was found, the gravest first. */
  readonly findings: readonly Finding[];
}

/** A file that a format's inspector has found to be named. */
export type Naming = Omit<NamedFile, "gate">;

/** Collects what the inspectors of formats find. */
export class Report {
  virtualSize?: number | bigint;
  encrypted = false;
  snapshots = 0;
  partitionTable?: PartitionTable;
  fileSystem?: string;
  readonly files: Naming[] = [];
  readonly findings: Finding[] = [];

  note(check: string, message: string): void {
    this.findings.push({ severity: "note", check, message });
  }

  warn(check: string, message: string): void {
    this.findings.push({ severity: "warning", check, message });
  }

  danger(check: string, message: string): void {
    this.findings.push({ severity: "danger", check, message });
  }

  /** The image names a file, which is a danger. */
  names(file: Naming, check: string, message: string): void {
    this.files.push(file);
    this.danger(check, message);
  }
}
