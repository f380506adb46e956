/**
 * Inspections, compared with OpenStack's inspector, and of real images. @module
 */
import { assert, assertEquals } from "@std/assert";
import { inspect } from "../../mod.ts";
import { storeOf } from "../drivers/qcow2/bytes.ts";
import { inputs } from "../core/jobs/inspect_inputs.ts";
import { mustSkip, runOk, TempDir } from "../qemu.ts";

/**
 * Where Debian's package `python3-oslo.utils` is unpacked; releases before 8
 * have no inspector.
 */
const OSLO = Deno.env.get("BDRV_OSLO");
const SCRIPT = new URL("../oslo.py", import.meta.url).pathname;

interface Verdict {
  readonly format: string | null;
  readonly size: number;
  readonly reasons: readonly string[];
}

async function osloVerdicts(files: readonly string[]): Promise<Verdict[]> {
  const lines = await runOk(["/usr/bin/python3", SCRIPT, ...files], {
    env: OSLO ? { PYTHONPATH: OSLO } : {},
  });
  return lines.trim().split("\n").map((line) => JSON.parse(line));
}

/** Whether the inspector is available. */
function hasOslo(): boolean {
  try {
    return new Deno.Command("/usr/bin/python3", {
      args: ["-c", "import oslo_utils.imageutils.format_inspector"],
      env: OSLO ? { PYTHONPATH: OSLO } : {},
      stderr: "null",
    }).outputSync().success;
  } catch {
    return false;
  }
}

/** Its names of formats, where they differ from ours. */
const FORMATS: { readonly [name: string]: string } = {
  vhd: "vpc",
  iso: "raw",
  gpt: "raw",
};

/** Formats that it takes for raw. */
const UNKNOWN = ["dmg", "parallels", "cloop", "bochs", "asif"];

/** Our checks that correspond to each of its checks. */
const CHECKS: { readonly [check: string]: readonly string[] } = {
  backing_file: ["backing-file"],
  data_file: ["data-file"],
  unknown_features: ["unknown-features", "version"],
  banned: ["banned"],
  descriptor: ["descriptor", "version", "truncated"],
  footer: ["footer"],
  mbr: ["mbr"],
  version: ["version"],
};

Deno.test({
  name:
    "inspect() gives the verdict of OpenStack's inspector on each of its checks",
  ignore: mustSkip({
    privileges: { "OpenStack's image inspector ($BDRV_OSLO)": hasOslo() },
  }),
  async fn() {
    await using folder = new TempDir();
    const all = (await Array.fromAsync(inputs()))
      // It says nothing about an empty file.
      .filter(({ bytes }) => bytes.length > 0);
    const files = all.map((_, index) => folder.file(`${index}`));
    for (const [index, { bytes }] of all.entries()) {
      await Deno.writeFile(files[index], bytes);
    }
    const verdicts = await osloVerdicts(files);
    const found = new Set<string>();
    for (const [index, { name, bytes, isOurs }] of all.entries()) {
      const theirs = verdicts[index];
      const file = { driver: "memory", store: storeOf(bytes) };
      const ours = await inspect(file);
      assertEquals(
        ours.verdict === "unsafe",
        theirs.reasons.length > 0 || isOurs === true,
        `${name}: ${JSON.stringify(theirs)}`,
      );
      const checks = ours.findings.filter(({ severity }) =>
        severity === "danger"
      ).map(({ check }) => check);
      for (const reason of theirs.reasons) {
        found.add(reason);
        const wanted = CHECKS[reason];
        if (!wanted) continue;
        assert(wanted.some((check) => checks.includes(check)), name);
      }
      const { format } = theirs;
      // Formats that it does not know, like extents, are raw for it.
      const isUnknown = UNKNOWN.includes(ours.format ?? "");
      if (format !== null && !isUnknown) {
        const known = FORMATS[format] ?? format;
        const own = ours.format === "qcow" ? "qcow2" : ours.format;
        const isExtent = /cowd|sesparse/.test(name);
        assertEquals(isExtent ? "raw" : own, known, name);
        const hasSize = ["qcow2", "vhdx", "vmdk", "vdi"].includes(known);
        if (hasSize && theirs.size > 0) {
          assertEquals(ours.virtualSize, theirs.size, name);
        }
      }
    }
    for (const check of Object.keys(CHECKS)) assert(found.has(check), check);
  },
});
