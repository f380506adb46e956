/**
 * The interface of all kinds of extents, and those without tables.
 *
 * @module
 */
import type { Allocation, Place, Run } from "../../core/block_map.ts";
import type { IoVector } from "../../core/bytes.ts";
import type { BlockNode, ReadFlags } from "../../core/node.ts";

/** A part of the disk. Requested ranges are within it. */
export interface Extent {
  /** Its type in the descriptor; empty for the only extent of an image. */
  readonly type: string;
  /** Its first byte on the disk, and the byte after its last one. */
  readonly start: number;
  readonly end: number;
  /** The file with its data, if it has any. */
  readonly file?: BlockNode;
  /** Bytes of a grain; absent without tables. */
  readonly grainSize?: number;
  /** Whether its grains are compressed. */
  readonly isCompressed?: boolean;

  /** Load the directory of its tables, if it has one. */
  preload?(): Promise<void>;
  /** As for a block map. */
  lookup(offset: number, length: number): Run | undefined;
  /** As for a block map. */
  find(offset: number, length: number): Promise<Run>;
  /** As for a block map. */
  inPlace(offset: number, length: number): Place | undefined;
  /** As for a block map. */
  allocate(offset: number, length: number): Promise<Allocation>;
  /** Read compressed grains. */
  readCompressed?(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void>;
  /** Zero whole grains; absent if entries cannot mark zeroes. */
  zeroGrains?(offset: number, length: number): Promise<void>;
  /** Switch to another file with the same content, if it has one. */
  useFile?(file: BlockNode): void;
  /** Make all written data durable. */
  flush(): Promise<void>;
}

/** An extent stored unchanged in a file. */
export class FlatExtent implements Extent {
  readonly type: string;
  readonly start: number;
  readonly end: number;
  file: BlockNode;
  /** Its offset in the file. */
  readonly fileOffset: number;

  constructor(
    type: string,
    start: number,
    size: number,
    file: BlockNode,
    fileOffset: number,
  ) {
    this.type = type;
    this.start = start;
    this.end = start + size;
    this.file = file;
    this.fileOffset = fileOffset;
  }

  useFile(file: BlockNode): void {
    this.file = file;
  }

  lookup(offset: number, length: number): Run {
    return { ...this.inPlace(offset, length), kind: "data" };
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async find(offset: number, length: number): Promise<Run> {
    return this.lookup(offset, length);
  }

  inPlace(offset: number, length: number): Place {
    const childOffset = this.fileOffset + offset - this.start;
    return { length, child: this.file, childOffset };
  }

  allocate(): never {
    throw new Error("A flat extent is allocated as a whole");
  }

  async flush(): Promise<void> {
    await this.file.flush?.();
  }
}

/** An extent that reads as zeroes and takes no space. */
export class ZeroExtent implements Extent {
  readonly type = "ZERO";
  readonly start: number;
  readonly end: number;

  constructor(start: number, size: number) {
    this.start = start;
    this.end = start + size;
  }

  lookup(_offset: number, length: number): Run {
    return { length, kind: "zero" };
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async find(offset: number, length: number): Promise<Run> {
    return this.lookup(offset, length);
  }

  inPlace(): undefined {}

  allocate(): never {
    throw new Error("Extents of zeroes are read-only");
  }

  async flush(): Promise<void> {}
}
