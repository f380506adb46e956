/**
 * Loop devices: block devices backed by files, for tests that may create them.
 *
 * @module
 */
import { mustSkip } from "./qemu.ts";

function losetup(...args: string[]): string | undefined {
  const { success, stdout } = new Deno.Command("losetup", {
    args,
    stdout: "piped",
    stderr: "null",
  }).outputSync();
  return success ? new TextDecoder().decode(stdout).trim() : undefined;
}

/** A loop device that is removed at the end of a `using` block. */
export class LoopDevice implements Disposable {
  /** Its path. */
  readonly path: string;

  /**
   * Create a device for a file. Bytes past its last whole sector are cut off.
   */
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

  /** Its current size in bytes. */
  get size(): number {
    using file = Deno.openSync(this.path);
    return file.seekSync(0, Deno.SeekMode.End);
  }

  [Symbol.dispose](): void {
    losetup("--detach", this.path);
  }
}

/** A test on loop devices; skipped where none can be created. */
export function loopTest(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
  tools: readonly string[] = [],
): void {
  Deno.test({ name, ignore: mustSkip({ loop: true, tools }), fn });
}
