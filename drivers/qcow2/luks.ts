/**
 * Images encrypted with LUKS: the LUKS header has clusters of its own, and
 * sectors are encrypted by their host offset. (Specification: "Full disk
 * encryption header pointer", "Data Encryption".)
 *
 * @module
 */
import { headerStore } from "../../core/crypto/header_store.ts";
import { headerAreaLength } from "../../core/crypto/luks_header.ts";
import {
  LUKS_AMEND_OPTIONS,
  LUKS_CREATE_OPTIONS,
  withoutPrefix,
} from "../../core/crypto/luks_option_tables.ts";
import {
  algorithmsOf,
  changeSlots,
  type OpenVolume,
} from "../../core/crypto/luks_options.ts";
import type { Algorithms } from "../../core/crypto/luks_algorithms.ts";
import { type HeaderStore, LuksVolume } from "../../core/crypto/luks_volume.ts";
import { findPassphrase, namedSecrets } from "../../core/crypto/passphrase.ts";
import type {
  CreateContext,
  MeasureContext,
  OpenContext,
} from "../../core/driver.ts";
import { Encryption, LOCKED } from "../../core/encryption.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { writeZeroes } from "../../core/requests.ts";
import type { OptionValues } from "../../core/options.ts";
import { Crypt } from "./format.ts";
import type { Header } from "./header.ts";
import type { Qcow2State } from "./state.ts";

/** How an image is encrypted. */
export interface ImageEncryption {
  /**
   * Encrypts and decrypts guest data; absent if the image is only described.
   */
  readonly data?: Encryption;
  /** The LUKS header and its master key, if there is one. */
  readonly luks?: OpenVolume;
}

/** How to unlock the master key. */
interface KeyLookup {
  /** The id of the passphrase's secret. */
  readonly secret?: string;
  /** Milliseconds that deriving the key may take. */
  readonly time?: number;
}

/** Read the LUKS header and, unless the image is only described, unlock it. */
export async function openLuks(
  file: BlockNode,
  header: Header,
  { secret: id, time }: KeyLookup,
  { withoutKeys, secret, signal, unlocking }: OpenContext,
): Promise<ImageEncryption> {
  // As in QEMU, a missing passphrase is reported before an unsound header.
  const passphrase = withoutKeys
    ? undefined
    : await findPassphrase(secret, id, "encrypt.key-secret");
  const volume = await LuksVolume.read(areaOf(file, header.encryptionHeader!));
  if (!passphrase) {
    const data = new Encryption(LOCKED, "childOffset");
    return { luks: { volume, secret }, data };
  }
  const limits = { time, signal, progress: unlocking };
  const key = await volume.unlock(passphrase, limits);
  return await withKey({ volume, key, secret });
}

async function withKey(
  luks: OpenVolume & { readonly key: Uint8Array },
): Promise<ImageEncryption> {
  const cipher = await luks.volume.cipher(luks.key);
  return { luks, data: new Encryption(cipher, "childOffset") };
}

/** The area of the file that the header extension refers to. */
function areaOf(
  file: BlockNode,
  { offset, length }: NonNullable<Header["encryptionHeader"]>,
): HeaderStore {
  const store = headerStore(file, offset);
  const check = (end: number) => {
    if (offset >= 2 ** 63) {
      throw new BlockError(
        "EIO",
        "Could not read encryption header: Input/output error",
      );
    }
    if (end <= length) return;
    throw invalid("Request for data outside of extension header");
  };
  return {
    // Reading it shows whether that much is there.
    length: store.length,
    async read(at, bytes) {
      check(at + bytes.length);
      await store.read(at, bytes);
    },
    async write(at, bytes) {
      check(at + bytes.length);
      await store.write(at, bytes);
    },
  };
}

/** The encryption of a new image. */
export interface LuksPlan {
  readonly algorithms: Algorithms;
  readonly passphrase: Uint8Array;
  readonly iterationTime?: number;
}

/** Check the options of a new image. */
export async function planLuks(
  options: OptionValues,
  { secret }: Pick<CreateContext, "secret">,
): Promise<LuksPlan> {
  const name = "encrypt.key-secret";
  const id = options[name] as string | undefined;
  const passphrase = await findPassphrase(secret, id, name);
  const own = withoutPrefix("encrypt.", LUKS_CREATE_OPTIONS, options);
  return {
    algorithms: algorithmsOf(own),
    passphrase,
    iterationTime: own["iter-time"] as number | undefined,
  };
}

/** Bytes of the LUKS header of a new image. */
export async function measureLuks(
  options: OptionValues,
  context?: MeasureContext,
): Promise<number> {
  const secret = namedSecrets(context);
  return headerAreaLength((await planLuks(options, { secret })).algorithms);
}

/** Write the LUKS header of a new image. Requires the metadata lock. */
export async function makeLuks(
  state: Qcow2State,
  { algorithms, passphrase, iterationTime }: LuksPlan,
): Promise<ImageEncryption> {
  const { file, geometry, refcounts } = state;
  const length = headerAreaLength(algorithms);
  const room = geometry.clusterEnd(length);
  const offset = await refcounts.allocate(room / geometry.clusterSize);
  await writeZeroes(file, offset, room);
  const area = { offset, length };
  const { volume, key } = await LuksVolume.make(
    areaOf(file, area),
    algorithms,
    passphrase,
    { iterationTime },
  );
  state.header.cryptMethod = Crypt.LUKS;
  state.header.encryptionHeader = area;
  const secret = () => Promise.resolve(undefined);
  return await withKey({ volume, key, secret });
}

/** Add or erase passphrases, by the `encrypt.` options. */
export async function amendLuks(
  luks: OpenVolume,
  options: OptionValues,
  force?: boolean,
): Promise<void> {
  const own = withoutPrefix("encrypt.", LUKS_AMEND_OPTIONS, options);
  await changeSlots(luks, own, force);
}
