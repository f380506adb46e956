/// <reference lib="dom" />
/**
 * The messages between the page and its worker.
 *
 * @module
 */
import type { LookName } from "../core/picture/looks.ts";

/** A file that the user gave, under its name. */
export interface NamedBlob {
  readonly name: string;
  readonly blob: Blob;
}

/** Where an image is: in files, or at an address. */
export type Place =
  | { readonly files: readonly NamedBlob[]; readonly url?: undefined }
  | { readonly url: string; readonly files?: undefined };

/** What can be asked of the worker. */
export interface Requests {
  /** Open an image, and describe it. */
  open: { ask: { place: Place }; answer: Description };
  /** Open it again, with the passphrase of its layer that is locked. */
  unlock: { ask: { passphrase: string }; answer: Description };
  /** Draw it. */
  draw: { ask: { cells: number; bitmap?: string }; answer: Drawing };
  /** What `map` says of the bytes of a cell. */
  lines: {
    ask: { space: "guest" | "host"; offset: number; length: number };
    answer: readonly string[];
  };
  /**
   * Write to its disk; the bytes are hexadecimal digits, or quoted text. The
   * image stays as it is: the browser keeps the changes.
   */
  edit: { ask: { offset: string; bytes: string }; answer: Description };
  /** Forget all edits. */
  forget: { ask: Record<string, never>; answer: Description };
  /** Compare its disk with that of another image, which may be encrypted. */
  compare: {
    ask: { place: Place; cells: number; passphrase?: string };
    answer: DifferenceDrawing;
  };
  /** Convert it; into the file, or else into a Blob. */
  convert: {
    ask: Omit<Target, "text"> & { target?: FileSystemFileHandle };
    answer: { bytes: number; blob?: Blob };
  };
}

/** What a request is done with. */
export interface Work {
  readonly signal: AbortSignal;
  progress(done: number, total: number): void;
}

/** A message to the worker. */
export interface Call<Name extends keyof Requests = keyof Requests> {
  readonly id: number;
  readonly name: Name;
  readonly ask: Requests[Name]["ask"];
}

/** Ends a call early. */
export interface Cancel {
  readonly cancel: number;
}

/** A message of the worker. */
export type Reply =
  | { readonly id: number; readonly answer: unknown }
  | { readonly id: number; readonly error: string }
  | { readonly id: number; readonly done: number; readonly total: number }
  | { readonly traffic: Traffic };

/** How much has been read of the files or addresses. */
export interface Traffic {
  /** Bytes that were read or fetched. */
  readonly fetched: number;
  /** Bytes that there are. */
  readonly total: number;
}

/** A layer of a backing chain. */
export interface Layer {
  readonly name: string;
  /** Absent if the image is not at hand. */
  readonly format?: string;
  /** Bytes of its disk. */
  readonly size?: number;
  /** Why it is not at hand. */
  readonly missing?: string;
  /** Whether it holds what the user has changed. */
  readonly isEdits?: boolean;
}

/** What an image is. */
export interface Description {
  readonly name: string;
  /** Facts, and their names. */
  readonly facts: readonly (readonly [name: string, value: string])[];
  /** What is suspicious about it, and what is worth knowing. */
  readonly findings: readonly string[];
  /** The backing chain, the image itself first. */
  readonly chain: readonly Layer[];
  /** The uppermost layer whose passphrase is needed to read the disk. */
  readonly locked?: string;
  readonly snapshots: readonly {
    readonly id: string;
    readonly name: string;
    readonly date: number;
    readonly size: number;
  }[];
  readonly bitmaps: readonly string[];
  /** What it can be converted to. */
  readonly targets: readonly Target[];
}

/** A kind of image to be made. */
export interface Target {
  /** What the user chooses it by. */
  readonly text: string;
  readonly format: string;
  /** Of all clusters; absent if they are not compressed. */
  readonly compression?: "zlib" | "zstd";
}

/** A space, to be drawn. */
export interface DrawnSpace {
  readonly title: string;
  /** Bytes. */
  readonly size: number;
  readonly cellSize: number;
  readonly cells: number;
  /** The looks that the cells' numbers stand for. */
  readonly names: readonly LookName[];
  /** For each cell, its look. */
  readonly looks: Uint8Array;
  /** For each cell, how opaque it is, 0 to 1. */
  readonly opacities: Float32Array;
  readonly heading: string;
  readonly legend: readonly {
    readonly name: LookName;
    readonly opacity: number;
    readonly text: string;
  }[];
  /** The same in words, a line for each run of cells. */
  readonly lines: readonly string[];
  /** How many lines were left out. */
  readonly moreLines: number;
}

/** An image, to be drawn. */
export interface Drawing {
  readonly guest: DrawnSpace;
  readonly host?: DrawnSpace;
  /** The verdict of the check, if the format has one. */
  readonly verdict?: string;
  /** What the check found, and what could not be found out. */
  readonly findings: readonly string[];
  /** Bytes that deleting each snapshot would free, by id. */
  readonly frees: Readonly<Record<string, number>>;
  /** The picture as files. */
  readonly svg: string;
}

/** The difference of two disks, to be drawn. */
export interface DifferenceDrawing {
  readonly space: DrawnSpace;
  /** In words. */
  readonly verdict: string;
  readonly ranges: readonly string[];
}
