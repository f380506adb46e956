/**
 * A LUKS header and its key material, wherever a format stores them: unlocking
 * with a passphrase, creating, adding and erasing passphrases.
 *
 * @module
 */
import { allocate } from "../bytes.ts";
import { BlockError, invalid } from "../errors.ts";
import { Mutex } from "../lock.ts";
import { isEqual } from "../runtime.ts";
import { mergeKey, splitKey } from "./anti_forensic.ts";
import { deriveKey, randomBytes } from "./hashes.ts";
import { iterationsFor, KeyTime } from "./key_time.ts";
import {
  type Algorithms,
  masterKeySize,
  sectorCipher,
} from "./luks_algorithms.ts";
import {
  DIGEST_LENGTH,
  encodeHeader,
  HEADER_LENGTH,
  type HeaderPlace,
  type LuksHeader,
  materialLength,
  newHeader,
  parseHeader,
  SALT_LENGTH,
  SLOTS,
  STRIPES,
} from "./luks_header.ts";
import type { SectorCipher } from "./sector_ciphers.ts";

/**
 * Where a header and its key material are stored. Offsets are from its start.
 */
export interface HeaderStore {
  /** Bytes of the area. */
  readonly length: number;
  /** Fill `bytes` from `offset` on. */
  read(offset: number, bytes: Uint8Array): Promise<void>;
  /** Write durably. */
  write(offset: number, bytes: Uint8Array): Promise<void>;
}

/** Milliseconds that opening an image may take, by default. */
export const UNLOCK_TIME = 60_000;
/** Milliseconds that trying a new passphrase should take, by default. */
export const ITERATION_TIME = 2000;
/** Verifying a key takes this fraction of the time. */
const DIGEST_DIVISOR = 8;

/** Limits on unlocking a volume. */
export interface UnlockOptions {
  /** Milliseconds for all key slots together. Default: a minute. */
  readonly time?: number;
  /** Cancels it. */
  readonly signal?: AbortSignal;
  /** Called before each derivation with the iterations done, and their total. */
  progress?(done: number, total: number): void;
}

/** How to create a volume. */
export interface MakeOptions extends HeaderPlace {
  /**
   * Milliseconds that trying the passphrase should take. Default: two seconds.
   */
  readonly iterationTime?: number;
}

/** A LUKS header, read from or written to a store. */
export class LuksVolume {
  readonly #store: HeaderStore;
  readonly #place: HeaderPlace;
  #header: LuksHeader;
  /** Held while the header is read or written, which is quick. */
  readonly #access = new Mutex();
  /**
   * Held while key slots are changed, which takes as long as deriving a key,
   * and while the header's file is closed. Other requests go on.
   */
  readonly changing = new Mutex();

  private constructor(
    store: HeaderStore,
    place: HeaderPlace,
    header: LuksHeader,
  ) {
    this.#store = store;
    this.#place = place;
    this.#header = header;
  }

  /** The current header. */
  get header(): LuksHeader {
    return this.#header;
  }

  /**
   * Read a header.
   *
   * @throws {BlockError} EINVAL or ENOTSUP if it is invalid.
   */
  static async read(
    store: HeaderStore,
    place: HeaderPlace = {},
  ): Promise<LuksVolume> {
    return new LuksVolume(store, place, await readHeader(store, place));
  }

