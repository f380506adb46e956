/**
 * Our version, and the one that we stand in for.
 *
 * @module
 */
import type { Program } from "./program.ts";

/** What `--version` prints. */
export async function versionText(program: Program): Promise<string> {
  const { default: manifest } = await import("../deno.json", {
    with: { type: "json" },
  });
  // Scripts look for the version of the program that we stand in for.
  return program.isOurs
    ? `bdrv ${manifest.version}\n`
    : `${program.name} version 7.2.22 (bdrv ${manifest.version})\n`;
}
