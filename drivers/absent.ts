/**
 * QEMU's protocols without a driver here: refused by name, with a suggestion of
 * what to use instead.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { asBlockError, BlockError, strerror } from "../core/errors.ts";
import { type OptionValues, parseOption } from "../core/options.ts";
import { localSockets } from "../core/platform/mod.ts";
import { addressText } from "../core/platform/sockets.ts";
import type { DriverTraits } from "../core/traits.ts";

/** The driver that refuses the protocol with these traits. */
export function absentDriver(facts: DriverTraits): BlockDriver {
  const { name } = facts;
  const refused = () =>
    new BlockError(
      "ENOTSUP",
      `There is no driver for '${name}'; ${INSTEAD[name]}`,
    );
  return {
    ...facts,
    async open(options) {
      // As in QEMU, wrong options for a server, and one that cannot be reached,
      // are reported first.
      if (name === "ssh" && options.filename === undefined) {
        await reachSsh(options);
      }
      throw refused();
    },
    create: () => Promise.reject(refused()),
  };
}

/** What to use instead. */
const INSTEAD: { readonly [name: string]: string } = {
  ssh: "run qemu-nbd on that machine and forward its socket " +
    "(ssh -L LOCAL.sock:REMOTE.sock), or mount the folder (sshfs)",
  iscsi: "log in (iscsiadm), and use the block device",
  gluster: "mount the volume (mount -t glusterfs), and use the file",
  nfs: "mount the export (mount -t nfs), and use the file",
  nvme: "leave the device to the system, and use its block device",
  ftp: "use a server of http or https, or download the file",
  ftps: "use a server of https, or download the file",
  sheepdog: "use Ceph (rbd:) or nbd://",
  vxhs: "use nbd://",
};

/** Connect to the port of an SSH server, as if to use it. */
async function reachSsh(options: OptionValues): Promise<void> {
  const { server } = options;
  const { host = "localhost", port = "22" } = {
    ...server as OptionValues,
    ...definedOf({
      host: options.host ?? options["server.host"],
      port: options.port ?? options["server.port"],
    }),
  };
  const spec = { type: "number", help: "" } as const;
  const address = {
    host: String(host),
    port: Number(parseOption("port", spec, port)),
  };
  try {
    (await (await localSockets()).connect(address)).close();
  } catch (thrown) {
    const error = asBlockError(thrown);
    if (error.message !== strerror(error.code)) throw error;
    throw error.prefixed(`Failed to connect to '${addressText(address)}': `);
  }
}

function definedOf(options: OptionValues): OptionValues {
  return Object.fromEntries(
    Object.entries(options).filter(([, value]) => value !== undefined),
  );
}
