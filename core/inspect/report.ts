/**
 * The result of an inspection.
 *
 * @module
 */
import type { ImplicitOpen } from "../gate.ts";

/**
 * Severity of a finding: a `note` is worth knowing, a `warning` should be
 * looked at before the image is used, and an image with a `danger` should only
 * be accepted from trusted sources.
 *
 * @category Jobs
 */
export type Severity = "note" | "warning" | "danger";

/**
 * The verdict on an image, by its gravest finding.
 *
 * @category Jobs
 */
export type Verdict = "safe" | "suspect" | "unsafe";

/**
 * A finding.
 *
 * @category Jobs
 */
export interface Finding {
  /** Its severity. */
  readonly severity: Severity;
  /** The check that found it, in lower case with hyphens: `backing-file`. */
  readonly check: string;
  /** A sentence without a full stop. */
  readonly message: string;
}

/**
 * A file that the image names. Whether it exists has not been checked.
 *
 * @category Jobs
 */
export interface NamedFile {
  /** Its role in the image. */
  readonly role: NonNullable<ImplicitOpen["role"]>;
  /** Its name, as stored in the image. */
  readonly filename: string;
  /** Its format, if the image names it. */
  readonly format?: string;
  /** Whether the gate would permit opening it with the image. */
  readonly gate: "allowed" | "refused";
}

/**
 * The partition table of a disk.
 *
 * @category Jobs
 */
export interface PartitionTable {
  /** Its kind. */
  readonly type: "mbr" | "gpt";
  /** Number of partitions. */
  readonly partitions: number;
}

/**
 * What an inspection found out about an image.
 *
 * @category Jobs
 */
export interface Inspection {
  /** The name of its driver; absent if several formats match. */
  readonly format?: string;
  /** The formats, and partition tables of raw disks, whose magic was found. */
  readonly matches: readonly string[];
  /** The verdict, by the gravest finding. */
  readonly verdict: Verdict;
  /** Bytes of the file; absent if its end was not seen. */
  readonly fileSize?: number;
  /** Bytes of the disk, according to the image; absent if unknown. */
  readonly virtualSize?: number | bigint;
  /** Bytes of the file that were read. */
  readonly bytesRead: number;
  /** Whether its data is encrypted. */
  readonly encrypted: boolean;
  /** Number of internal snapshots. */
  readonly snapshots: number;
  /** The partition table of a raw disk. */
  readonly partitionTable?: PartitionTable;
  /** The file system that a raw disk begins with. */
  readonly fileSystem?: string;
  /** The files that it names. */
  readonly files: readonly NamedFile[];
  /** The findings, the gravest first. */
  readonly findings: readonly Finding[];
}

/** A file named by an image, before the gate is asked. */
export type Naming = Omit<NamedFile, "gate">;

/** Collects the findings of the inspectors. */
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

  /** Note that the image names a file, which is a danger. */
  names(file: Naming, check: string, message: string): void {
    this.files.push(file);
    this.danger(check, message);
  }
}
