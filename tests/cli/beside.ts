/**
 * Running our command line beside qemu-img's own: the same calls in two folders
 * with the same files must print the same and end the same.
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

/** Calls that are compared. */
export interface Comparison {
  /** Makes, in a folder, the files that the calls use. */
  prepare(folder: string): Promise<void>;
  /** Arguments of `qemu-img`, separated by blanks. */
  calls: readonly string[];
  /** Whether what a call prints depends on holes of files. */
  needsHoles?(call: string): boolean;
  /** Makes outputs comparable that cannot be the same. */
  normalize?(text: string): string;
  /** Looks at what two successful calls left behind. */
  inspect?(call: string, folders: Folders): Promise<void>;
}

/** Where the files are: as they were, and what became of them. */
export interface Folders {
  readonly pristine: string;
  readonly ours: string;
  readonly theirs: string;
}

/** The words of a call. */
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
