/** Images made by QEMU read as QEMU says. @module */
import { assertEquals } from "@std/assert";
import { openImage } from "../../../mod.ts";
import golden from "../../fixtures/vmdk/golden.json" with { type: "json" };
import { TempDir } from "../../qemu.ts";

const FIXTURES = new URL("../../fixtures/vmdk/", import.meta.url);

/** The content of the large one, apart from zeroes. */
const SPOTS = [
  [0, 0x77, 1024],
  [2147483136, 0x88, 1024],
  [2148000000, 0x99, 100],
] as const;

async function unpack(folder: TempDir, name: string): Promise<string> {
  const packed = await Deno.readFile(new URL(`${name}.gz`, FIXTURES));
  const stream = new Blob([packed]).stream()
    .pipeThrough(new DecompressionStream("gzip"));
  await Deno.writeFile(folder.file(name), stream);
  return folder.file(name);
}

for (const { name, what, size, sha256, files } of golden) {
  Deno.test(`golden ${name} (${what}) reads as QEMU says`, async () => {
    await using folder = new TempDir();
    for (const file of files) await unpack(folder, file);
    const path = await unpack(folder, name);
    await using image = await openImage(path, { readOnly: true });
    assertEquals([image.format, image.size], ["vmdk", size]);
    await image.check();
    if (sha256 === "") {
      for (const [offset, filler, length] of SPOTS) {
        const around = await image.read(offset, length + 1);
        assertEquals(around[length], 0);
        assertEquals(
          around.slice(0, length),
          new Uint8Array(length).fill(filler),
        );
      }
      return;
    }
    const content = new Uint8Array(await image.read(0, size));
    const sum = await crypto.subtle.digest("SHA-256", content);
    assertEquals(new Uint8Array(sum).toHex(), sha256);
    // In odd pieces as well.
    const pieces = image.readable({ offset: 1, chunkSize: 7777 });
    const bytes = await new Response(pieces as ReadableStream).bytes();
    assertEquals(bytes, content.slice(1));
  });
}
