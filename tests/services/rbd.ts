/**
 * Images in the tests' cluster.
 *
 * @module
 */
import { runOk } from "../qemu.ts";

/** The file name of an image that does not exist yet. */
export function newName(pool = "rbd"): string {
  return `rbd:${pool}/test-${crypto.randomUUID()}`;
}

/** Run Ceph's own program. */
export async function rbd(...args: string[]): Promise<string> {
  return await runOk(["rbd", ...args]);
}

/** Make an image of a given size; returns its file name. */
export async function makeImage(
  size: number,
  ...options: string[]
): Promise<string> {
  const name = newName();
  await rbd("create", "--size", `${size}B`, ...options, spec(name));
  return name;
}

/** Ceph's name of the image with a file name. */
export function spec(name: string): string {
  return name.slice("rbd:".length);
}
