/**
 * A write-back cache of pieces of metadata tables: slices of L2 tables, and
 * refcount blocks. Entries stay big-endian, as in the file.
 *
 * **Write order.** A cache may depend on another: none of its entries is
 * written before the other cache is durable. Thus a refcount increase reaches
 * the disk before the L2 entry that relies on it, and a decrease after the L2
 * entry is gone.
 *
 * **Who may call what.** {@linkcode TableCache.peek},
 * {@linkcode TableCache.fetch} and {@linkcode TableCache.readThrough} may be
 * called at any time; their results are valid until the next `await`. Everything
 * else requires the image's metadata lock.
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";

/**
 * A piece of a table in memory; may be replaced by another one at an `await`.
 */
export interface CachedTable {
  /** Its offset in the file; -1 if it is not in use. */
  offset: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Whether it differs from the file. */
  dirty: boolean;
  /** Whether it was used since the last call of `dropUnused`. */
  used: boolean;
}

/** Hooks before the file is accessed. */
export interface TableHooks {
  /** Before a dependency is flushed; flushes what is in other files. */
  settling?(): Promise<void> | void;
  /** Before an entry is read. */
  loading?(offset: number): Promise<void> | void;
  /** Before an entry is written; may refuse. */
  writing?(offset: number): Promise<void> | void;
}

/** A cache of pieces of the file, all of one size. */
export class TableCache {
  /** Bytes of an entry. */
  readonly entrySize: number;
  readonly #hooks: TableHooks;
  #file: BlockNode;
  readonly #capacity: number;
  /** In order of their last use, oldest first. */
  readonly #entries = new Map<number, CachedTable>();
  #latest?: CachedTable;
  /** Entries being read without the metadata lock. */
  readonly #pending = new Map<number, Promise<CachedTable | undefined>>();
  /** Entries being read by walks. */
  readonly #walks = new Set<{ offset: number; isCurrent: boolean }>();
  /** The entry of the last walk: not among the others, never dirty. */
  #readThrough?: CachedTable;
  /** A cache that must be durable before any entry here is written. */
  #dependsOn?: TableCache;
  /** Whether the file must be flushed before any entry here is written. */
  #dependsOnFlush = false;
  #dirtyCount = 0;

  /** @param size Most bytes to hold; at least two entries are kept. */
  constructor(
    file: BlockNode,
    entrySize: number,
    size: number,
    hooks: TableHooks = {},
  ) {
    this.#file = file;
    this.#hooks = hooks;
    this.entrySize = entrySize;
    this.#capacity = Math.max(2, Math.floor(size / entrySize));
  }

  /** Switch to a file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** Whether anything has to be written. */
  get dirty(): boolean {
    return this.#dirtyCount > 0;
  }

  /** The entry at a file offset if it is cached; valid until an `await`. */
  peek(offset: number): CachedTable | undefined {
    const latest = this.#latest;
    if (latest !== undefined && latest.offset === offset) return latest;
    const entry = this.#entries.get(offset);
    if (entry) {
      this.#entries.delete(offset);
      this.#entries.set(offset, entry);
      entry.used = true;
      this.#latest = entry;
      return entry;
    }
    return this.#readThrough?.offset === offset ? this.#readThrough : undefined;
  }

