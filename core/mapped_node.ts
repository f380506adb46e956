/**
 * The common part of nodes whose format has one map of the disk, and whose
 * changes stay in memory until a flush.
 *
 * @module
 */
import { checkSignal } from "./abort.ts";
import { Access, eventOf } from "./access.ts";
import type { BlockMap, Run } from "./block_map.ts";
import type { IoVector } from "./bytes.ts";
import type { BlockDriver, OpenContext } from "./driver.ts";
import type { Encryption } from "./encryption.ts";
import type {
  BlockNode,
  Extent,
  ReadFlags,
  RequestFlags,
  WriteFlags,
} from "./node.ts";

/** A map whose changes stay in memory until a flush. */
export interface FormatMap<R extends Run = Run> extends BlockMap<R> {
  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void;
  /** Make all written data durable. */
  flush(): Promise<void>;
}

/** The parts of an opened image. */
export interface MappedImage {
  readonly file: BlockNode;
  readonly backing?: BlockNode;
  readonly encryption?: Encryption;
  readonly context: OpenContext;
  /** Whether the format announces steps by QEMU's `blkdebug` names. */
  readonly hasEvents?: boolean;
  /**
   * Whether a write would invalidate parts of the image that are not maintained
   * here.
   */
  readonly isReadOnly?: boolean;
}

/** The node of an image; its constructor calls `useMap`. */
export abstract class MappedNode<R extends Run = Run> implements BlockNode {
  abstract readonly driver: BlockDriver;
  /** Bytes of the disk. */
  abstract readonly size: number;
  readonly filename: string;
  readonly readOnly: boolean;
  children: { readonly file: BlockNode; readonly backing?: BlockNode };
  readonly encryption?: Encryption;
  /** As for {@linkcode Access}; absent if nobody listens. */
  readonly event?: (name: string) => void | Promise<void>;
  /** Absent if the image can only be read. */
  readonly writev?: BlockNode["writev"];
  #map!: FormatMap<R>;
  #access!: Access<R>;

  constructor(image: MappedImage) {
    const { file, backing, context, isReadOnly = false } = image;
    this.children = backing ? { file, backing } : { file };
    this.filename = context.filename;
    this.readOnly = context.readOnly || isReadOnly;
    this.encryption = image.encryption;
    if (image.hasEvents) this.event = eventOf([file], context);
    if (!isReadOnly) this.writev = this.write;
  }

  /** Set the map of the disk. */
  protected useMap(map: FormatMap<R>): void {
    this.#map = map;
    this.#access = new Access<R>(this, map);
  }

  /** Moves the data. */
  protected get access(): Access<R> {
    return this.#access;
  }

  get backing(): BlockNode | undefined {
    return this.children.backing;
  }

  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void> {
    return this.#access.readv(offset, iov, flags);
  }

  /** As `writev`. */
  protected async write(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    await this.#access.writev(offset, iov, flags);
    if (flags?.fua) await this.flush();
  }

  status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    return this.#access.status(offset, length, flags);
  }

  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    if (!this.readOnly) await this.#map.flush();
  }

  replaceChild(role: string, child: BlockNode): void {
    if (role === "file") this.#map.useFile(child);
    this.children = { ...this.children, [role]: child };
  }

  close(): Promise<void> {
    return this.flush();
  }
}
