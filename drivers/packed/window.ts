/**
 * A part of a file used in place: a stored member of an archive.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import type { IoVector } from "../../core/bytes.ts";
import type { OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode, Extent, ReadFlags } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { shortened } from "../../core/values.ts";
import type { DriverTraits } from "../../core/traits.ts";

/** A range of a file. */
export interface Window {
  /** Its offset. */
  readonly start: number;
  /** Bytes. */
  readonly size: number;
}

/** A node that presents a range of `file`; it cannot be written to. */
export function windowNode(
  driver: DriverTraits,
  file: BlockNode,
  { start, size }: Window,
): BlockNode {
  return {
    driver,
    filename: file.filename,
    size,
    readOnly: true,
    children: { file },
    async readv(offset: number, iov: IoVector, flags?: ReadFlags) {
      await readWithin(
        size,
        offset,
        iov,
        (inside) => readPadded(file, start + offset, inside, flags),
      );
    },
    // deno-lint-ignore require-await -- the interface is asynchronous
    async status(offset, length, flags): Promise<Extent> {
      checkSignal(flags?.signal);
      const rest = Math.max(0, size - offset);
      if (rest === 0) return { length, allocated: false, zero: true };
      return {
        length: Math.min(length, rest),
        allocated: true,
        zero: false,
        hostOffset: start + offset,
        file,
        recurse: true,
      };
    },
    info: () => Promise.resolve({}),
    close: () => Promise.resolve(),
  };
}

/** Read the part of a vector within `size`; the rest reads as zeroes. */
export async function readWithin(
  size: number,
  offset: number,
  iov: IoVector,
  read: (inside: IoVector) => Promise<void>,
): Promise<void> {
  let rest = Math.max(0, size - offset);
  const inside: Uint8Array[] = [];
  for (const part of iov) {
    const take = Math.min(rest, part.length);
    if (take > 0) inside.push(part.subarray(0, take));
    part.fill(0, take);
    rest -= take;
  }
  if (inside.length > 0) await read(inside);
}

/**
 * Refuse to write to an archive or a compressed file.
 *
 * @throws {BlockError} EACCES
 */
export function checkReadOnly(context: OpenContext, what: string): void {
  if (context.readOnly) return;
  throw new BlockError("EACCES", `${what} cannot be written into`, {
    hint: "Unpack it first, or open it read-only.",
  });
}

/** A member of an archive that can be selected. */
export interface Choice {
  /** Its name in the archive. */
  readonly name: string;
}

/** Names that images usually have. */
const IMAGE_NAME = /\.(vmdk|qcow2?|qed|img|raw|vhdx?|vdi|iso|hdd|hds|dmg)$/i;

/** Most members that are listed in a message. */
const MOST_LISTED = 20;

/**
 * The member of an archive that holds the image: the one named `wanted`, else
 * the only one, else the only one named like an image.
 *
 * @throws {BlockError} ENOENT, or EINVAL with a list if it is ambiguous.
 */
export function chooseMember<T extends Choice>(
  members: readonly T[],
  wanted: string | undefined,
): T {
  if (wanted !== undefined) {
    // As in unpacking, later members replace earlier ones.
    const found = members.findLast(({ name }) => name === wanted);
    if (found) return found;
    throw new BlockError(
      "ENOENT",
      `There is no member '${shortened(wanted, 255)}'; ${listed(members)}`,
    );
  }
  const latest = [...new Map(members.map((one) => [one.name, one])).values()];
  const likely = latest.length === 1
    ? latest
    : latest.filter(({ name }) => IMAGE_NAME.test(name));
  if (likely.length === 1) return likely[0];
  if (latest.length === 0) throw invalid("The archive has no file in it");
  throw invalid(
    `Which member holds the image is not clear; ${listed(latest)}`,
    HOW_TO_CHOOSE,
  );
}

/** How to select a member. */
export const HOW_TO_CHOOSE =
  "Choose one: --image-opts driver=tar,member=NAME,file.filename=FILE " +
  "(or driver=zip).";

/** A list of members for a message. */
export function listed(members: readonly Choice[]): string {
  const names = members.slice(0, MOST_LISTED)
    .map(({ name }) => `'${shortened(name, 255)}'`);
  const more = members.length - names.length;
  const rest = more > 0 ? ` and ${more} more` : "";
  return names.length === 0
    ? "the archive has none"
    : `the archive has ${names.join(", ")}${rest}`;
}
