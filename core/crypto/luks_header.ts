/**
 * The LUKS 1 header: how an image is encrypted, and eight key slots for
 * passphrases, each of which unlocks the same master key. (LUKS 1.2.1, "The
 * partition header"; all numbers are big-endian.)
 *
 * @module
 */
import { allocate, divideUp, roundUp, SECTOR_SIZE, viewOf } from "../bytes.ts";
import { BlockError, invalid } from "../errors.ts";
import {
  type Algorithms,
  masterKeySize,
  modeText,
  parseAlgorithms,
} from "./luks_algorithms.ts";
import { randomBytes } from "./hashes.ts";

/** Bytes of the header; key material follows further on. */
export const HEADER_LENGTH = 592;
/** Alignment of key material, in sectors, the unit of all offsets. */
const KEY_MATERIAL_SECTORS = 8;
/** Bytes of salts and of the key's digest. */
export const SALT_LENGTH = 32;
export const DIGEST_LENGTH = 20;
/** Number of key slots. */
export const SLOTS = 8;
/** Parts into which a key is split. */
export const STRIPES = 4000;

const MAGIC = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe];
const NAME_LENGTH = 32;
const UUID_LENGTH = 40;
const ENABLED = 0x00ac71f3;
const DISABLED = 0x0000dead;

/** Offsets of the fields. */
const Field = {
  VERSION: 6,
  CIPHER: 8,
  MODE: 40,
  HASH: 72,
  PAYLOAD: 104,
  KEY_BYTES: 108,
  DIGEST: 112,
  DIGEST_SALT: 132,
  DIGEST_ITERATIONS: 164,
  UUID: 168,
  SLOTS: 208,
} as const;
const SLOT_LENGTH = 48;

/** A key slot, for one passphrase. */
export interface KeySlot {
  readonly isActive: boolean;
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Offset of its key material from the header. */
  readonly offset: number;
}

/** A header, decoded. Offsets are bytes. */
export interface LuksHeader {
  readonly algorithms: Algorithms;
  /** Offset of the encrypted data; 0 if it is not in this file. */
  readonly payloadOffset: number;
  /** Verifies a master key. */
  digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  digestIterations: number;
  readonly uuid: string;
  readonly slots: readonly KeySlot[];
}

/** Bytes of a split key, in whole sectors, which are what is encrypted. */
export function materialLength(keyBytes: number): number {
  return roundUp(keyBytes * STRIPES, SECTOR_SIZE);
}

/** Sectors of a key slot's material. */
function slotSectors(keyBytes: number, stripes = STRIPES): number {
  const sectors = divideUp(keyBytes * stripes, SECTOR_SIZE);
  return roundUp(sectors, KEY_MATERIAL_SECTORS);
}

/** A header without passphrases. */
export function newHeader(
  algorithms: Algorithms,
  isDetached = false,
): LuksHeader {
  const sectors = slotSectors(masterKeySize(algorithms));
  const slots = Array.from({ length: SLOTS }, (_, i) => ({
    isActive: false,
    iterations: 0,
    salt: allocate(SALT_LENGTH),
    offset: (KEY_MATERIAL_SECTORS + i * sectors) * SECTOR_SIZE,
  }));
  return {
    algorithms,
    payloadOffset: isDetached ? 0 : headerAreaLength(algorithms),
    digest: allocate(DIGEST_LENGTH),
    digestSalt: randomBytes(SALT_LENGTH),
    digestIterations: 0,
    uuid: crypto.randomUUID(),
    slots,
  };
}

/** Bytes of a new header with all of its key slots. */
export function headerAreaLength(algorithms: Algorithms): number {
  const sectors = slotSectors(masterKeySize(algorithms));
  return (KEY_MATERIAL_SECTORS + SLOTS * sectors) * SECTOR_SIZE;
}

/** Encode a header. */
export function encodeHeader(header: LuksHeader): Uint8Array {
  const { algorithms } = header;
  const bytes = allocate(HEADER_LENGTH);
  const view = viewOf(bytes);
  bytes.set(MAGIC);
  view.setUint16(Field.VERSION, 1);
  bytes.set(bytesOf(algorithms.family), Field.CIPHER);
  bytes.set(bytesOf(modeText(algorithms)), Field.MODE);
  bytes.set(bytesOf(algorithms.hash), Field.HASH);
  view.setUint32(Field.PAYLOAD, header.payloadOffset / SECTOR_SIZE);
  view.setUint32(Field.KEY_BYTES, masterKeySize(algorithms));
  bytes.set(header.digest, Field.DIGEST);
  bytes.set(header.digestSalt, Field.DIGEST_SALT);
  view.setUint32(Field.DIGEST_ITERATIONS, header.digestIterations);
  bytes.set(bytesOf(header.uuid), Field.UUID);
  header.slots.forEach((slot, i) => {
    const at = Field.SLOTS + i * SLOT_LENGTH;
    view.setUint32(at, slot.isActive ? ENABLED : DISABLED);
    view.setUint32(at + 4, slot.iterations);
    bytes.set(slot.salt, at + 8);
    view.setUint32(at + 40, slot.offset / SECTOR_SIZE);
    view.setUint32(at + 44, STRIPES);
  });
  return bytes;
}

/** What a header is validated against. */
export interface HeaderPlace {
  /** Whether encrypted data is in another file. */
  readonly isDetached?: boolean;
}

/**
 * Decode and validate a header.
 *
 * @param bytes {@linkcode HEADER_LENGTH} of them.
 * @throws {BlockError} EINVAL with QEMU's messages, ENOTSUP for other versions
 * and unsupported ciphers.
 */
