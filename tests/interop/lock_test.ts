/**
 * While QEMU's tools use an image, ours are refused as QEMU's own are, and vice
 * versa.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { isLibcAvailable } from "../platforms.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** `qemu-io` with an image open, until it is disposed of. */
class User implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;

  private constructor(child: Deno.ChildProcess) {
    this.#child = child;
  }

  /** Start it, and wait until it has opened its image. */
  static async start(command: string[], cwd: string): Promise<User> {
    const [program, ...args] = command;
    const child = new Deno.Command(program, {
      args,
      cwd,
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    // The prompt appears once the image is open.
    const reader = child.stdout.getReader();
    await reader.read();
    reader.releaseLock();
    return new User(child);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#child.stdin.close();
    await this.#child.output();
  }
}

async function images(): Promise<TempDir> {
  const dir = new TempDir();
  const setup = [
    "create -q -f raw disk.raw 1M",
    "create -q -f qcow2 base.qcow2 1M",
    "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2",
  ];
  for (const line of setup) {
    await runOk(["qemu-img", ...line.split(" ")], { cwd: dir.path });
  }
  return dir;
}

/** Ways of using an image. */
const USES = [
  "-r base.qcow2",
  "base.qcow2",
  "top.qcow2",
  "-f raw disk.raw",
  "-s top.qcow2",
];

/** Calls to try meanwhile; underscores stand for blanks. */
const TRIED = [
  "qemu-img info base.qcow2",
  "qemu-img info -U base.qcow2",
  "qemu-img info --backing-chain top.qcow2",
  "qemu-img info -U --image-opts driver=qcow2,file.filename=base.qcow2,force-share=off",
  "qemu-img info --image-opts driver=qcow2,file.filename=base.qcow2,file.locking=off",
  "qemu-img check base.qcow2",
  "qemu-img check -r leaks base.qcow2",
  "qemu-img check -U -r leaks base.qcow2",
  "qemu-img map top.qcow2",
  "qemu-img map -U top.qcow2",
  "qemu-img compare disk.raw base.qcow2",
  "qemu-img snapshot -l base.qcow2",
  "qemu-img snapshot -l -U base.qcow2",
  "qemu-img snapshot -c x base.qcow2",
  "qemu-img resize -f raw disk.raw 1M",
  "qemu-img resize base.qcow2 1M",
  "qemu-img create -f raw disk.raw 1M",
  "qemu-img create -f qcow2 -b base.qcow2 -F qcow2 other.qcow2",
  "qemu-img convert disk.raw other.raw",
  "qemu-img convert -U top.qcow2 other.raw",
  "qemu-img convert -O qcow2 disk.raw base.qcow2",
  "qemu-img convert -n -O qcow2 top.qcow2 base.qcow2",
  "qemu-img commit top.qcow2",
  "qemu-img rebase -b base.qcow2 -F qcow2 top.qcow2",
  "qemu-io -c quit base.qcow2",
  "qemu-io -r -c quit top.qcow2",
  "qemu-io -U -c quit top.qcow2",
  "qemu-io -U -r -c quit top.qcow2",
  "qemu-io -r -c reopen_-w -c length base.qcow2",
  "qemu-io -f raw -c truncate_1M disk.raw",
  "qemu-io -c open_-U_base.qcow2",
  "qemu-io -c open_-U_-r_base.qcow2 -c length",
  "qemu-io -c open_-o_force-share=off_-U_base.qcow2",
];

function words(line: string): string[] {
  return line.split(" ").map((word) => word.replaceAll("_", " "));
}

const tools = ["qemu-img", "qemu-io"];

/**
 * How a program ended; its output depends on what earlier calls did to the
 * images.
 */
async function outcome(program: string[], line: string, cwd: string) {
  const { code, stderr } = await run([...program, ...words(line)], { cwd });
  return { line, code, stderr };
}

if (isLibcAvailable()) {
  qemuTest("images in use by QEMU are refused as by QEMU", async (t) => {
    for (const use of USES) {
      await t.step(use, async () => {
        await using dir = await images();
        const cwd = dir.path;
        const user = ["qemu-io", ...use.split(" ")];
        await using _user = await User.start(user, cwd);
        for (const line of TRIED) {
          assertEquals(
            await outcome([...BDRV], line, cwd),
            await outcome([], line, cwd),
          );
        }
      });
    }
  }, tools);

  qemuTest("images in use by us are refused by QEMU alike", async (t) => {
    const outcomes = async (user: string[]) => {
      await using dir = await images();
      const cwd = dir.path;
      await using _user = await User.start(user, cwd);
      const found = [];
      for (const line of TRIED) found.push(await outcome([], line, cwd));
      return found;
    };
    for (const use of USES) {
      await t.step(use, async () => {
        const user = ["qemu-io", ...use.split(" ")];
        assertEquals(
          await outcomes([...BDRV, ...user]),
          await outcomes(user),
        );
      });
    }
  }, tools);
}
