/** Check and repair, compared with qemu-img's. @module */
import { assert, assertEquals } from "@std/assert";
import {
  asBlockError,
  type CheckResult,
  openImage,
  strerror,
} from "../../../mod.ts";
import { qemuTest, run, runOk, TempDir } from "../../qemu.ts";
import { damage, makeImage, Random, RECIPES } from "./damage.ts";

/** Damaged images for each recipe; BDRV_CHECK_SEEDS sets more. */
const SEEDS = Number(Deno.env.get("BDRV_CHECK_SEEDS") ?? "16");
const FIRST = Number(Deno.env.get("BDRV_CHECK_FIRST") ?? "0");

type Mode = "report" | "leaks" | "all";

/** The outcome of a check. */
interface Verdict {
  code: number;
  lines: string[];
  /** Absent if the check could not be completed. */
  counts?: Record<string, number>;
}

async function qemuCheck(path: string, mode: Mode): Promise<Verdict> {
  const repair = mode === "report" ? [] : ["-r", mode];
  const command = ["qemu-img", "check", "--output=json", "-f", "qcow2"];
  const outcome = await run([...command, ...repair, path]);
  const lines = outcome.stderr.split("\n").filter((line) => line !== "");
  const { filename: _, format: __, ...counts } = outcome.stdout
    ? JSON.parse(outcome.stdout)
    : {};
  return {
    code: outcome.code,
    lines,
    ...(outcome.stdout && { counts }),
  };
}

function countsOf(result: CheckResult): Record<string, number> {
  const all = {
    "image-end-offset": result.imageEndOffset,
    "total-clusters": result.totalClusters,
    "allocated-clusters": result.allocatedClusters,
    "fragmented-clusters": result.fragmentedClusters,
    "compressed-clusters": result.compressedClusters,
    "corruptions": result.corruptions,
    "corruptions-fixed": result.corruptionsFixed,
    "leaks": result.leaks,
    "leaks-fixed": result.leaksFixed,
  };
  const set = Object.entries(all).filter(([, count]) => count !== 0);
  return { "check-errors": result.checkErrors, ...Object.fromEntries(set) };
}

async function ownCheck(path: string, mode: Mode): Promise<Verdict> {
  const lines: string[] = [];
  const say = (line: string) => void lines.push(line);
  const report = (line: string, named?: boolean) =>
    say(named ? `qemu-img: ${line}` : line);
  const failed = (reason?: string): Verdict => {
    say(`qemu-img: Check failed${reason ? `: ${reason}` : ""}`);
    return { code: 1, lines };
  };
  let image;
  try {
    image = await openImage(path, {
      format: "qcow2",
      readOnly: mode === "report",
      purpose: "check",
      warn: say,
      report: say,
    });
  } catch (error) {
    say(`qemu-img: ${asBlockError(error).message}`);
    return { code: 1, lines };
  }
  await using _ = image;
  const repair = mode === "report"
    ? undefined
    : { leaks: true, corruptions: mode === "all" };
  let result: CheckResult;
  try {
    result = await image.node.image!.check!({ repair, report });
    const { leaksFixed, corruptionsFixed } = result;
    if (leaksFixed > 0 || corruptionsFixed > 0) {
      const again = await image.node.image!.check!({ report });
      result = { ...again, leaksFixed, corruptionsFixed };
    }
  } catch (error) {
    assert(asBlockError(error) === error, String(error));
    return failed(strerror(asBlockError(error).code));
  }
  const counts = countsOf(result);
  if (result.checkErrors > 0) return { ...failed(), counts };
  const code = result.corruptions > 0 ? 2 : result.leaks > 0 ? 3 : 0;
  return { code, lines, counts };
}

/**
 * In a few lines, what differs from the expected verdict; nothing if it is
 * equal.
 */
function difference(actual: Verdict, expected: Verdict): string | undefined {
  const { lines, ...rest } = actual;
  const { lines: wanted, ...wantedRest } = expected;
  if (JSON.stringify(sorted(rest)) !== JSON.stringify(sorted(wantedRest))) {
    return `  ${JSON.stringify(rest)}\n  not ${JSON.stringify(wantedRest)}\n` +
      lineDifference(lines, wanted);
  }
  return lineDifference(lines, wanted) || undefined;
}

function lineDifference(lines: string[], wanted: string[]): string {
  const at = wanted.findIndex((line, index) => line !== lines[index]);
  const index = at < 0 && lines.length > wanted.length ? wanted.length : at;
  if (index < 0) return "";
  return `  line ${index}: ${lines[index]}\n  not: ${wanted[index]}`;
}

function sorted(verdict: Omit<Verdict, "lines">) {
  const counts = Object.entries(verdict.counts ?? {}).sort();
  return { code: verdict.code, counts };
}

/**
 * Check and repair copies of an image; returns differences from QEMU's
 * verdicts.
 */
