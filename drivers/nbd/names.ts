/**
 * File names of NBD exports. They are known before the rest of the driver is
 * loaded.
 *
 * @module
 */
import { invalid } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import type { SocketAddress } from "../../core/platform/sockets.ts";

/** The server's default port. */
export const DEFAULT_PORT = 10809;

/** The schemes of such names. */
export const NBD_SCHEMES = ["nbd", "nbd+tcp", "nbd+unix", "nbds", "nbds+tcp"];

/**
 * The options for a file name.
 *
 * @throws {BlockError} EINVAL with QEMU's messages.
 */
export function parseNbdFilename(filename: string): OptionValues {
  return filename.includes("://") ? parseUri(filename) : parseLegacy(filename);
}

function parseUri(filename: string): OptionValues {
  const bad = () => invalid("No valid URL specified");
  const match = /^([a-z+]+):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?/i
    .exec(filename);
  if (!match) throw bad();
  const [, scheme, authority, path, query] = match;
  // A second slash belongs to the name.
  const name = decoded(path.slice(1));
  const named = name === "" ? {} : { export: name };
  const encrypted = scheme.startsWith("nbds") ? { tls: true } : {};
  if (scheme === "nbd+unix") {
    const socket = /^socket=([^&]+)$/.exec(query ?? "");
    if (!socket || authority !== "") throw bad();
    return { server: { type: "unix", path: decoded(socket[1]) }, ...named };
  }
  const address = /^(?:[^@]*@)?(\[[^\]]+\]|[^:[\]]+)(?::(\d*))?$/
    .exec(authority);
  if (!NBD_SCHEMES.includes(scheme) || !address || query) throw bad();
  const [, host, port] = address;
  if (Number(port) > 65535) throw bad();
  return {
    server: {
      type: "inet",
      host: decoded(host.replace(/^\[(.*)\]$/, "$1")),
      // Port 0 stands for the default one.
      port: String(Number(port ?? 0) || DEFAULT_PORT),
    },
    ...named,
    ...encrypted,
  };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid("No valid URL specified");
  }
}

/**
 * Parse `nbd:HOST:PORT` or `nbd:unix:PATH`, optionally with `:exportname=NAME`.
 */
function parseLegacy(filename: string): OptionValues {
  const prefix = "nbd:";
  if (!filename.startsWith(prefix)) {
    throw invalid("File name string for NBD must start with 'nbd:'");
  }
  const MARK = ":exportname=";
  const at = filename.indexOf(MARK);
  const where = filename.slice(prefix.length, at < 0 ? undefined : at);
  const name = at < 0 ? "" : filename.slice(at + MARK.length);
  const named = name === "" ? {} : { export: name };
  if (where === "" && at < 0) return {};
  if (where.startsWith("unix:")) {
    return { server: { type: "unix", path: where.slice(5) }, ...named };
  }
  const address = /^(\[[^\]]*\]|[^:]*):([^:,]+)(,.*)?$/.exec(where);
  if (!address) throw invalid(`error parsing address '${where}'`);
  const [, host, port] = address;
  return {
    server: {
      type: "inet",
      host: host.replace(/^\[(.*)\]$/, "$1"),
      port,
    },
    ...named,
  };
}

/**
 * The file name of an export; without a name, of the one with the empty name.
 */
export function nbdName(server: SocketAddress, exportName?: string): string {
  if ("path" in server) {
    return exportName === undefined
      ? `nbd+unix://?socket=${server.path}`
      : `nbd+unix:///${exportName}?socket=${server.path}`;
  }
  const { host, port } = server;
  const name = exportName === undefined ? "" : `/${exportName}`;
  return `nbd://${host}:${port}${name}`;
}
