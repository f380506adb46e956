/**
 * Encrypted guest data: sectors of 512 bytes, encrypted by their offset on the
 * disk or in the child.
 *
 * @module
 */
import { checkSignal } from "./abort.ts";
import {
  allocate,
  copyIntoVector,
  flattenVector,
  type IoVector,
  SECTOR_SIZE,
  sliceVector,
  vectorLength,
} from "./bytes.ts";
import type { SectorCipher } from "./crypto/sector_ciphers.ts";
import { BlockError, invalid } from "./errors.ts";
import type { BlockNode, ReadFlags, WriteFlags } from "./node.ts";

/** Bytes encrypted at a time: the cipher is most efficient on many sectors. */
const BATCH = 256 * 1024;
/** Buffers kept for concurrent writes. */
const KEPT_BUFFERS = 4;

/** Moves guest data between the caller and a child that stores it encrypted. */
export class Encryption {
  readonly #cipher: SectorCipher;
  readonly #byChildOffset: boolean;
  readonly #buffers: Uint8Array[] = [];

  /**
   * @param by Which offset the encryption of a sector depends on: on the disk
   * or in the child.
   */
  constructor(cipher: SectorCipher, by: "offset" | "childOffset") {
    this.#cipher = cipher;
    this.#byChildOffset = by === "childOffset";
  }

  /** Read whole sectors from `childOffset` on and decrypt them. */
  async readv(
    child: BlockNode,
    childOffset: number,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const place = this.#byChildOffset ? childOffset : offset;
    let sector = sectorOf(place, vectorLength(iov));
    await child.readv(childOffset, iov, flags);
    if (!iov.every((part) => part.length % SECTOR_SIZE === 0)) {
      const flat = flattenVector(iov);
      this.#cipher.decrypt(flat, sector);
      return copyIntoVector(iov, 0, flat);
    }
    for (const part of iov) {
      this.#cipher.decrypt(part, sector);
      sector += part.length / SECTOR_SIZE;
    }
  }

  /**
   * Encrypt whole sectors and write them to `childOffset`, leaving the caller's
   * buffers unchanged.
   */
  async writev(
    child: BlockNode,
    childOffset: number,
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    const place = this.#byChildOffset ? childOffset : offset;
    const sector = sectorOf(place, length);
    const buffer = this.#buffers.pop() ?? allocate(BATCH);
    try {
      for (let done = 0; done < length; done += BATCH) {
        const part = sliceVector(iov, done, Math.min(BATCH, length - done));
        const batch = buffer.subarray(0, vectorLength(part));
        let at = 0;
        for (const bytes of part) {
          batch.set(bytes, at);
          at += bytes.length;
        }
        this.#cipher.encrypt(batch, sector + done / SECTOR_SIZE);
        checkSignal(flags?.signal);
        await child.writev!(childOffset + done, [batch], flags);
      }
    } finally {
      if (this.#buffers.length < KEPT_BUFFERS) this.#buffers.push(buffer);
    }
  }
}

/** Stands in for the cipher of an image that was opened without its key. */
export const LOCKED: SectorCipher = { encrypt: refuse, decrypt: refuse };

function refuse(): never {
  throw new BlockError("EACCES", "The image was opened without its key");
}

function sectorOf(offset: number, length: number): number {
  if (offset % SECTOR_SIZE !== 0 || length % SECTOR_SIZE !== 0) {
    throw invalid("Encrypted data is read and written in whole sectors");
  }
  return offset / SECTOR_SIZE;
}
