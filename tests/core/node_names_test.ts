import { assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../core/errors.ts";
import { createImage, MemoryStore, openImage, type Source } from "../../mod.ts";
import { nameOf, resolveFrom } from "../../core/node_names.ts";
import type { BlockNode } from "../../core/node.ts";
import { TempDir } from "../qemu.ts";

async function opened(
  source: Source,
  use: (node: BlockNode) => void,
): Promise<void> {
  await using image = await openImage(source, { readOnly: true });
  use(image.node);
}

Deno.test("nameOf() is a file name where that alone opens the node", async () => {
  await using dir = await new TempDir();
  const [base, top] = [dir.file("base.qcow2"), dir.file("top.qcow2")];
  await createImage("qcow2", base, { size: 1 << 20 });
  const backing = { backing_file: "base.qcow2", backing_fmt: "qcow2" };
  await createImage("qcow2", top, { size: 1 << 20, ...backing });
  const file = { driver: "file", filename: top };
  const named: [Source, string][] = [
    [top, top],
    [`file:${top}`, top],
    [new URL(`file://${top}`), top],
    [{ driver: "qcow2", file }, top],
    [{ driver: "raw", file }, top],
    [`blkdebug::${top}`, `blkdebug::${top}`],
    [{ driver: "null-co" }, "null-co://"],
  ];
  for (const [source, name] of named) {
    await opened(source, (node) => assertEquals(nameOf(node), name));
  }
  const inJson = `{"driver": "file", "filename": "${top}"}`;
  const described: [Source, string][] = [
    [
      { driver: "raw", offset: 512, file },
      `{"offset": 512, "driver": "raw", "file": ${inJson}}`,
    ],
    [
      { driver: "compress", file: { driver: "qcow2", file } },
      `{"driver": "compress", "file": {"driver": "qcow2", ` +
      `"file": ${inJson}}}`,
    ],
    [
      { driver: "qcow2", file, backing: null },
      `{"backing": null, "driver": "qcow2", "file": ${inJson}}`,
    ],
    [
      {
        driver: "blkdebug",
        image: file,
        "inject-error": [{ event: "none", once: true }],
      },
      `{"inject-error.0.once": true, "image": ${inJson}, ` +
      `"driver": "blkdebug", "inject-error.0.event": "none"}`,
    ],
  ];
  for (const [source, description] of described) {
    await opened(source, (node) => {
      assertEquals(nameOf(node), `json:${description}`);
      // Opening that name gives the same as the description itself.
      assertEquals(resolveFrom(node, "x"), dir.file("x"));
    });
    await opened(
      `json:${description}`,
      (node) => assertEquals(nameOf(node), `json:${description}`),
    );
  }
});

Deno.test("resolveFrom() refuses names relative to a node without a folder", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 1 << 20 });
  await opened({ driver: "qcow2", file }, (node) => {
    assertEquals(resolveFrom(node, "/a"), "/a");
    assertThrows(
      () => resolveFrom(node, "a"),
      BlockError,
      "Cannot generate a base directory for memory nodes",
    );
  });
});
