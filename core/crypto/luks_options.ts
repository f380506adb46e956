/**
 * Applying the options of all formats with LUKS: how a new image is encrypted,
 * and which passphrases are added or erased.
 *
 * @module
 */
import { BlockError, invalid } from "../errors.ts";
import type { OptionValues } from "../options.ts";
import { hashNamed } from "./hashes.ts";
import { type Algorithms, checkVectors } from "./luks_algorithms.ts";
import { SLOTS } from "./luks_header.ts";
import {
  type CipherMode,
  SUPPORTED_CIPHERS,
  type VectorGenerator,
} from "./luks_option_tables.ts";
import { ITERATION_TIME, type LuksVolume } from "./luks_volume.ts";
import { findPassphrase, type SecretFinder } from "./passphrase.ts";

/**
 * The algorithms of a new image, by `LUKS_CREATE_OPTIONS`.
 *
 * @throws {BlockError} ENOTSUP or EINVAL for invalid ones.
 */
export function algorithmsOf(options: OptionValues): Algorithms {
  const {
    "cipher-alg": cipher = "aes-256",
    "cipher-mode": mode = "xts",
    "ivgen-alg": generator = "plain64",
    "hash-alg": hash = "sha256",
  } = options as { [name: string]: string };
  const vectorHash = options["ivgen-hash-alg"] as string | undefined ??
    (generator === "essiv" ? "sha256" : undefined);
  const [family, bits] = cipher.split("-");
  const algorithms: Algorithms = {
    family,
    keySize: Number(bits) / 8,
    mode: mode as CipherMode,
    generator: generator as VectorGenerator,
    ...(vectorHash !== undefined && { generatorHash: hashNamed(vectorHash) }),
    hash: hashNamed(hash),
  };
  // 4000 keys of 192 bits do not fill whole sectors, so QEMU could not open it.
  const isUneven = mode !== "xts" && algorithms.keySize === 24;
  if (!SUPPORTED_CIPHERS.includes(cipher) || isUneven) {
    throw new BlockError("ENOTSUP", `Algorithm '${cipher}' not supported`);
  }
  checkVectors(algorithms);
  return algorithms;
}

/** An open volume, and what is needed to change its passphrases. */
export interface OpenVolume {
  readonly volume: LuksVolume;
  /** Absent if it was opened without the key. */
  readonly key?: Uint8Array;
  readonly secret: SecretFinder;
}

/**
 * Add or erase passphrases, by `LUKS_AMEND_OPTIONS`.
 *
 * @param force Also do what makes the image unusable, or may do so.
 * @throws {BlockError} EINVAL with QEMU's messages, before anything changes.
 */
export async function changeSlots(
  open: OpenVolume,
  options: OptionValues,
  force = false,
): Promise<void> {
  const { state } = options;
  if (state === undefined) throw invalid("Parameter 'state' is missing");
  using _ = await open.volume.changing.lock();
  if (state === "active") await addPassphrase(open, options, force);
  else await erasePassphrases(open, options, force);
}

async function addPassphrase(
  { volume, key, secret }: OpenVolume,
  options: OptionValues,
  force: boolean,
): Promise<void> {
  const { slots } = volume.header;
  const id = options["new-secret"] as string | undefined;
  if (id === undefined) {
    throw invalid("'new-secret' is required to activate a keyslot");
  }
  if (options["old-secret"] !== undefined) {
    throw invalid("'old-secret' must not be given when activating keyslots");
  }
  const slot = slotOf(options) ?? slots.findIndex(({ isActive }) => !isActive);
  if (slot < 0) throw invalid("Can't add a keyslot - all keyslots are in use");
  if (slots[slot].isActive && !force) {
    throw invalid(
      `Refusing to overwrite active keyslot ${slot} - please erase it first`,
    );
  }
  if (!key) throw invalid("Keys can only be added if one of them is known");
  const passphrase = await findPassphrase(secret, id, "new-secret");
  const time = options["iter-time"] as number | undefined ?? ITERATION_TIME;
  await volume.activate(slot, key, passphrase, time);
}

async function erasePassphrases(
  { volume, secret }: OpenVolume,
  options: OptionValues,
  force: boolean,
): Promise<void> {
  for (const name of ["new-secret", "iter-time"]) {
    if (options[name] === undefined) continue;
    throw invalid(`'${name}' must not be given when erasing keyslots`);
  }
  const id = options["old-secret"] as string | undefined;
  const passphrase = id === undefined
    ? undefined
    : await findPassphrase(secret, id, "old-secret");
  const slot = slotOf(options);
  if (slot !== undefined) {
    return await eraseSlot(volume, slot, passphrase, force);
  }
  if (!passphrase) {
    throw invalid(
      "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
    );
  }
  const found: number[] = [];
  for (let i = 0; i < SLOTS; i++) {
    if (await volume.opens(i, passphrase)) found.push(i);
  }
  if (found.length === 0) {
    throw invalid("No keyslots match given (old) password for erase operation");
  }
  if (found.length === activeSlots(volume) && !force) {
    throw invalid(
      "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation",
    );
  }
  for (const slot of found) await volume.erase(slot);
}

async function eraseSlot(
  volume: LuksVolume,
  slot: number,
  passphrase: Uint8Array | undefined,
  force: boolean,
): Promise<void> {
  if (passphrase && !await volume.opens(slot, passphrase)) {
    throw invalid(
      `Given keyslot ${slot} doesn't contain the given old password for erase operation`,
    );
  }
  if (!force && !volume.header.slots[slot].isActive) {
    throw invalid(`Given keyslot ${slot} is already erased (inactive) `);
  }
  if (!force && activeSlots(volume) === 1) {
    throw invalid(
      `Attempt to erase the only active keyslot ${slot} which will erase all the data in the image irreversibly - refusing operation`,
    );
  }
  await volume.erase(slot);
}

/** The slot that an option names, if any. */
function slotOf({ keyslot }: OptionValues): number | undefined {
  if (keyslot === undefined) return undefined;
  const slot = keyslot as number;
  if (slot >= 0 && slot < SLOTS) return slot;
  // QEMU shows 32 bits without a sign.
  const shown = slot < 0 && slot >= -(2 ** 31) ? slot >>> 0 : slot;
  throw invalid(
    `Invalid keyslot ${shown} specified, must be ` +
      `between 0 and ${SLOTS - 1}`,
  );
}

function activeSlots({ header }: LuksVolume): number {
  return header.slots.filter(({ isActive }) => isActive).length;
}
