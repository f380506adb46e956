/**
 * The first mistakes that a user makes under our own name: each gives one clear
 * message that names the file and the cause, and leaves files alone.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { BDRV, isInstalled, mustSkip, run, runOk, TempDir } from "../qemu.ts";

/** Each call's message, after the program's name. */
const CALLS: { readonly [call: string]: string } = {
  "info missing": "Could not open 'missing': No such file or directory",
  "info folder":
    "Could not open 'folder': 'file' driver requires 'folder' to be a regular file",
  "info -f qcow2 junk": "Could not open 'junk': Image is not in qcow2 format",
  "info nosuch:a": "Could not open 'nosuch:a': Unknown protocol 'nosuch'",
  "info orphan --output=yaml":
    "--output expects 'human' or 'json', not 'yaml'\n" +
    "Try 'bdrv info --help' for more information",
  "check junk": "junk: This image format does not support checks",
  "check orphan":
    "Could not open 'orphan': Could not open backing file: Could not open 'gone': No such file or directory",
  "create new": "new: Image creation needs a size parameter",
  "create -f nosuch new 1M": "new: Unknown file format 'nosuch'",
  "create -f bochs new 1M":
    "new: Format driver 'bochs' does not support image creation",
  "create -f qcow2 missing/new 1G":
    "Could not create 'missing/new': No such file or directory",
  "create -f qcow2 folder 1G": "Could not create 'folder': Is a directory",
  "create -f qcow2 /proc/new 1G":
    "Could not create '/proc/new': No such file or directory",
  "create -f qcow2 -o cluster_size=5000 new 1M":
    "new: Cluster size must be a power of two between 512 and 2048k",
  "create -f qcow2 -b ./disk -F qcow2 disk":
    "disk: It would overwrite its own backing file",
  "convert disk": "Must specify image file name",
  "convert missing new": "Could not open 'missing': No such file or directory",
  "convert disk disk":
    "disk: error while converting raw: it is also a source, and cannot be overwritten",
  "convert over ./disk":
    "./disk: error while converting raw: it is also a source, and cannot be overwritten",
  "convert disk missing/new":
    "missing/new: error while converting raw: Could not create 'missing/new': No such file or directory",
  "convert -n disk missing":
    "Could not open 'missing': No such file or directory",
  "dd if=disk of=disk":
    "disk: error while creating output image: it is also a source, and cannot be overwritten",
  "snapshot -f raw -c one junk": "junk: Format 'raw' has no snapshots",
  "snapshot -d none disk":
    "disk: Could not delete snapshot 'none': snapshot not found",
  "commit disk": "disk: Image does not have a backing file",
  "compare disk missing": "Could not open 'missing': No such file or directory",
  "amend -o compat=9 disk":
    "disk: Unknown compatibility level 9; it must be one of 0.10, 1.1, v2, v3",
};

const LIMITED = ["--allow-read", "--allow-write"];

for (
  const [how, command] of [
    ["all permissions", BDRV],
    [
      "no FFI, so no locks",
      BDRV.with(BDRV.indexOf("--allow-all"), LIMITED[0])
        .toSpliced(BDRV.indexOf("--allow-all") + 1, 0, LIMITED[1]),
    ],
  ] as const
) {
  Deno.test(`mistakes are reported in one line, with ${how}`, async (t) => {
    await using dir = new TempDir();
    const cwd = dir.path;
    Deno.mkdirSync(dir.file("folder"));
    Deno.writeFileSync(dir.file("junk"), new Uint8Array(100_000).fill(7));
    for (
      const call of [
        "create -q -f qcow2 disk 16M",
        "create -q -f qcow2 -b disk -F qcow2 over",
        "create -q -u -f qcow2 -b gone -F qcow2 orphan 1M",
      ]
    ) await runOk([...BDRV, ...call.split(" ")], { cwd });
    const files = listing(cwd);
    for (const [call, message] of Object.entries(CALLS)) {
      const needsAll = /\/(dev|proc)\//.test(call);
      if (command !== BDRV && needsAll) continue;
      await t.step(call, async () => {
        const outcome = await run([...command, ...call.split(" ")], {
          cwd,
          env: { BDRV_QEMU_VERSION: "" },
        });
        // The warning comes once, where it applies.
        const stderr = outcome.stderr.replace(/^bdrv: warning: .*\n/, "");
        assertEquals(stderr, `bdrv: ${message}\n`);
        assertEquals(outcome.stdout, "");
        assert(outcome.code !== 0);
        assertEquals(listing(cwd), files);
      });
    }
  });
}

/** Whether we may mount a file system, which takes privileges. */
function mayMount(): boolean {
  if (Deno.uid() !== 0 || !isInstalled("unshare")) return false;
  const mount = "mount -t tmpfs tmpfs /mnt";
  const args = ["-m", "sh", "-c", mount];
  return new Deno.Command("unshare", { args, stderr: "null" }).outputSync()
    .success;
}

Deno.test({
  name:
    "a full or read-only file system is reported, and nothing is left on it",
  ignore: mustSkip({ privileges: { "mounting file systems": mayMount() } }),
  async fn() {
    await using dir = new TempDir();
    const cwd = dir.path;
    Deno.writeFileSync(dir.file("junk"), new Uint8Array(3 << 20).fill(7));
    const onDisk = async (options: string, call: string) => {
      const script = `mount -t tmpfs -o ${options} tmpfs /mnt && ` +
        `${BDRV.join(" ")} ${call}; code=$?; ls /mnt; exit $code`;
      const { code, stdout, stderr } = await run(
        ["unshare", "-m", "sh", "-c", script],
        { cwd },
      );
      assertEquals([code, stdout], [1, ""]);
      return stderr;
    };
    const full = "No space left on device\n";
    assertEquals(
      await onDisk("size=1M", "convert -f raw -O qcow2 junk /mnt/a"),
      `bdrv: /mnt/a: error while writing at byte 0: ${full}`,
    );
    assertEquals(
      await onDisk("size=1M", "create -o preallocation=full /mnt/a 9M"),
      `bdrv: /mnt/a: ${full}`,
    );
    assertEquals(
      await onDisk("ro", "create /mnt/a 1M"),
      "bdrv: Could not create '/mnt/a': Read-only file system\n",
    );
  },
});

/** The files in a folder, with their sizes. */
function listing(folder: string): string[] {
  return [...Deno.readDirSync(folder)].map(({ name }) =>
    `${name} ${Deno.statSync(`${folder}/${name}`).size}`
  ).sort();
}
