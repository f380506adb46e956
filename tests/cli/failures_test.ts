/**
 * Failures use qemu-img's words: deep in a chain, and where progress is shown.
 *
 * @module
 */
import { runOk } from "../qemu.ts";
import { besideQemu } from "./beside.ts";

async function makeOrphans(cwd: string): Promise<void> {
  const create = ["qemu-img", "create", "-q", "-f", "qcow2"];
  await runOk([...create, "disk", "1M"], { cwd });
  for (const [backing, name] of [["none", "one"], ["one", "two"]]) {
    const names = ["-u", "-b", backing, "-F", "qcow2", name];
    await runOk([...create, ...names, "1M"], { cwd });
  }
}

besideQemu("an image of a chain that cannot be opened is named", {
  prepare: makeOrphans,
  calls: ["map one", "map two", "info --backing-chain two", "commit two"],
});

besideQemu("progress of a failing command begins and ends as qemu-img's does", {
  prepare: makeOrphans,
  calls: [
    "amend -p -o compat=1.1 none",
    "amend -p -o bogus=1 disk",
    "amend -p -o cluster_size=512 disk",
    "amend -p -t bogus -o compat=1.1 disk",
    "amend -p -f raw -o size=1k disk",
    "amend -p -o help disk",
    "amend -p -o compat=5 disk",
    "amend -p -o refcount_bits=7 disk",
    "amend -p -o compat=1.1 disk",
    "compare -p disk none",
    "compare -p -T bogus disk disk",
    "compare -p disk disk",
    "compare -p -q disk none",
    "commit -p none",
    "rebase -p -u none",
    "convert -p none target",
  ],
});
