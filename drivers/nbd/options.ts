/**
 * The driver's traits and options, needed before it is loaded.
 *
 * @module
 */
import type { OptionTable, OptionValues } from "../../core/options.ts";
import type { DriverTraits } from "../../core/traits.ts";
import {
  DEFAULT_PORT,
  NBD_SCHEMES,
  nbdName,
  parseNbdFilename,
} from "./names.ts";

/** Options of the driver, apart from the export's location. */
export const OPEN_OPTIONS: OptionTable = {
  "reconnect-delay": {
    type: "number",
    default: 0,
    help: "Seconds that requests wait for a server that was lost",
  },
  "open-timeout": {
    type: "number",
    default: 0,
    help: "Seconds to go on trying to connect when it is opened",
  },
  "x-dirty-bitmap": {
    type: "string",
    help: "Show this context of the server in place of what is allocated",
  },
  "tls-hostname": {
    type: "string",
    help: "Name in the server's certificate; default: its host name",
  },
  "multi-conn": {
    type: "number",
    range: [1, 64],
    default: 1,
    help: "Most connections at once, if the server permits several",
  },
};

/** Options of `create`; the size of an export cannot be changed. */
const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  preallocation: {
    type: "enum",
    values: ["off"],
    help: "Preallocation mode (allowed values: off)",
  },
};

/** The driver's traits. */
export const NBD_TRAITS: DriverTraits = {
  name: "nbd",
  role: "protocol",
  schemes: NBD_SCHEMES,
  strongOptions: [
    "server.",
    "export",
    "host",
    "port",
    "path",
  ],
  createOptions: CREATE_OPTIONS,
  parseFilename: parseNbdFilename,
  plainName: plainNbdName,
};

/** The file name of an export with these options. */
function plainNbdName(options: OptionValues): string | undefined {
  const {
    "server.type": type,
    "server.host": host = options.host,
    "server.port": port = options.port ?? DEFAULT_PORT,
    "server.path": path = options.path,
    host: _host,
    port: _port,
    path: _path,
    export: name,
    ...others
  } = options;
  if (Object.keys(others).length > 0) return undefined;
  const exportName = name as string | undefined;
  if (path !== undefined) return nbdName({ path: String(path) }, exportName);
  if (host === undefined || (type ?? "inet") !== "inet") return undefined;
  const server = { host: String(host), port: Number(port) };
  return nbdName(server, exportName);
}
