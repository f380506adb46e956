/** Suggestions for mistyped words. @module */
import { assertEquals } from "@std/assert";
import { nearest } from "../../cli/suggest.ts";
import { BDRV, run, runOk, TempDir } from "../qemu.ts";

Deno.test("nearest() finds words that differ in up to a third of their letters", () => {
  const known = ["check", "compare", "convert", "create", "info"];
  assertEquals(nearest("conver", known), "convert");
  assertEquals(nearest("covnert", known), "convert");
  assertEquals(nearest("inof", known), "info");
  assertEquals(nearest("comp", known), "compare");
  assertEquals(nearest("delete", known), undefined);
  assertEquals(nearest("co", known), undefined); // Ambiguous.
  assertEquals(nearest("c", known), undefined);
  assertEquals(nearest("", known), undefined);
});

/** The suggestion for each call. */
const CALLS: { readonly [call: string]: string } = {
  "conver a b": "convert",
  "--hlep": "--help",
  "info --fromat raw disk": "--format",
  "info --outptu=json disk": "--output",
  "info -f qkow2 disk": "qcow2",
  "info null-c://": "null-co",
  "create -f qkow2 new 1G": "qcow2",
  "create -f qcow2 -o clustersize=4k new 1G": "cluster_size",
  "create -f qcow2 -o preallocation=ful new 1G": "full",
  "convert -O qcow2 -t unsave disk new": "unsafe",
  "convert -O qkow2 disk new": "qcow2",
  "resize --preallocation=fallocate disk 1G": "falloc",
  "amend -o lazy_refcount=on q": "lazy_refcounts",
  "info --image-opts driver=raw,ofset=1,file.filename=disk": "offset",
};

Deno.test("our own program makes suggestions; under QEMU's names there are none", async (t) => {
  await using dir = new TempDir();
  Deno.writeFileSync(dir.file("disk"), new Uint8Array(512));
  const create = ["create", "-q", "-f", "qcow2", dir.file("q"), "1M"];
  await runOk([...BDRV, ...create]);
  for (const [call, meant] of Object.entries(CALLS)) {
    await t.step(call, async () => {
      // In sequence: an image is locked while it is written to.
      const words = call.split(" ");
      const ours = await run([...BDRV, ...words], { cwd: dir.path });
      const theirs = await run([...BDRV, "qemu-img", ...words], {
        cwd: dir.path,
      });
      const question = /\(did you mean '(.*)'\?\)/;
      assertEquals(question.exec(ours.stderr)?.[1], meant, ours.stderr);
      assertEquals(question.exec(theirs.stderr), null);
      assertEquals(ours.code, theirs.code);
    });
  }
});
