/**
 * Credentials of servers and of clients that list what servers have.
 *
 * @module
 */
import { CommandError } from "../program.ts";

/** How a server encrypts; nothing if it does not. */
export function serverTls(id: string | undefined): undefined {
  if (id === undefined) return undefined;
  throw new CommandError(
    `Failed to get TLS creds: No TLS credentials with id '${id}'`,
  );
}
