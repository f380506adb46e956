/**
 * The command line of `qemu-nbd`, with QEMU's messages.
 *
 * @module
 */
import type { CacheMode } from "../../core/open_options.ts";
import type { AioMode } from "../../core/traits.ts";
import { libraryText, OptionParser, type OptionSpec } from "../getopt.ts";
import { CACHE_MODES } from "../images.ts";
import { CommandError, type Program } from "../program.ts";
import { snapshotArgument } from "../snapshots.ts";

/** The parsed command line. */
export interface NbdRequest {
  /** `"object"`: the help of an object, which has been printed. */
  show?: "help" | "version" | "object";
  list: boolean;
  file: string;
  /** Port of the server. */
  port?: string;
  bind?: string;
  socket?: string;
  exportName?: string;
  description?: string;
  shared: number;
  persistent: boolean;
  fork: boolean;
  pidFile?: string;
  offset: number;
  allocationDepth: boolean;
  /** In reverse order of the command line. */
  bitmaps: string[];
  readOnly: boolean;
  snapshot: boolean;
  loadSnapshot?: string;
  format?: string;
  imageOpts: boolean;
  cache?: CacheMode;
  aio?: AioMode;
  discard: boolean;
  detectZeroes: "off" | "on" | "unmap";
  tlsCreds?: string;
  tlsAuthz?: string;
  tlsHostname?: string;
  /** Seconds; 0 for no limit. */
  handshakeLimit: number;
}

const option = (
  names: string,
  argument: string | undefined,
  help: string,
): OptionSpec => {
  const [short, long] = names.includes(",") ? names.split(",") : ["", names];
  return { ...(short && { short }), long, argument, help };
};

const GROUPS: readonly [title: string, options: readonly OptionSpec[]][] = [
  ["", [
    option("h,help", undefined, "display this help and exit"),
    option("V,version", undefined, "output version information and exit"),
  ]],
  ["Connection properties", [
    option("p,port", "PORT", "port to listen on (default `10809')"),
    option("b,bind", "IFACE", "interface to bind to (default `0.0.0.0')"),
    option("k,socket", "PATH", "path to the unix socket"),
    option("e,shared", "NUM", "how many clients may share it (default '1')"),
    option("t,persistent", undefined, "don't exit on the last connection"),
    option("v,verbose", undefined, "accepted for QEMU's sake"),
    option("x,export-name", "NAME", "name of the export (default is empty)"),
    option("D,description", "TEXT", "what the export is, for people"),
    option("handshake-limit", "N", "seconds to choose an export (default 10)"),
  ]],
  ["Exposing part of the image", [
    option("o,offset", "OFFSET", "offset into the image"),
    option("A,allocation-depth", undefined, "expose the allocation depth"),
    option("B,bitmap", "NAME", "expose a persistent dirty bitmap"),
  ]],
  ["General purpose options", [
    option("L,list", undefined, "list exports of another NBD server"),
    option("object", "type,id=ID,...", "define an object such as 'secret'"),
    option("tls-creds", "ID", "use id of an earlier --object to provide TLS"),
    option("tls-authz", "ID", "whom an --object of type authz-... lets in"),
    option("tls-hostname", "NAME", "name in the server's certificate (-L)"),
    option("T,trace", "PATTERN", "accepted for QEMU's sake"),
    option("fork", undefined, "let the server go on in the background"),
    option("pid-file", "PATH", "store the server's process ID in the file"),
    option("selinux-label", "LABEL", "not supported"),
  ]],
  ["Kernel NBD client support", [
    option("c,connect", "DEV", "not supported: use nbd-client"),
    option("d,disconnect", undefined, "not supported: use nbd-client"),
  ]],
  ["Block device options", [
    option("f,format", "FORMAT", "set image format (raw, qcow2, ...)"),
    option("r,read-only", undefined, "export read-only"),
    option("s,snapshot", undefined, "write to a temporary overlay of FILE"),
    option("l,load-snapshot", "SNAPSHOT", "export a snapshot, read-only"),
    option("n,nocache", undefined, "disable host cache"),
    option(
      "cache",
      "MODE",
      "none, writeback (default), writethrough, directsync, unsafe",
    ),
    option("aio", "MODE", "threads, native or io_uring"),
    option("discard", "MODE", "ignore (default) or unmap"),
    option("detect-zeroes", "MODE", "off (default), on or unmap"),
    option("image-opts", undefined, "FILE is a full set of image options"),
  ]],
];

