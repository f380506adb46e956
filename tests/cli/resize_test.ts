/**
 * `resize`, compared with qemu-img's, where the disk ends within a cluster.
 * @module
 */
import { assertEquals } from "@std/assert";
import { runOk } from "../qemu.ts";
import { besideQemu } from "./beside.ts";

/** 1 MiB and one sector: not a whole number of clusters. */
const ODD = "1049088";

besideQemu("resize leaves the same image as qemu-img's", {
  async prepare(cwd) {
    const create = ["qemu-img", "create", "-q", "-f"];
    const write = ["qemu-io", "-f"];
    await runOk([...create, "raw", "disk", ODD], { cwd });
    await runOk([...create, "qcow2", "base", ODD], { cwd });
    await runOk([...write, "qcow2", "-c", "write 1M 512", "base"], { cwd });
    await runOk([...create, "qcow2", "long", "4M"], { cwd });
    await runOk([...write, "qcow2", "-c", "write 0 4M", "long"], { cwd });
    const names = [["base", "same", "1.1"], ["base", "old-same", "0.10"], [
      "long",
      "shorter",
      "1.1",
    ], ["long", "old-shorter", "0.10"]];
    for (const [backing, name, compat] of names) {
      const options = ["-o", `compat=${compat}`, "-b", backing, "-F", "qcow2"];
      await runOk([...create, "qcow2", ...options, name, ODD], { cwd });
    }
  },
  calls: [
    "resize base +512",
    "resize base +1M",
    "resize same +512",
    "resize same +1M",
    "resize old-same +1M",
    "resize shorter +512",
    "resize shorter +1M",
    "resize --preallocation=metadata shorter +1M",
    "resize --preallocation=falloc shorter +1M",
    "resize --preallocation=full shorter +1M",
    "resize --preallocation=falloc shorter 3M",
    "resize old-shorter +512",
    "resize old-shorter +1M",
    "resize blkdebug::disk +1M",
    "resize ./disk +1M",
  ],
  async inspect(call, { ours, theirs }) {
    const file = call.split(" ").at(-2)!;
    if (file.endsWith("disk")) return;
    await runOk(["qemu-img", "check", "-q", file], { cwd: ours });
    const names = [`${ours}/${file}`, `${theirs}/${file}`];
    await runOk(["qemu-img", "compare", "-q", ...names]);
    // Ours clears the rest of the cluster behind the old end, and leaves no
    // hole.
    if (file === "base") return;
    const map = ["qemu-img", "map", "--output=json", file];
    const [own, qemu] = await Promise.all(
      [ours, theirs].map((cwd) => runOk(map, { cwd })),
    );
    const plain = (text: string) => text.replace(/, "offset": \d+/g, "");
    assertEquals(plain(own), plain(qemu));
  },
});
