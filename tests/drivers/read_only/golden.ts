/**
 * The golden images of read-only formats.
 *
 * @module
 */
import golden from "../../fixtures/read-only/golden.json" with { type: "json" };

const FIXTURES = new URL("../../fixtures/read-only/", import.meta.url);

/** An image, and its content according to other programs. */
export interface Golden {
  readonly name: string;
  readonly format: string;
  readonly size: number;
  /** A hash of it, in hexadecimal digits. */
  readonly sha256: string;
}

/** All golden images. */
export const GOLDEN: readonly Golden[] = golden;

/** The bytes of an image. */
export async function bytesOf(
  name: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const packed = await Deno.readFile(new URL(`${name}.gz`, FIXTURES));
  const stream = new Blob([packed]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
