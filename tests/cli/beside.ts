/**
 * Running our command line beside qemu-img: the same calls in two folders with
 * the same files must print the same and exit with the same code.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  BDRV,
  isBeyond,
  type Outcome,
  qemuTest,
  run,
  runOk,
  TempDir,
} from "../qemu.ts";

/** A comparison: some calls, and what they need. */
export interface Comparison {
  /** Makes, in a folder, the files that the calls use. */
  prepare(folder: string): Promise<void>;
  /** Arguments of `qemu-img`, separated by blanks. */
  calls: readonly string[];
  /** Whether a call's output depends on holes in files. */
  needsHoles?(call: string): boolean;
  /** Normalizes output that cannot be the same. */
  normalize?(text: string): string;
  /** Checks what two successful calls left behind. */
  inspect?(call: string, folders: Folders): Promise<void>;
}

/** The folders: the files as prepared, and as a call left them. */
export interface Folders {
  readonly pristine: string;
  readonly ours: string;
  readonly theirs: string;
}

/** A call, split into words. */
export function words(call: string): string[] {
  return call === "" ? [] : call.split(" ");
}

/** Make one test of a comparison, with a step for each call. */
export function besideQemu(name: string, comparison: Comparison): void {
  qemuTest(name, async (t) => {
    await using dir = new TempDir();
    const pristine = dir.file("pristine");
    Deno.mkdirSync(pristine);
    await comparison.prepare(pristine);
    for (const call of comparison.calls) {
      if (isBeyond(call, comparison.needsHoles?.(call))) continue;
      await t.step(call, async () => {
        const [ours, theirs] = [dir.file("ours"), dir.file("theirs")];
        for (const folder of [ours, theirs]) {
          await runOk(["cp", "-r", "--sparse=always", pristine, folder]);
        }
        const expected = await runIn(theirs, ["qemu-img", ...words(call)]);
        const actual = await runIn(ours, [...BDRV, "qemu-img", ...words(call)]);
        assertEquals(
          normalized(actual, comparison),
          normalized(expected, comparison),
        );
        if (expected.code === 0) {
          await comparison.inspect?.(call, { pristine, ours, theirs });
        }
        for (const folder of [ours, theirs]) {
          await Deno.remove(folder, { recursive: true });
        }
      });
    }
  }, ["qemu-img", "qemu-io"]);
}

function runIn(cwd: string, command: readonly string[]): Promise<Outcome> {
  return run(command, { cwd });
}

function normalized(
  { code, stdout, stderr }: Outcome,
  { normalize = (text) => text }: Comparison,
) {
  return { code, stdout: normalize(stdout), stderr: normalize(stderr) };
}
