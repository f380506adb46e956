/**
 * Listening sockets, and signals that end a server.
 *
 * @module
 */
import { asBlockError, BlockError, strerror } from "../../core/errors.ts";
import { localFiles, localSockets } from "../../core/platform/mod.ts";
import { process } from "../../core/platform/this_process.ts";
import {
  addressText,
  type Listener,
  type SocketAddress,
} from "../../core/platform/sockets.ts";
import { CommandError } from "../program.ts";
import { SIGNALS } from "../target.ts";

/** The port for a number or a service name. */
export function portNumber(host: string, port: string): number {
  if (/^\d+$/.test(port) && Number(port) < 65536) return Number(port);
  for (const line of services().split("\n")) {
    const [name, number] = line.split(/\s+/);
    if (name === port && /^\d+\/tcp$/.test(number)) return parseInt(number);
  }
  throw new CommandError(
    `address resolution failed for ${host}:${port}: Servname not supported ` +
      "for ai_socktype",
  );
}

function services(): string {
  try {
    return localFiles().readText("/etc/services");
  } catch {
    return ""; // Only numbers are accepted then.
  }
}

/** Listen on a socket; one left behind by an earlier server is replaced. */
export async function listenAt(address: SocketAddress): Promise<Listener> {
  const isPath = "path" in address;
  if (isPath) removeSocket(address.path);
  try {
    return await (await localSockets()).listen(address);
  } catch (thrown) {
    const error = asBlockError(thrown);
    const { code, message } = error;
    if (message !== strerror(code)) throw error;
    throw new BlockError(
      code,
      (isPath
        ? `Failed to bind socket to ${address.path}: `
        : "Failed to find an available port: ") + strerror(code),
      { cause: error, hint: error.hint },
    );
  }
}

/** Remove a socket, but nothing else with that name. */
function removeSocket(path: string): void {
  try {
    if (process.linkStatus(path).isSocket) process.remove(path);
  } catch {
    // Listening will report the problem.
  }
}

/** The message about a failed connection. */
export function connectError(thrown: unknown, address: SocketAddress): Error {
  const error = asBlockError(thrown);
  if (error.message !== strerror(error.code)) return error;
  return error.prefixed(`Failed to connect to '${addressText(address)}': `);
}

/** Call `end` on signals that ask the program to end; ignore others. */
export function onSignals(end: () => void): void {
  for (const [signal] of SIGNALS) process.listen(signal, end);
}
