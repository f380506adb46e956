/**
 * Credentials of servers, and of clients that list what servers have.
 *
 * @module
 */
import { asBlockError } from "../../core/errors.ts";
import {
  findTlsCredentials,
  type TlsCredentials,
} from "../../core/tls_credentials.ts";

/** What the option `--tls-creds` names; nothing if it is not there. */
export function tlsCredentials(
  id: string | undefined,
  endpoint: "client" | "server",
): TlsCredentials | undefined {
  if (id === undefined) return undefined;
  try {
    return findTlsCredentials(id, endpoint);
  } catch (error) {
    throw asBlockError(error).prefixed("Failed to get TLS creds: ");
  }
}
