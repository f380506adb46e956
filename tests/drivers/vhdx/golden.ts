/**
 * The golden VHD and VHDX images.
 *
 * @module
 */
const FOLDER = new URL("../../fixtures/vhd/", import.meta.url);

/** An image made by QEMU. */
export interface Golden {
  /** Its file's name, which ends with the format's. */
  readonly name: string;
  /** What is special about it. */
  readonly what: string;
  /** The disk's size, in bytes. */
  readonly size: number;
  /** A hash of the disk. */
  readonly sha256: string;
}

/** All golden images. */
export const GOLDEN: readonly Golden[] = JSON.parse(
  Deno.readTextFileSync(new URL("golden.json", FOLDER)),
);

/** The bytes of a golden image. */
export async function goldenBytes(
  name: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const packed = await Deno.readFile(new URL(`${name}.gz`, FOLDER));
  const unpacking = new Blob([packed]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  return await new Response(unpacking).bytes();
}
