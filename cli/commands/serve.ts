/** `serve`: export an image to NBD clients. @module */
import { asBlockError, BlockError, strerror } from "../../core/errors.ts";
import { Image } from "../../core/image.ts";
import { localSockets } from "../../core/platform/mod.ts";
import { process } from "../../core/platform/this_process.ts";
import {
  addressText,
  type Listener,
  type SocketAddress,
} from "../../core/platform/sockets.ts";
import { serveNbd } from "../../mod.ts";
import {
  type Command,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
} from "../command.ts";
import { findBitmaps, openExport } from "../nbd/export.ts";
import { listenAt, onSignals, portNumber } from "../nbd/listening.ts";
import { tlsCredentials } from "../nbd/tls.ts";
import { CommandError, type Program } from "../program.ts";

/** The command. */
export const command: Command = {
  summary: "Export an image to NBD clients until a signal ends it",
  operands: "FILE",
  options: [
    HELP,
    OBJECT,
    IMAGE_OPTS,
    FORMAT,
    { short: "w", long: "writable", help: "let clients write to it" },
    {
      short: "k",
      long: "socket",
      argument: "PATH",
      help: "listen on a Unix socket",
    },
    {
      long: "port",
      argument: "PORT",
      help: "port to listen on, 0 for a free one; default: 10809",
    },
    {
      short: "b",
      long: "bind",
      argument: "ADDRESS",
      help: "address to listen on; default: 127.0.0.1",
    },
    {
      short: "e",
      long: "shared",
      argument: "N",
      help: "most clients at once; default: 0, any number",
    },
    {
      short: "x",
      long: "export-name",
      argument: "NAME",
      help: "name that clients ask for; default: empty",
    },
    {
      short: "D",
      long: "description",
      argument: "TEXT",
      help: "what it is, for people",
    },
    {
      short: "l",
      long: "load-snapshot",
      argument: "SNAPSHOT",
      help: "export a snapshot of the image: an id, or a name",
    },
    {
      short: "A",
      long: "allocation-depth",
      help: "tell which backing file each range comes from",
    },
    {
      short: "B",
      long: "bitmap",
      argument: "NAME",
      help: "export a bitmap of the image",
    },
    {
      long: "tls-creds",
      argument: "ID",
      help: "encrypt, by a --object of type tls-creds-x509 or -psk",
    },
  ],
  notes: "Without --writable the image is opened read-only.\n" +
    "What clients see is the disk, whatever the image's format.",
  run: serve,
};

interface Settings {
  socket?: string;
  host: string;
  port: string;
  shared: number;
  writable: boolean;
  exportName?: string;
  description?: string;
  snapshot?: string;
  allocationDepth: boolean;
  bitmaps: string[];
  tlsCreds?: string;
}

function parse(invocation: Invocation): Settings {
  const settings: Settings = {
    host: "127.0.0.1",
    port: "10809",
    shared: 0,
    writable: false,
    allocationDepth: false,
    bitmaps: [],
  };
  for (const [option, argument] of invocation.options()) {
    if (option === "w") settings.writable = true;
    else if (option === "k") settings.socket = argument;
    else if (option === "port") settings.port = argument;
    else if (option === "b") settings.host = argument;
    else if (option === "e") settings.shared = clientCount(argument);
    else if (option === "x") settings.exportName = argument;
    else if (option === "D") settings.description = argument;
    else if (option === "l") settings.snapshot = argument;
    else if (option === "A") settings.allocationDepth = true;
    else if (option === "B") settings.bitmaps.push(argument);
    else if (option === "tls-creds") settings.tlsCreds = argument;
  }
  invocation.expectOneImage();
  if (settings.writable && settings.snapshot !== undefined) {
    throw new CommandError("A snapshot cannot be written to");
  }
  return settings;
}

function clientCount(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new CommandError(`Invalid number of clients: '${text}'`);
}

async function serve(invocation: Invocation): Promise<number> {
  const { program } = invocation;
  const settings = parse(invocation);
  const [file] = invocation.operands;
  const tls = tlsCredentials(settings.tlsCreds, "server");
  const address = await freeAddress(settings);
  let end = () => {};
  const ended = new Promise<void>((resolve) => end = resolve);
  onSignals(end);
  const node = await openExport(program, {
    file,
    format: invocation.image.format,
    imageOpts: invocation.image.imageOpts ?? false,
    readOnly: !settings.writable,
    snapshot: false,
    loadSnapshot: settings.snapshot,
    offset: 0,
    discard: true,
    detectZeroes: "off",
  });
  try {
    const listener = await listen(address);
    try {
      await using server = await serveNbd(new Image(node), listener, {
        name: settings.exportName,
        description: settings.description,
        writable: settings.writable,
        maxClients: settings.shared,
        allocationDepth: settings.allocationDepth,
        bitmaps: await findBitmaps(node, settings.bitmaps, !settings.writable),
        tls,
        ...watching(program),
      });
      program.print(`${server.uri}\n`);
      program.output.flush();
      await Promise.race([ended, server.ended]);
    } finally {
      listener.close();
    }
  } finally {
    await node.close();
  }
  return 0;
}

/** The address to listen on. A socket that is in use is not replaced. */
async function freeAddress(settings: Settings): Promise<SocketAddress> {
  const { socket: path, host, port } = settings;
  if (path === undefined) return { host, port: portNumber(host, port) };
  // Clients in other folders could not find a relative name.
  const absolute = path.startsWith("/")
    ? path
    : `${process.workingFolder()}/${path}`;
  let isTaken = true;
  try {
    (await (await localSockets()).connect({ path: absolute })).close();
  } catch {
    isTaken = false;
  }
  if (!isTaken) return { path: absolute };
  throw new CommandError(`Another program listens on '${path}'`);
}

/** Listen; failures are about the address, not the image. */
async function listen(address: SocketAddress): Promise<Listener> {
  try {
    return await listenAt(address);
  } catch (thrown) {
    const { code, cause, message, hint } = asBlockError(thrown);
    // The cause has only the system's error.
    const told = cause instanceof BlockError
      ? `Cannot listen on ${addressText(address)}: ${strerror(code)}`
      : message;
    throw new CommandError(told, { cause: thrown, hint });
  }
}

/** Report events on a terminal; logs get only errors. */
function watching(program: Program) {
  const isSeen = process.error.isTerminal();
  let count = 0;
  const tell = (what: string) => {
    if (isSeen) program.printError(`${what}; ${count} connected\n`);
  };
  return {
    onConnect() {
      count++;
      tell("A client has connected");
    },
    onDisconnect(entered: boolean, why?: string) {
      if (why !== undefined) program.error(why);
      if (!entered) return;
      count--;
      tell("A client has left");
    },
  };
}