export function parseHeader(
  bytes: Uint8Array,
  { isDetached = false }: HeaderPlace = {},
): LuksHeader {
  const view = viewOf(bytes);
  if (MAGIC.some((byte, i) => bytes[i] !== byte)) {
    throw invalid("Volume is not in LUKS format");
  }
  const version = view.getUint16(Field.VERSION);
  if (version !== 1) {
    throw new BlockError("ENOTSUP", `LUKS version ${version} is not supported`);
  }
  const family = nameAt(bytes, Field.CIPHER, "header cipher name");
  const mode = nameAt(bytes, Field.MODE, "header cipher mode");
  const hash = nameAt(bytes, Field.HASH, "header hash spec");
  const payloadSectors = view.getUint32(Field.PAYLOAD);
  if (!isDetached && payloadSectors < KEY_MATERIAL_SECTORS) {
    throw invalid("LUKS payload is overlapping with the header");
  }
  const digestIterations = view.getUint32(Field.DIGEST_ITERATIONS);
  if (digestIterations === 0) throw invalid("LUKS key iteration count is zero");
  const keyBytes = view.getUint32(Field.KEY_BYTES);
  const end = isDetached ? Infinity : payloadSectors;
  checkSlots(view, keyBytes, end);
  return {
    algorithms: parseAlgorithms(family, mode, hash, keyBytes),
    payloadOffset: payloadSectors * SECTOR_SIZE,
    digest: bytes.slice(Field.DIGEST, Field.DIGEST + DIGEST_LENGTH),
    digestSalt: bytes.slice(Field.DIGEST_SALT, Field.DIGEST_SALT + SALT_LENGTH),
    digestIterations,
    uuid: latin1(bytes.subarray(Field.UUID, Field.UUID + UUID_LENGTH)),
    slots: Array.from({ length: SLOTS }, (_, i) => slotAt(bytes, view, i)),
  };
}

function slotAt(bytes: Uint8Array, view: DataView, index: number): KeySlot {
  const at = Field.SLOTS + index * SLOT_LENGTH;
  return {
    isActive: view.getUint32(at) === ENABLED,
    iterations: view.getUint32(at + 4),
    salt: bytes.slice(at + 8, at + 8 + SALT_LENGTH),
    offset: view.getUint32(at + 40) * SECTOR_SIZE,
  };
}

/**
 * Refuse overlapping key slots, including inactive ones, which may get a
 * passphrase.
 *
 * @param end Sector where encrypted data begins.
 */
function checkSlots(view: DataView, keyBytes: number, end: number): void {
  const length = slotSectors(keyBytes);
  const field = (slot: number, at: number) =>
    view.getUint32(Field.SLOTS + slot * SLOT_LENGTH + at);
  for (let i = 0; i < SLOTS; i++) {
    const stripes = field(i, 44);
    if (stripes !== STRIPES) {
      // QEMU shows it with a sign.
      throw invalid(
        `Keyslot ${i} is corrupted (stripes ${stripes | 0} != ${STRIPES})`,
      );
    }
    const state = field(i, 0);
    if (state !== ENABLED && state !== DISABLED) {
      throw invalid(`Keyslot ${i} state (active/disable) is corrupted`);
    }
    if (state === ENABLED && field(i, 4) === 0) {
      throw invalid(`Keyslot ${i} iteration count is zero`);
    }
    const start = field(i, 40);
    if (start < KEY_MATERIAL_SECTORS) {
      throw invalid(`Keyslot ${i} is overlapping with the LUKS header`);
    }
    if (start + length > end) {
      throw invalid(`Keyslot ${i} is overlapping with the encrypted payload`);
    }
    for (let j = i + 1; j < SLOTS; j++) {
      const other = field(j, 40);
      const otherEnd = other + slotSectors(keyBytes, field(j, 44));
      if (start + length > other && otherEnd > start) {
        throw invalid(
          `Keyslots ${i} and ${j} are overlapping in the header`,
        );
      }
    }
  }
}

/** Zero-terminated text. */
function nameAt(bytes: Uint8Array, at: number, what: string): string {
  const field = bytes.subarray(at, at + NAME_LENGTH);
  if (!field.includes(0)) throw invalid(`LUKS ${what} is not NUL terminated`);
  return latin1(field);
}

/** Text up to the first zero, one character per byte. */
function latin1(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, end < 0 ? undefined : end));
}

/** The reverse of {@linkcode latin1}. */
function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/**
 * Describe a header, with the names of QEMU's `QCryptoBlockInfoLUKS`.
 *
 * @param isDetached Whether it is in a file of its own.
 */
export function describeHeader(
  header: LuksHeader,
  isDetached: boolean,
): Record<string, unknown> {
  const { algorithms, payloadOffset } = header;
  const { family, keySize, mode, generator } = algorithms;
  return {
    "cipher-alg": `${family}-${keySize * 8}`,
    "cipher-mode": mode,
    "ivgen-alg": generator,
    ...(generator === "essiv" && {
      "ivgen-hash-alg": algorithms.generatorHash,
    }),
    "hash-alg": algorithms.hash,
    "detached-header": isDetached,
    "payload-offset": payloadOffset,
    "master-key-iters": header.digestIterations,
    uuid: header.uuid,
    slots: header.slots.map(({ isActive, iterations, offset }) => ({
      active: isActive,
      ...(isActive && { iters: iterations, stripes: STRIPES }),
      "key-offset": offset,
    })),
  };
}