async function compareModes(
  dir: TempDir,
  bytes: Uint8Array,
  modes: readonly Mode[],
): Promise<string[]> {
  const [own, theirs] = [dir.file("own.qcow2"), dir.file("qemu.qcow2")];
  const found: string[] = [];
  for (const mode of modes) {
    for (const path of [own, theirs]) await Deno.writeFile(path, bytes);
    const expected = await qemuCheck(theirs, mode);
    // QEMU was killed, as it takes too much memory or time; we must still
    // finish.
    const stopped = expected.code > 128;
    const actual = await ownCheck(own, mode);
    if (stopped) continue;
    if (!opens(expected)) {
      if (actual.code !== 1) found.push(`${mode}: QEMU cannot open it`);
      continue;
    }
    const after2 = await qemuCheck(theirs, "report");
    if (!opens(after2)) {
      // QEMU overwrote the header with a table that seemed to lie there. We
      // must not.
      if (!opens(await qemuCheck(own, "report"))) found.push(`${mode}: lost`);
      continue;
    }
    const first = difference(actual, expected);
    if (first) found.push(`${mode}:\n${first}`);
    // If its repair failed, QEMU writes only some of what it had repaired.
    if (mode === "report" || expected.counts === undefined) continue;
    const after = difference(await qemuCheck(own, "report"), after2);
    if (after) found.push(`after ${mode}:\n${after}`);
    const contents = await contentsDiffer(own, theirs);
    if (contents) found.push(`contents after ${mode}: ${contents}`);
  }
  return found;
}

/** Whether QEMU could open the image at all. */
function opens(verdict: Verdict): boolean {
  return !verdict.lines.at(-1)?.startsWith("qemu-img: Could not open");
}

async function contentsDiffer(
  own: string,
  theirs: string,
): Promise<string | undefined> {
  const command = ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2"];
  const { code, stdout, stderr } = await run([...command, own, theirs]);
  // If QEMU cannot read what it has repaired, there is nothing to compare.
  return code === 0 || stderr !== "" ? undefined : stdout;
}

RECIPES.forEach((recipe, number) => {
  const name = `v${recipe.version}, clusters of ${recipe.clusterSize}, ` +
    `${recipe.refcountBits}-bit refcounts` +
    (recipe.snapshots ? `, ${recipe.snapshots} snapshots` : "") +
    (recipe.bitmap ? ", a bitmap" : "") +
    (recipe.preallocation ? ", preallocated" : "");
  qemuTest(`check() agrees with qemu-img on damage: ${name}`, async () => {
    await using dir = new TempDir();
    const sound = dir.file("sound.qcow2");
    await makeImage(sound, recipe);
    const image = await Deno.readFile(sound);
    // When QEMU opens an image with bitmaps for repair, it drops the snapshots,
    // and stores the bitmaps elsewhere when it closes the image.
    const modes: Mode[] = recipe.bitmap
      ? ["report"]
      : ["report", "leaks", "all"];
    assertEquals(await compareModes(dir, image, modes), []);
    const problems: string[] = [];
    for (let seed = FIRST; seed < FIRST + SEEDS; seed++) {
      const random = new Random(seed * 100 + number);
      const { bytes, what } = damage(image, random);
      const differences = await compareModes(dir, bytes, modes);
      if (differences.length === 0) continue;
      problems.push(`seed ${seed}: ${what}\n${differences.join("\n")}`);
    }
    assert(problems.length === 0, "\n" + problems.join("\n\n"));
  }, ["qemu-img", "qemu-io"]);
});

qemuTest("check() ends even if tables refer to each other", async () => {
  await using dir = new TempDir();
  const path = dir.file("hostile.qcow2");
  const options = "cluster_size=64k,preallocation=metadata";
  const create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options];
  await runOk([...create, path, "32M"]);
  const bytes = await Deno.readFile(path);
  const view = new DataView(bytes.buffer);
  // The L1 table grows to 32 MiB, and all its entries point to one L2 table.
  const entries = 4 * 1024 * 1024;
  const l1 = Math.ceil(bytes.length / 65536) * 65536;
  const entry = view.getBigUint64(Number(view.getBigUint64(40)));
  view.setUint32(36, entries);
  view.setBigUint64(40, BigInt(l1));
  const table = new Uint8Array(entries * 8);
  const tableView = new DataView(table.buffer);
  for (let at = 0; at < table.length; at += 8) {
    tableView.setBigUint64(at, entry);
  }
  await Deno.writeFile(path, bytes.subarray(0, l1));
  await Deno.truncate(path, l1);
  await Deno.writeFile(path, table, { append: true });
  const verdict = await ownCheck(path, "report");
  assertEquals(verdict.code, 2);
  assertEquals(verdict.counts?.["allocated-clusters"], entries * 512);
});
