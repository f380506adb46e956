/**
 * The golden images of formats that are only read.
 *
 * @module
 */
import golden from "../../fixtures/read-only/golden.json" with { type: "json" };

const FIXTURES = new URL("../../fixtures/read-only/", import.meta.url);

/** An image, and what others say that it holds. */
export interface Golden {
  readonly name: string;
  readonly format: string;
  readonly size: number;
  /** In hexadecimal. */
  readonly sha256: string;
}

/** All of them. */
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
