/**
 * Sockets of servers, and what ends them.
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

/** The port of a number or the name of a service. */
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
    return ""; // Then numbers have to do.
  }
}

/** Make a socket; what a former server left in its place is replaced. */
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

/** Remove a socket; whatever else has the name is spared. */
function removeSocket(path: string): void {
  try {
    if (process.linkStatus(path).isSocket) process.remove(path);
  } catch {
    // To listen there will tell what is wrong.
  }
}

/** What a connection failed with, as programs tell it. */
export function connectError(thrown: unknown, address: SocketAddress): Error {
  const error = asBlockError(thrown);
  if (error.message !== strerror(error.code)) return error;
  return error.prefixed(`Failed to connect to '${addressText(address)}': `);
}

/** Call `end` when a signal asks the program to end; others are ignored. */
export function onSignals(end: () => void): void {
  for (const [signal] of SIGNALS) process.listen(signal, end);
}
