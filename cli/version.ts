/**
 * Our version, and the version of QEMU that we stand in for.
 *
 * @module
 */
import type { Program } from "./program.ts";
import { qemuVersion } from "./qemu_releases.ts";

/** The text of `--version`. */
export async function versionText(program: Program): Promise<string> {
  const { default: manifest } = await import("../deno.json", {
    with: { type: "json" },
  });
  // Scripts look for the version of QEMU.
  return program.isOurs
    ? `bdrv ${manifest.version}\n`
    : `${program.name} version ${qemuVersion()} (bdrv ${manifest.version})\n`;
}
