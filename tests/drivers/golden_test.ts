/** Images of older formats made by QEMU read as QEMU says. @module */
import { assertEquals } from "@std/assert";
import { openImage } from "../../mod.ts";
import golden from "../fixtures/old/golden.json" with { type: "json" };
import { stackOf } from "./format_tests.ts";

const FOLDER = new URL("../fixtures/old/", import.meta.url);

for (const { name, what, size, sha256 } of golden) {
  Deno.test(`golden ${name} (${what}) reads as QEMU says`, async () => {
    const packed = await Deno.readFile(new URL(`${name}.gz`, FOLDER));
    const unpacking = new Blob([packed]).stream()
      .pipeThrough(new DecompressionStream("gzip"));
    const bytes = await new Response(unpacking).bytes();
    const driver = name.split(".")[1];
    const { file } = stackOf(driver, bytes);
    // By probing as well.
    await using image = await openImage({ file }, { readOnly: true });
    assertEquals([image.format, image.size], [driver, size]);
    if (driver !== "qcow") {
      const { corruptions, leaks } = await image.check();
      assertEquals([corruptions, leaks], [0, 0]);
    }
    const content = new Uint8Array(await image.read(0, size));
    const sum = await crypto.subtle.digest("SHA-256", content);
    assertEquals(new Uint8Array(sum).toHex(), sha256);
    const pieces = image.readable({ offset: 1, chunkSize: 7777 });
    const rest = await new Response(pieces as ReadableStream).bytes();
    assertEquals(rest, content.slice(1));
  });
}
