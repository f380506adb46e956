/**
 * Locations of exports: parsing file names and options.
 *
 * @module
 */
import { BlockError, invalid } from "../../core/errors.ts";
import { notAmong, type OptionValues } from "../../core/options.ts";
import type { ByteStream, SocketAddress } from "../../core/platform/sockets.ts";
import { isPlainObject } from "../../core/values.ts";
import type { WebStreams } from "./bytes.ts";
import { DEFAULT_PORT } from "./names.ts";

/** Connects by means of the user's own. */
export type Connect = () =>
  | ByteStream
  | WebStreams
  | Promise<ByteStream | WebStreams>;

/** The location of an export. */
export interface Place {
  /** The address of the server, or how to reach it. */
  readonly server: SocketAddress | Connect;
  /** Absent if the user gives no name, which stands for the empty one. */
  readonly exportName?: string;
}

/** Options that determine the content of the node. */
const PLACE_OPTIONS = ["server", "host", "port", "path", "export"];

/** Properties of an `inet` address that concern how to connect, not where. */
const INET_EXTRAS = ["numeric", "to", "ipv4", "ipv6", "keep-alive", "mptcp"];

/**
 * Separate the options that locate the export from the others.
 *
 * @throws {BlockError} EINVAL with QEMU's messages.
 */
export function takePlace(
  options: OptionValues,
): [place: Place, others: OptionValues] {
  const others: OptionValues = {};
  const place: { [name: string]: unknown } = {};
  const server: { [name: string]: unknown } = {};
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue;
    if (name.startsWith("server.")) server[name.slice(7)] = value;
    else if (PLACE_OPTIONS.includes(name)) place[name] = value;
    else others[name] = value;
  }
  if (isPlainObject(place.server)) Object.assign(server, place.server);
  const exportName = place.export === undefined
    ? undefined
    : String(place.export);
  const { connect, ...rest } = others;
  if (typeof connect === "function") {
    return [{ server: connect as Connect, exportName }, rest];
  }
  return [{ server: serverOf(place, server), exportName }, others];
}

function serverOf(
  { host, port, path }: { [name: string]: unknown },
  server: { [name: string]: unknown },
): SocketAddress {
  const isNew = Object.keys(server).length > 0;
  if (isNew && (path ?? host ?? port) !== undefined) {
    throw invalid("Cannot use 'server' and path/host/port at the same time");
  }
  if (path !== undefined && host !== undefined) {
    throw invalid("path and host may not be used at the same time");
  }
  if (path !== undefined && port !== undefined) {
    throw invalid("port may not be used without host");
  }
  if (path !== undefined || host !== undefined) {
    return path !== undefined ? { path: String(path) } : {
      host: String(host),
      port: portOf(String(host), port ?? DEFAULT_PORT),
    };
  }
  if (!isNew) throw invalid("NBD server address missing");
  const { type, ...rest } = server;
  return addressOf(type, rest);
}

function addressOf(
  type: unknown,
  given: { [name: string]: unknown },
): SocketAddress {
  const required = (name: string) => {
    if (given[name] === undefined) {
      throw invalid(`Parameter '${name}' is missing`);
    }
    return String(given[name]);
  };
  const only = (...names: string[]) => {
    const odd = Object.keys(given).find((name) => !names.includes(name));
    if (odd) throw invalid(`Parameter '${odd}' is unexpected`);
  };
  switch (type) {
    case undefined:
      throw invalid("Parameter 'type' is missing");
    case "unix": {
      const path = required("path");
      only("path");
      return { path };
    }
    case "inet": {
      const host = required("host");
      const port = portOf(host, required("port"));
      only("host", "port", ...INET_EXTRAS);
      return { host, port };
    }
    case "fd":
    case "vsock":
      throw new BlockError(
        "ENOTSUP",
        `A server of type '${type}' cannot be reached from here`,
      );
    default:
      throw notAmong(`Parameter 'type' does not accept value '${type}'`, [
        "inet",
        "unix",
      ]);
  }
}

function portOf(host: string, value: unknown): number {
  const port = value === "" ? NaN : Number(value);
  if (Number.isInteger(port) && port >= 0 && port <= 65535) return port;
  throw invalid(
    `address resolution failed for ${host}:${value}: Servname not supported ` +
      "for ai_socktype",
  );
}