const OPTIONS = GROUPS.flatMap(([_, options]) => options);

/** What `--help` prints. */
export function nbdHelp(name: string): string {
  const lines = [
    `Usage: ${name} [OPTIONS] FILE`,
    `  or:  ${name} -L [OPTIONS]`,
    "Offer a disk image to NBD clients",
  ];
  for (const [title, options] of GROUPS) {
    lines.push("", ...(title ? [`${title}:`] : []));
    for (const { short, long, argument, help } of options) {
      const names = `${short ? `-${short},` : "   "} --${long}` +
        (argument ? `=${argument}` : "");
      lines.push(`  ${names.padEnd(25)} ${help}`);
    }
  }
  return `${lines.join("\n")}\n`;
}

const MAX_STRING = 4096;
const AIO_MODES: readonly string[] = ["threads", "native", "io_uring"];

/**
 * Parse the command line.
 *
 * @throws {CommandError} for the first mistake in it.
 */
export function parseNbdArguments(
  program: Program,
  args: readonly string[],
): NbdRequest {
  const request: NbdRequest = {
    list: false,
    file: "",
    shared: 1,
    persistent: false,
    fork: false,
    offset: 0,
    allocationDepth: false,
    bitmaps: [],
    readOnly: false,
    snapshot: false,
    imageOpts: false,
    discard: false,
    detectZeroes: "off",
    handshakeLimit: 10,
  };
  const { name } = program;
  const parser = new OptionParser(
    OPTIONS,
    name,
    args,
    (mistake) =>
      new CommandError(
        `${libraryText(mistake)}\nTry \`${name} --help' for more information.`,
      ),
  );
  const seen = new Set<string>();
  for (const [option, argument] of parser.parse()) {
    takeOption(program, request, seen, option, argument);
    if (request.show) return request;
  }
  const { operands } = parser;
  if (request.list) checkList(request, seen, operands);
  else if (operands.length !== 1) {
    throw new CommandError("Invalid number of arguments", {
      hint: `Try \`${name} --help' for more information.`,
    });
  }
  request.file = operands[0];
  checkTls(request);
  return request;
}

function takeOption(
  program: Program,
  request: NbdRequest,
  seen: Set<string>,
  option: string,
  argument: string,
): void {
  const isSeen = seen.has(option);
  seen.add(option);
  switch (option) {
    case "h":
      request.show = "help";
      break;
    case "V":
      request.show = "version";
      break;
    case "s":
      request.snapshot = true;
      break;
    case "n":
    case "cache":
      if (isSeen || request.cache) {
        throw new CommandError("-n and --cache can only be specified once");
      }
      request.cache = cacheModeOf(option === "n" ? "none" : argument);
      break;
    case "aio":
      if (isSeen) throw new CommandError("--aio can only be specified once");
      if (!AIO_MODES.includes(argument)) {
        throw new CommandError(`Invalid aio mode '${argument}'`);
      }
      request.aio = argument as AioMode;
      break;
    case "discard":
      if (isSeen) {
        throw new CommandError("--discard can only be specified once");
      }
      request.discard = discardOf(argument);
      break;
    case "detect-zeroes":
      request.detectZeroes = detectionOf(argument, request.discard);
      break;
    case "b":
      request.bind = argument;
      break;
    case "p":
      request.port = argument;
      break;
    case "o":
      request.offset = wholeNumber(argument, "Invalid offset");
      break;
    case "l":
      request.loadSnapshot = snapshotArgument(program, argument, "`");
      request.readOnly = true;
      break;
    case "r":
      request.readOnly = true;
      break;
    case "A":
      request.allocationDepth = true;
      break;
    case "B":
      request.bitmaps.unshift(argument);
      break;
    case "k":
      if (!argument.startsWith("/")) {
        throw new CommandError("socket path must be absolute");
      }
      request.socket = argument;
      break;
    case "e":
      request.shared = wholeNumber(argument, "Invalid shared device number");
      if (request.shared >= 2 ** 31) {
        throw new CommandError(`Invalid shared device number '${argument}'`);
      }
      break;
    case "f":
      request.format = argument;
      break;
    case "t":
      request.persistent = true;
      break;
    case "x":
      checkLength("name", argument);
      request.exportName = argument;
      break;
    case "D":
      checkLength("description", argument);
      request.description = argument;
      break;
    case "object":
      if (program.defineObject(argument)) break;
      request.show = "object";
      break;
    case "tls-creds":
      request.tlsCreds = argument;
      break;
    case "tls-authz":
      request.tlsAuthz = argument;
      break;
    case "tls-hostname":
      request.tlsHostname = argument;
      break;
    case "image-opts":
      request.imageOpts = true;
      break;
    case "fork":
      request.fork = true;
      break;
    case "L":
      request.list = true;
      break;
    case "pid-file":
      request.pidFile = argument;
      break;
    case "handshake-limit":
      request.handshakeLimit = wholeNumber(
        argument,
        "Invalid handshake limit",
      );
      break;
    case "selinux-label":
      throw new CommandError("SELinux support not enabled in this binary");
    case "c":
    case "d":
      throw new CommandError("Kernel /dev/nbdN support not available");
  }
}

