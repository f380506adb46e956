/**
 * The golden VHD and VHDX images.
 *
 * @module
 */
const FOLDER = new URL("../../fixtures/vhd/", import.meta.url);

/** An image that QEMU made. */
export interface Golden {
  /** Its file's name, which ends with the format's. */
  readonly name: string;
  /** What is special about it. */
  readonly what: string;
  /** Bytes of its disk. */
  readonly size: number;
  /** Of the disk. */
  readonly sha256: string;
}

/** All of them. */
export const GOLDEN: readonly Golden[] = JSON.parse(
  Deno.readTextFileSync(new URL("golden.json", FOLDER)),
);

/** The bytes of one. */
export async function goldenBytes(
  name: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const packed = await Deno.readFile(new URL(`${name}.gz`, FOLDER));
  const unpacking = new Blob([packed]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  return await new Response(unpacking).bytes();
}