  /**
   * Reread it: another program may have changed it.
   *
   * @throws {BlockError} EINVAL if it is for another master key now.
   */
  async refresh(): Promise<void> {
    using _ = await this.#access.lock();
    const header = await readHeader(this.#store, this.#place);
    if (!isEqual(header.digest, this.#header.digest)) {
      throw invalid("The key of the image was changed");
    }
    this.#header = header;
  }

  /**
   * Write a header with one passphrase, in the first key slot.
   *
   * @returns the volume and its master key.
   */
  static async make(
    store: HeaderStore,
    algorithms: Algorithms,
    passphrase: Uint8Array,
    { iterationTime = ITERATION_TIME, isDetached = false }: MakeOptions = {},
  ): Promise<{ volume: LuksVolume; key: Uint8Array }> {
    const header = newHeader(algorithms, isDetached);
    const key = randomBytes(masterKeySize(algorithms));
    const { hash } = algorithms;
    // Too long an iteration time is refused at once, not after it has passed.
    const iterations = await iterationsFor(iterationTime, hash, key.length);
    header.digestIterations = await iterationsFor(
      iterationTime,
      hash,
      DIGEST_LENGTH,
      DIGEST_DIVISOR,
    );
    const volume = new LuksVolume(store, { isDetached }, header);
    header.digest = await deriveKey(key, volume.#digestDerivation());
    await volume.#putKey(0, key, passphrase, iterations);
    return { volume, key };
  }

  /** The cipher for a master key. */
  cipher(key: Uint8Array): Promise<SectorCipher> {
    return sectorCipher(this.header.algorithms, key);
  }

  /**
   * Find the master key with a passphrase, trying the key slots in order.
   *
   * @throws {BlockError} EINVAL if the passphrase fits no key slot, ETIMEDOUT
   * if trying one would take too long and no other fits.
   */
  async unlock(
    passphrase: Uint8Array,
    { time = UNLOCK_TIME, signal, progress }: UnlockOptions = {},
  ): Promise<Uint8Array> {
    const keyTime = new KeyTime(time, signal);
    const { slots, digestIterations } = this.header;
    const counts = slots.map(({ isActive, iterations }) =>
      isActive ? iterations + digestIterations : 0
    );
    const total = counts.reduce((sum, count) => sum + count, 0);
    let done = 0;
    let tooLong: BlockError | undefined;
    for (let slot = 0; slot < SLOTS; slot++) {
      try {
        if (counts[slot] > 0) progress?.(done, total);
        const key = await this.#tryUnlock(slot, passphrase, keyTime);
        if (key) progress?.(total, total);
        if (key) return key;
        done += counts[slot];
      } catch (error) {
        if (!(error instanceof TooLongError)) throw error;
        tooLong ??= error;
      }
    }
    throw tooLong ??
      invalid("Invalid password, cannot unlock any keyslot");
  }

  /** Whether a passphrase fits a key slot. */
  async opens(slot: number, passphrase: Uint8Array): Promise<boolean> {
    const keyTime = new KeyTime(UNLOCK_TIME);
    return await this.#tryUnlock(slot, passphrase, keyTime) !== undefined;
  }

  /** The master key, if the passphrase fits this key slot. */
  async #tryUnlock(
    index: number,
    passphrase: Uint8Array,
    time: KeyTime,
  ): Promise<Uint8Array | undefined> {
    const { algorithms, slots, digest } = this.header;
    const { isActive, iterations, salt, offset } = slots[index];
    const length = masterKeySize(algorithms);
    const material = allocate(materialLength(length));
    // If key material is missing, no key need be derived.
    const isThere = offset + length * STRIPES <= this.#store.length;
    if (!isActive || !isThere) return undefined;
    const { hash } = algorithms;
    const own = { hash, salt, iterations, length };
    const check = this.#digestDerivation();
    for (const derivation of [own, check]) {
      const excess = await time.excess(derivation);
      if (excess !== undefined) throw new TooLongError(index, excess);
    }
    const slotKey = await time.derive(passphrase, own);
    await this.#store.read(offset, material);
    (await this.cipher(slotKey)).decrypt(material, 0);
    const key = await mergeKey(material, length, STRIPES, hash);
    const found = await time.derive(key, check);
    return isEqual(found, digest) ? key : undefined;
  }

  #digestDerivation() {
    const { algorithms, digestSalt, digestIterations } = this.header;
    return {
      hash: algorithms.hash,
      salt: digestSalt,
      iterations: digestIterations,
      length: DIGEST_LENGTH,
    };
  }

  /** Add a passphrase in a key slot. */
  async activate(
    index: number,
    key: Uint8Array,
    passphrase: Uint8Array,
    iterationTime = ITERATION_TIME,
  ): Promise<void> {
    const { hash } = this.header.algorithms;
    const iterations = await iterationsFor(iterationTime, hash, key.length);
    await this.#putKey(index, key, passphrase, iterations);
  }

  /** Key material must be durable before the header that relies on it. */
  async #putKey(
    index: number,
    key: Uint8Array,
    passphrase: Uint8Array,
    iterations: number,
  ): Promise<void> {
    const { algorithms, slots } = this.header;
    const { hash } = algorithms;
    const salt = randomBytes(SALT_LENGTH);
    const { length } = key;
    const derivation = { hash, salt, iterations, length };
    const slotKey = await deriveKey(passphrase, derivation);
    const material = allocate(materialLength(length));
    material.set(await splitKey(key, STRIPES, hash));
    (await this.cipher(slotKey)).encrypt(material, 0);
    await this.#store.write(slots[index].offset, material);
    await this.#change(index, { isActive: true, iterations, salt });
  }

  /** Erase the passphrase of a key slot. */
  async erase(index: number): Promise<void> {
    const salt = allocate(SALT_LENGTH);
    await this.#change(index, { isActive: false, iterations: 0, salt });
    const length = masterKeySize(this.header.algorithms) * STRIPES;
    const { offset } = this.header.slots[index];
    for (let round = 0; round < ERASE_ROUNDS; round++) {
      await this.#store.write(offset, randomBytes(length));
    }
  }

  /** Change a key slot in the file, and only then in memory. */
  async #change(
    index: number,
    changes: Partial<LuksHeader["slots"][number]>,
  ): Promise<void> {
    using _ = await this.#access.lock();
    const slots = [...this.#header.slots];
    slots[index] = { ...slots[index], ...changes };
    const header = { ...this.#header, slots };
    await this.#store.write(0, encodeHeader(header));
    this.#header = header;
  }
}

async function readHeader(
  store: HeaderStore,
  place: HeaderPlace,
): Promise<LuksHeader> {
  const bytes = allocate(HEADER_LENGTH);
  await store.read(0, bytes);
  return parseHeader(bytes, place);
}

/** How often key material is overwritten; disks may keep the first copies. */
const ERASE_ROUNDS = 2;

class TooLongError extends BlockError {
  constructor(slot: number, milliseconds: number) {
    const seconds = Math.ceil(milliseconds / 1000);
    super(
      "ETIMEDOUT",
      `Keyslot ${slot} would take some ${seconds} seconds to try, which is ` +
        "more than 'max-unlock-time' permits",
    );
  }
}