  /** The entry at a file offset, read if need be. */
  async load(offset: number): Promise<CachedTable> {
    for (let pending; (pending = this.#pending.get(offset));) await pending;
    const known = this.peek(offset);
    if (known) return known;
    const entry = await this.#makeRoom();
    await this.#read(offset, entry);
    return this.#insert(offset, entry);
  }

  /**
   * As {@linkcode load}, without the metadata lock: a slow file delays only
   * those who need the same entry.
   *
   * @returns `undefined` if the entry became outdated meanwhile: look it up
   * again.
   */
  fetch(offset: number): Promise<CachedTable | undefined> {
    return this.#readUnlocked(offset, async (isCurrent) => {
      const entry = newEntry(this.entrySize);
      await this.#read(offset, entry);
      if (!isCurrent() || this.#entries.has(offset)) return undefined;
      this.#dropClean();
      return this.#insert(offset, entry);
    });
  }

  /**
   * As {@linkcode fetch}, for walks through all tables of the image, which
   * hardly come back. Such walks share one buffer: new ones would be slow to
   * fill, and would evict what others use.
   *
   * @param use Called in the same turn in which the entry has been read: in the
   * next one, another walk may use its buffer.
   */
  async readThrough<T>(
    offset: number,
    use: (entry: CachedTable) => T,
  ): Promise<T | undefined> {
    const walk = { offset, isCurrent: true };
    this.#walks.add(walk);
    try {
      const entry = this.#readThrough ?? newEntry(this.entrySize);
      this.#dropReadThrough();
      entry.offset = -1;
      await this.#read(offset, entry);
      if (!walk.isCurrent || this.#entries.has(offset)) return undefined;
      entry.offset = offset;
      entry.used = true;
      this.#latest = this.#readThrough = entry;
      return use(entry);
    } finally {
      this.#walks.delete(walk);
    }
  }

  /** Read an entry, or wait for whoever is reading it. */
  #readUnlocked(
    offset: number,
    read: (isCurrent: () => boolean) => Promise<CachedTable | undefined>,
  ): Promise<CachedTable | undefined> {
    const pending = this.#pending.get(offset);
    if (pending) return pending;
    const isCurrent = () => this.#pending.get(offset) === reading;
    const reading: Promise<CachedTable | undefined> = read(isCurrent).finally(
      () => {
        if (isCurrent()) this.#pending.delete(offset);
      },
    );
    this.#pending.set(offset, reading);
    return reading;
  }

  async #read(offset: number, { bytes }: CachedTable): Promise<void> {
    await this.#hooks.loading?.(offset);
    await readPadded(this.#file, offset, [bytes]);
  }

  /**
   * Make room for one more entry, unless all are dirty. A dropped one is not
   * reused: the metadata lock's holder may be about to change it.
   */
  #dropClean(): void {
    if (this.#entries.size < this.#capacity) return;
    for (const entry of this.#entries.values()) {
      if (entry.dirty) continue;
      this.#entries.delete(entry.offset);
      if (this.#latest === entry) this.#latest = undefined;
      return;
    }
  }

  /** Cache an entry that has just been written to the file. */
  async adopt(offset: number, bytes: Uint8Array): Promise<CachedTable> {
    const entry = this.peek(offset) ??
      this.#insert(offset, await this.#makeRoom());
    this.#invalidateReads(offset, this.entrySize);
    entry.bytes.set(bytes);
    return entry;
  }

  /** A zeroed entry whose former content does not matter; it is dirty. */
  async loadEmpty(offset: number): Promise<CachedTable> {
    const entry = this.peek(offset) ??
      this.#insert(offset, await this.#makeRoom());
    this.#invalidateReads(offset, this.entrySize);
    entry.bytes.fill(0);
    this.markDirty(entry);
    return entry;
  }

  /** Must be called in the same turn as the change to `entry`. */
  markDirty(entry: CachedTable): void {
    if (entry.dirty) return;
    if (entry === this.#readThrough) this.#readThrough = undefined;
    // It may have been dropped since it was looked up: this one is valid.
    this.#entries.set(entry.offset, entry);
    this.#latest = entry;
    entry.dirty = true;
    this.#dirtyCount++;
  }

  /** Do not write entries before `other` is durable. */
  dependOn(other: TableCache): void | Promise<void> {
    if (this.#dependsOn !== other) return this.#changeDependency(other);
  }

  async #changeDependency(other: TableCache): Promise<void> {
    // No cycles: dependencies of the other cache are settled first. (An image
    // has two caches, so that this one cannot depend on a third.)
    if (other.#dependsOn) await other.#settleDependency();
    this.#dependsOn = other;
  }

  /** Do not write entries before the file has been flushed. */
  dependOnFlush(): void {
    this.#dependsOnFlush = true;
  }

  /** Write dirty entries, without flushing the file. */
  async write(): Promise<void> {
    if (this.#dirtyCount === 0) return;
    const dirty = [...this.#entries.values()].filter((entry) => entry.dirty);
    dirty.sort((a, b) => a.offset - b.offset);
    for (const entry of dirty) await this.#writeEntry(entry);
  }

  /** Write dirty entries and flush the file. */
  async flush(): Promise<void> {
    await this.write();
    await this.#file.flush?.();
  }

  /** Drop entries of a range whose clusters are not tables any more. */
  forget(offset: number, length: number): void {
    this.#dropReadThrough();
    this.#invalidateReads(offset, length);
    for (let at = offset; at < offset + length; at += this.entrySize) {
      const entry = this.#entries.get(at);
      if (entry) this.#remove(entry);
    }
  }

  /** Drop all entries, changes included. */
  clear(): void {
    this.#entries.clear();
    this.#invalidateReads(0, Infinity);
    this.#dropReadThrough();
    this.#latest = undefined;
    this.#dirtyCount = 0;
    this.#dependsOn = undefined;
    this.#dependsOnFlush = false;
  }

  /** Drop entries that were not used since the last call. */
  dropUnused(): void {
    this.#dropReadThrough();
    for (const entry of this.#entries.values()) {
      if (!entry.used && !entry.dirty) this.#remove(entry);
      entry.used = false;
    }
    this.#latest = undefined;
  }

  /** Invalidate entries of a range that are being read without a lock. */
  #invalidateReads(start: number, length: number): void {
    const isIn = (offset: number) => offset >= start && offset < start + length;
    for (const walk of this.#walks) {
      if (isIn(walk.offset)) walk.isCurrent = false;
    }
    for (const offset of this.#pending.keys()) {
      if (isIn(offset)) this.#pending.delete(offset);
    }
  }

  #insert(offset: number, entry: CachedTable): CachedTable {
    entry.offset = offset;
    entry.used = true;
    this.#entries.set(offset, entry);
    this.#latest = entry;
    return entry;
  }

  #dropReadThrough(): void {
    if (this.#latest === this.#readThrough) this.#latest = undefined;
    this.#readThrough = undefined;
  }

  #remove(entry: CachedTable): void {
    this.#entries.delete(entry.offset);
    if (this.#latest === entry) this.#latest = undefined;
    if (entry.dirty) this.#dirtyCount--;
    entry.dirty = false;
    entry.offset = -1;
  }

  /**
   * A free entry with arbitrary content: the least recently used one if all are
   * in use. (Reusing it is cheaper than a new one, which would also survive
   * many garbage collections.)
   */
  async #makeRoom(): Promise<CachedTable> {
    let spare: CachedTable | undefined;
    while (this.#entries.size >= this.#capacity) {
      const oldest: CachedTable = this.#entries.values().next().value!;
      // All at once: they share the barrier before them.
      if (oldest.dirty) await this.write();
      this.#remove(oldest);
      spare = oldest;
    }
    return spare ?? newEntry(this.entrySize);
  }

  async #writeEntry(entry: CachedTable): Promise<void> {
    await this.#settleDependency();
    await this.#hooks.writing?.(entry.offset);
    await this.#file.writev!(entry.offset, [entry.bytes]);
    entry.dirty = false;
    this.#dirtyCount--;
  }

  async #settleDependency(): Promise<void> {
    if (!this.#dependsOn && !this.#dependsOnFlush) return;
    const settling = this.#hooks.settling?.();
    if (settling) await settling;
    if (this.#dependsOn) {
      await this.#dependsOn.flush();
      this.#dependsOn = undefined;
      this.#dependsOnFlush = false;
    } else if (this.#dependsOnFlush) {
      await this.#file.flush?.();
      this.#dependsOnFlush = false;
    }
  }
}

function newEntry(size: number): CachedTable {
  const bytes = allocate(size);
  return { offset: -1, bytes, view: viewOf(bytes), dirty: false, used: true };
}
