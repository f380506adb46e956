/**
 * Kinds of images whose data is encrypted or lies elsewhere, for tests that do
 * the same with all of them.
 *
 * @module
 */
import type { OptionValues } from "../../../core/options.ts";
import { createImage, MemoryStore, type StackObject } from "../../../mod.ts";
import type { Random } from "../../model.ts";
import { run } from "../../qemu.ts";
import { contentOf } from "./bytes.ts";

/** The secrets for encrypted variants. */
export const SECRETS = { key: "a secret" };
const KEY = { "encrypt.key-secret": "key" };

/**
 * Options of each kind of encryption; deriving their keys takes little time.
 */
export const ENCRYPTION: { readonly [kind in "aes" | "luks"]: OptionValues } = {
  aes: { "encrypt.format": "aes", ...KEY },
  luks: {
    "encrypt.format": "luks",
    "encrypt.iter-time": 0,
    "encrypt.cipher-alg": "aes-128",
    "encrypt.cipher-mode": "cbc",
    ...KEY,
  },
};

/** A kind of image. */
export interface Variant {
  readonly encryption?: keyof typeof ENCRYPTION;
  /** The name of its external data file, if it has one. */
  readonly dataFile?: string;
  /** Whether that file alone holds the disk's content. */
  readonly isRaw?: boolean;
}

/** All kinds; most images are plain ones, and some combine several. */
export function someVariant(random: Random, dataFile?: string): Variant {
  const hasDataFile = dataFile !== undefined && random.oneIn(4);
  return {
    ...(random.oneIn(3) && { encryption: random.pick(["aes", "luks"]) }),
    ...(hasDataFile && { dataFile, isRaw: random.oneIn(2) }),
  };
}

/** A description, for messages. */
export function describe({ encryption, dataFile, isRaw }: Variant): string {
  const data = dataFile && (isRaw ? "raw data file" : "data file");
  return [encryption, data].filter(Boolean).join(", ") || "plain";
}

/** The bytes of a new image of this kind, and of its data file. */
export async function newFiles(
  { encryption, dataFile, isRaw }: Variant,
  options: OptionValues,
): Promise<Uint8Array<ArrayBuffer>[]> {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, {
    ...options,
    ...(encryption && ENCRYPTION[encryption]),
    ...(dataFile !== undefined &&
      { data_file: dataFile, data_file_raw: isRaw }),
  }, { secrets: SECRETS });
  const image = contentOf(store);
  return dataFile === undefined
    ? [image]
    : [image, await Deno.readFile(dataFile)];
}

/** How to open an image of this kind, given its `files`. */
export function stackOf(
  { encryption, dataFile }: Variant,
  [file, data]: readonly unknown[],
): StackObject {
  return {
    driver: "qcow2",
    file,
    ...(dataFile !== undefined && { "data-file": data }),
    ...(encryption && KEY),
    backing: null,
  };
}

/** Run a command of qemu-img on an image of this kind, given its `files`. */
export function qemuOn(
  variant: Variant,
  command: readonly string[],
  files: readonly string[],
) {
  const nodes = files.map((filename) => ({ driver: "file", filename }));
  const stack = JSON.stringify(stackOf(variant, nodes));
  return run([
    "qemu-img",
    ...command,
    ...["--object", `secret,id=key,data=${SECRETS.key}`],
    `json:${stack}`,
  ]);
}
