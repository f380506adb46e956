/**
 * The golden images of `tests/fixtures`.
 *
 * @module
 */
import type { OptionValues } from "../../../core/options.ts";
import golden from "../../fixtures/golden.json" with { type: "json" };
import { storeOf } from "./bytes.ts";

/** One image, or one of its snapshots. */
export interface Golden {
  /** Its file's name, without `.gz`. */
  name: string;
  /** What is special about it. */
  what: string;
  /** The disk's size, in bytes. */
  size: number;
  /** Hash of the disk's content, in hexadecimal digits. */
  sha256: string;
  open?: {
    /** Its backing files, nearest first. */
    backing?: string[];
    /** The snapshot to read. */
    snapshot?: string;
    /** The passphrase of its encryption. */
    key?: string;
    /** Its external data file. */
    dataFile?: string;
  };
}

/** All golden images. */
export const GOLDEN: readonly Golden[] = golden;

/** The bytes of a golden file. */
export async function goldenBytes(
  name: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const url = new URL(`../../fixtures/${name}.gz`, import.meta.url);
  const packed = new Blob([await Deno.readFile(url)]).stream();
  const stream = packed.pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).bytes();
}

/** The description of an image and its backing files, all in memory. */
export async function goldenStack(
  name: string,
  backing: readonly string[] = [],
): Promise<OptionValues> {
  const store = storeOf(await goldenBytes(name));
  const file = { driver: "memory", store };
  if (name.endsWith(".raw")) return { driver: "raw", file };
  if (name.endsWith(".luks")) return { driver: "luks", file };
  const [next, ...rest] = backing;
  const below = next === undefined ? null : await goldenStack(next, rest);
  return { driver: "qcow2", file, ...await goldenData(name), backing: below };
}

/** The description of an image's external data file, if any, in memory. */
export async function goldenData(name: string): Promise<OptionValues> {
  const image = GOLDEN.find((image) => image.name === name);
  const dataFile = image?.open?.dataFile;
  if (dataFile === undefined) return {};
  const store = storeOf(await goldenBytes(dataFile));
  return { "data-file": { driver: "memory", store } };
}