function cacheModeOf(text: string): CacheMode {
  const mode = text === "off" ? "none" : text;
  const found = CACHE_MODES.find((known) => known === mode);
  if (!found) throw new CommandError(`Invalid cache mode \`${text}'`);
  return found;
}

function discardOf(mode: string): boolean {
  if (mode === "unmap" || mode === "on") return true;
  if (mode === "ignore" || mode === "off") return false;
  throw new CommandError(`Invalid discard mode \`${mode}'`);
}

function detectionOf(
  mode: string,
  discards: boolean,
): NbdRequest["detectZeroes"] {
  if (mode !== "off" && mode !== "on" && mode !== "unmap") {
    throw new CommandError(
      "Failed to parse detect_zeroes mode: invalid parameter value: " + mode,
    );
  }
  if (mode === "unmap" && !discards) {
    throw new CommandError(
      "setting detect-zeroes to unmap is not allowed without setting discard " +
        "operation to unmap",
    );
  }
  return mode;
}

/**
 * A number as C parses it: decimal, `0x` hexadecimal, or octal after a zero.
 */
function wholeNumber(text: string, complaint: string): number {
  const isOctal = /^0[0-7]+$/.test(text);
  const isNumber = /^(\d+|0x[0-9a-f]+)$/i.test(text);
  const value = isOctal ? parseInt(text, 8) : Number(text);
  if (isNumber && Number.isSafeInteger(value)) return value;
  throw new CommandError(`${complaint} '${text}'`);
}

function checkLength(what: string, text: string): void {
  if (new TextEncoder().encode(text).length <= MAX_STRING) return;
  throw new CommandError(`export ${what} '${text}' too long`);
}

/** Options about an image or an export. */
const OF_IMAGE = ["x", "D", "f", "l", "B", "A", "aio", "discard", "cache", "n"];

function checkList(
  request: NbdRequest,
  seen: ReadonlySet<string>,
  operands: readonly string[],
): void {
  if (operands.length > 0) {
    throw new CommandError("List mode is incompatible with a file name");
  }
  if (OF_IMAGE.some((option) => seen.has(option)) || request.offset > 0) {
    throw new CommandError(
      "List mode is incompatible with per-device settings",
    );
  }
  if (request.fork) {
    throw new CommandError("List mode is incompatible with forking");
  }
}

function checkTls({ list, tlsCreds, tlsAuthz, tlsHostname }: NbdRequest): void {
  if (tlsCreds === undefined) {
    const odd = tlsAuthz !== undefined
      ? "--tls-authz"
      : tlsHostname !== undefined
      ? "--tls-hostname"
      : undefined;
    if (!odd) return;
    throw new CommandError(`${odd} is not permitted without --tls-creds`);
  }
  if (tlsAuthz !== undefined && list) {
    throw new CommandError(
      "TLS authorization is incompatible with export list",
    );
  }
  if (tlsHostname !== undefined && !list) {
    throw new CommandError("TLS hostname is only supported with export list");
  }
}
