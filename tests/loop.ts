/**
 * Loop devices: block devices that are files, for tests that may make them.
 *
 * @module
 */
import { isInstalled } from "./qemu.ts";

function losetup(...args: string[]): string | undefined {
  const { success, stdout } = new Deno.Command("losetup", {
    args,
    stdout: "piped",
    stderr: "null",
  }).outputSync();
  return success ? new TextDecoder().decode(stdout).trim() : undefined;
}

/** A loop device that is gone at the end of a `using` block. */
export class LoopDevice implements Disposable {
  /** Its path. */
  readonly path: string;

  /** Make a device of a file. Bytes past its last whole sector are cut off. */
  constructor(file: string, sectorSize = 512, readOnly = false) {
    const path = losetup(
      "--find",
      "--show",
      `--sector-size=${sectorSize}`,
      ...(readOnly ? ["--read-only"] : []),
      file,
    );
    if (path === undefined) throw new Error(`Cannot make a device of ${file}`);
    this.path = path;
  }

  /** Its size in bytes now. */
  get size(): number {
    using file = Deno.openSync(this.path);
    return file.seekSync(0, Deno.SeekMode.End);
  }

  [Symbol.dispose](): void {
    losetup("--detach", this.path);
  }
}

let known: boolean | undefined;

/** Whether loop devices can be made here. It takes privileges. */
export function hasLoopDevices(): boolean {
  return known ??= isInstalled("losetup") && tryLoop();
}

function tryLoop(): boolean {
  const file = Deno.makeTempFileSync({ prefix: "bdrv-test-" });
  try {
    Deno.truncateSync(file, 8192);
    using _ = new LoopDevice(file, 4096);
    return true;
  } catch {
    return false;
  } finally {
    Deno.removeSync(file);
  }
}

/** A test on loop devices; reported as ignored where there are none. */
export function loopTest(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
  tools: readonly string[] = [],
): void {
  const ignore = !hasLoopDevices() || !tools.every(isInstalled);
  Deno.test({ name, ignore, fn });
}
