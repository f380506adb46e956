/**
 * The drivers `tar` and `ova`: an image in an archive, used in place.
 *
 * @module
 */
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { shortened } from "../../core/values.ts";
import { OVA_CREATE_OPTIONS, streamAppliance } from "./ova.ts";
import { checkOwnDisk, MAX_OVF, type OvfDisk, parseOvf } from "./ovf.ts";
import { bytesAt } from "./reading.ts";
import { checkWhole, type TarMember, tarMembers } from "./tar_members.ts";
import {
  checkReadOnly,
  chooseMember,
  HOW_TO_CHOOSE,
  listed,
  windowNode,
} from "./window.ts";

/** Options to select a member. */
export const MEMBER_OPTIONS: OptionTable = {
  member: {
    type: "string",
    help: "The member that holds the image, by its name or the OVF's disk id",
  },
};

/** A member of a tar archive as a child: its bytes, read-only. */
export const tarDriver: BlockDriver = {
  name: "tar",
  role: "format",
  isContainer: true,
  openOptions: MEMBER_OPTIONS,
  strongOptions: ["member"],

  async open(options, context) {
    const { file, members, wanted } = await examine(options, context);
    const { disks, others } = await readDescriptor(file, members, false);
    const member = memberOfDisk(disks, members, wanted) ??
      chooseMember(wanted === undefined ? others : members, wanted);
    checkWhole(member);
    return windowNode(tarDriver, file, member);
  },
};

/** A disk of an appliance: a tar archive with an OVF descriptor. */
export const ovaDriver: BlockDriver = {
  name: "ova",
  role: "format",
  isContainer: true,
  openOptions: MEMBER_OPTIONS,
  strongOptions: ["member"],
  createOptions: OVA_CREATE_OPTIONS,
  isStream: () => true,
  stream: streamAppliance,

  async open(options, context) {
    const { file, members, wanted } = await examine(options, context);
    const { disks } = await readDescriptor(file, members, true);
    const member = memberOfDisk(disks, members, wanted) ??
      chooseMember(members, wanted);
    checkWhole(member);
    return windowNode(ovaDriver, file, member);
  },

  // deno-lint-ignore require-await -- the interface is asynchronous
  async create() {
    throw new BlockError(
      "ENOTSUP",
      "An appliance cannot be made empty and filled later, only by 'convert'",
    );
  },
};

async function examine(
  options: OptionValues,
  context: OpenContext,
): Promise<{
  file: BlockNode;
  members: TarMember[];
  wanted: string | undefined;
}> {
  const { member } = parseOptions(MEMBER_OPTIONS, options, ["file"]);
  checkReadOnly(context, "An archive");
  const file = await context.openChild("file");
  const members = await tarMembers(file);
  return { file, members, wanted: member as string | undefined };
}

/** Files of an appliance other than disks. */
const ABOUT = /\.(ovf|mf|cert)$/i;

/** The disks of the OVF descriptor, if there is one, and the other files. */
async function readDescriptor(
  file: BlockNode,
  members: readonly TarMember[],
  isNeeded: boolean,
): Promise<{ disks?: OvfDisk[]; others: TarMember[] }> {
  const others = members.filter(({ name }) => !ABOUT.test(name));
  const ovf = members.find(({ name }) => /\.ovf$/i.test(name));
  if (!ovf) {
    if (isNeeded) {
      throw invalid(
        "It is not an appliance: it has no OVF descriptor",
        "The driver 'tar' opens a member of any tar archive.",
      );
    }
    return { others };
  }
  checkWhole(ovf);
  if (ovf.size > MAX_OVF) throw invalid("The OVF descriptor is too long");
  return { disks: parseOvf(await bytesAt(file, ovf.start, ovf.size)), others };
}

/**
 * The member that holds the selected disk, or the only one; `undefined` if it
 * has to be found without the descriptor.
 */
function memberOfDisk(
  disks: readonly OvfDisk[] | undefined,
  members: readonly TarMember[],
  wanted: string | undefined,
): TarMember | undefined {
  if (!disks) return undefined;
  const isNamed = members.some(({ name }) => name === wanted);
  const found = wanted === undefined
    ? disks
    : isNamed
    ? disks.filter(({ href }) => href === wanted)
    : disks.filter(({ id, fileId }) => id === wanted || fileId === wanted);
  if (wanted === undefined && found.length === 0) {
    throw invalid(
      `The OVF descriptor has no disk with a file; ${listed(members)}`,
      HOW_TO_CHOOSE,
    );
  }
  if (new Set(found.map(({ href }) => href)).size > 1) {
    const names = disks.map(({ href, id }) => `${href} (${id})`);
    throw invalid(
      `The appliance has ${disks.length} disks: ` +
        names.map((name) => `'${shortened(name, 255)}'`).slice(0, 20)
          .join(", "),
      HOW_TO_CHOOSE,
    );
  }
  found.forEach(checkOwnDisk);
  const [disk] = found;
  if (!disk) return undefined;
  const member = members.findLast(({ name }) => name === disk.href);
  if (member) return member;
  throw new BlockError(
    "ENOENT",
    `The file '${shortened(disk.href, 255)}' of the disk ` +
      `'${shortened(disk.id, 255)}' is not in the archive; ${listed(members)}`,
  );
}
