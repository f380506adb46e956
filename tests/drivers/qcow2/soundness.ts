/**
 * Requirements on an image after a power cut.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import {
  type Image,
  type MemoryStore,
  openImage,
  type OpenOptions,
  type StackObject,
} from "../../../mod.ts";

/**
 * Check an image. Taking or deleting a snapshot changes refcounts and COPIED
 * flags, one before the other; so a flag may be missing, or set on a cluster
 * that is counted twice but used once. The image is marked as dirty then,
 * except in version 2, which has no mark.
 *
 * @param others Other children of the image.
 */
export async function assertSound(
  store: MemoryStore,
  others?: StackObject,
): Promise<void> {
  await using image = await open(store, others, { purpose: "check" });
  const { clusterSize, dirty, specific } = await image.info();
  const lines: string[] = [];
  const { corruptions, checkErrors } = await image.check({
    report: (line) => lines.push(line),
  });
  let damage = corruptions + checkErrors;
  if (dirty || specific!.data.compat === "0.10") {
    damage -= harmlessFlags(lines, clusterSize!);
  }
  assertEquals(damage, 0, lines.join("\n"));
}

/** Whether an image is marked as needing a repair. */
export async function isDirty(
  store: MemoryStore,
  others?: StackObject,
): Promise<boolean> {
  await using image = await open(store, others);
  return (await image.info()).dirty ?? false;
}

function open(
  store: MemoryStore,
  others: StackObject = {},
  options: OpenOptions = {},
): Promise<Image> {
  const file = { driver: "memory", store };
  return openImage(
    { driver: "qcow2", file, backing: null, ...others },
    { readOnly: true, withoutKeys: true, ...options },
  );
}

function harmlessFlags(lines: string[], clusterSize: number): number {
  const leaked = lines.map((line) =>
    /^Leaked cluster (\d+) .* reference=1$/.exec(line)?.[1]
  );
  return lines.filter((line) => {
    const flag = /OFLAG_COPIED .*_entry=([0-9a-f]+) /.exec(line);
    if (!flag) return false;
    const entry = BigInt(`0x${flag[1]}`);
    const cluster = (entry & 0xffffffffffffffn) / BigInt(clusterSize);
    return entry >> 63n === 0n || leaked.includes(String(cluster));
  }).length;
}
