/**
 * Sockets passed on by the system (socket activation).
 *
 * @module
 */
import { strerror } from "../../core/errors.ts";
import { localSockets } from "../../core/platform/mod.ts";
import { process } from "../../core/platform/this_process.ts";
import type { Listener } from "../../core/platform/sockets.ts";
import { CommandError } from "../program.ts";
import type { NbdRequest } from "./options.ts";

/** The descriptor of the first such socket. */
const FIRST = 3;

/** Number of sockets passed to this process. */
function socketCount(): number {
  const isOurs = Number(process.variable("LISTEN_PID")) === process.pid;
  const count = Number(process.variable("LISTEN_FDS"));
  return isOurs && Number.isInteger(count) && count > 0 ? count : 0;
}

/**
 * The socket passed to this process, if any.
 *
 * @throws {CommandError} if the user gives an address as well, or there are
 * several sockets.
 */
export async function activatedSocket(
  request: NbdRequest,
): Promise<Listener | undefined> {
  const count = socketCount();
  if (count === 0) return undefined;
  const { port, bind, socket, list, fork } = request;
  const odd = socket !== undefined
    ? "Unix socket"
    : bind !== undefined
    ? "The interface"
    : port !== undefined
    ? "TCP port number"
    : undefined;
  if (odd) {
    throw new CommandError(
      `${odd} can't be set when using socket activation`,
    );
  }
  if (list) {
    throw new CommandError("List mode is incompatible with socket activation");
  }
  if (fork) {
    throw new CommandError("--fork is incompatible with socket activation");
  }
  if (count > 1) {
    throw new CommandError(
      "qemu-nbd does not support socket activation with LISTEN_FDS > 1",
    );
  }
  try {
    return await (await localSockets()).inherited(FIRST);
  } catch {
    // Runtimes have different names for it.
    throw new CommandError(
      `Socket activation failed: invalid file descriptor fd = ${FIRST}: ` +
        strerror("EBADF"),
    );
  }
}
