import { assertEquals, assertRejects } from "@std/assert";
import { BlockError, openImage } from "../../../mod.ts";
import { storeOf } from "../qcow2/bytes.ts";
import { GOLDEN, goldenBytes } from "./golden.ts";

for (const { name, what, size, sha256 } of GOLDEN) {
  Deno.test(`an image made by QEMU is read: ${name}, ${what}`, async () => {
    const driver = name.split(".")[1];
    const store = storeOf(await goldenBytes(name));
    const stack = { driver, file: { driver: "memory", store } };
    if (name.startsWith("dirty")) {
      await assertRejects(
        () => openImage(stack, { readOnly: true }),
        BlockError,
        "contains a log that needs to be replayed",
      );
    }
    await using image = await openImage(stack);
    assertEquals(image.size, size);
    const content = await image.read(0, size);
    const sum = await crypto.subtle.digest("SHA-256", content as BufferSource);
    assertEquals(new Uint8Array(sum).toHex(), sha256);
  });
}
