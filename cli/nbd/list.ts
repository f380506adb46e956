/**
 * `qemu-nbd --list`: the exports of a server.
 *
 * @module
 */
import { localSockets } from "../../core/platform/mod.ts";
import type { SocketAddress } from "../../core/platform/sockets.ts";
import { listExports, type ListOptions, type NbdListing } from "../../mod.ts";
import type { Program } from "../program.ts";
import { connectError } from "./listening.ts";

/** Flags of an export, in the order in which they are shown. */
const FLAGS: readonly [bit: number, name: string][] = [
  [1, "readonly"],
  [2, "flush"],
  [3, "fua"],
  [4, "rotational"],
  [5, "trim"],
  [6, "zeroes"],
  [7, "df"],
  [8, "multi"],
  [9, "resize"],
  [10, "cache"],
  [11, "fast-zero"],
  [12, "block-status-payload"],
];

/** Print the exports of a server. */
export async function list(
  program: Program,
  address: SocketAddress,
  options: ListOptions,
): Promise<number> {
  let stream;
  try {
    stream = await (await localSockets()).connect(address);
  } catch (error) {
    throw connectError(error, address);
  }
  const exports = await listExports(stream, options);
  program.print(`exports available: ${exports.length}\n`);
  for (const listed of exports) program.print(exportText(listed));
  return 0;
}

function exportText(
  { name, description, size, flags, blockSizes, contexts }: NbdListing,
): string {
  const lines = [` export: '${name}'`];
  if (description) lines.push(`  description: ${description}`);
  // Without further information, only the name is shown.
  if (flags & 1) {
    const words = FLAGS.filter(([bit]) => flags & (1 << bit));
    const shown = words.map(([_, word]) => ` ${word}`).join("");
    lines.push(`  size:  ${size}`);
    lines.push(`  flags: 0x${flags.toString(16)} (${shown} )`);
  }
  if (blockSizes) {
    lines.push(`  min block: ${blockSizes.minimum}`);
    lines.push(`  opt block: ${blockSizes.preferred}`);
    lines.push(`  max block: ${blockSizes.maximum}`);
  }
  if (contexts.length > 0) {
    lines.push(`  available meta contexts: ${contexts.length}`);
    lines.push(...contexts.map((context) => `   ${context}`));
  }
  return `${lines.join("\n")}\n`;
}
