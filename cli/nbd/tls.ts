/**
 * TLS credentials of servers, and of clients that list exports.
 *
 * @module
 */
import { asBlockError } from "../../core/errors.ts";
import {
  findTlsCredentials,
  type TlsCredentials,
} from "../../core/tls_credentials.ts";

/** The credentials that `--tls-creds` names; `undefined` if not given. */
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
