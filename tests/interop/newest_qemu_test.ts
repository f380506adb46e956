/** Images of every kind, exchanged with the newest QEMU. @module */
import { assertEquals } from "@std/assert";
import { newestQemuTest, OUR_TOOLS, TempDir } from "../qemu.ts";
import { examine, KINDS, makeKind, makeSource } from "./kinds.ts";

newestQemuTest(
  "the newest QEMU reads what we write, and we read its images",
  async (theirs, t) => {
    await using dir = new TempDir();
    const folder = async (name: string) => {
      const path = dir.file(name);
      Deno.mkdirSync(path);
      await makeSource(path);
      return path;
    };
    const [ours, its] = [await folder("ours"), await folder("its")];
    await Promise.all(KINDS.map((kind) =>
      t.step({
        name: kind.file,
        sanitizeOps: false,
        sanitizeResources: false,
        sanitizeExit: false,
        async fn() {
          await makeKind(OUR_TOOLS, kind, "source.raw", ours);
          assertEquals(await examine(theirs, kind, ours), "", "ours");
          await makeKind(theirs, kind, "source.raw", its);
          assertEquals(await examine(OUR_TOOLS, kind, its), "", "its");
        },
      })
    ));
  },
);
