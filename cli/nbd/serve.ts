/**
 * `qemu-nbd FILE`: runs a server until it is no longer needed.
 *
 * @module
 */
import { Image } from "../../core/image.ts";
import type { BlockNode } from "../../core/node.ts";
import { process } from "../../core/platform/this_process.ts";
import type { Listener, SocketAddress } from "../../core/platform/sockets.ts";
import { surviveSignal } from "../../core/runtime.ts";
import { asBlockError, strerror } from "../../core/errors.ts";
import { type NbdServer, serveNbd } from "../../mod.ts";
import { CommandError, type Program } from "../program.ts";
import { findBitmaps, openExport } from "./export.ts";
import { listenAt, onSignals, portNumber } from "./listening.ts";
import type { NbdRequest } from "./options.ts";
import { tellParent } from "./fork.ts";
import { tlsCredentials } from "./tls.ts";

const DEFAULT_PORT = "10809";

/** The address of a request's server. */
export function addressOf({ socket, bind, port }: NbdRequest): SocketAddress {
  if (socket !== undefined) return { path: socket };
  const host = bind ?? "0.0.0.0";
  return { host, port: portNumber(host, port ?? DEFAULT_PORT) };
}

/**
 * Serve until a signal arrives or the last client leaves.
 *
 * @param given A socket passed on by the system.
 */
export async function serve(
  program: Program,
  request: NbdRequest,
  given?: Listener,
): Promise<number> {
  const tls = tlsCredentials(request.tlsCreds, "server");
  const address = given ? undefined : addressOf(request);
  let ended = () => {};
  const wanted = new Promise<void>((resolve) => ended = resolve);
  // From here on, whatever was created is removed at the end.
  onSignals(ended);
  surviveSignal("SIGUSR1");
  const listener = given ?? await listenAt(address!);
  try {
    await serveOn(program, request, listener, { tls, wanted, end: ended });
  } finally {
    listener.close();
  }
  return 0;
}

interface Ending {
  readonly tls: ReturnType<typeof tlsCredentials>;
  /** Resolves when the server should end. */
  readonly wanted: Promise<void>;
  end(): void;
}

async function serveOn(
  program: Program,
  request: NbdRequest,
  listener: Listener,
  ending: Ending,
): Promise<void> {
  const node = await openExport(program, request);
  try {
    const server = await start(program, request, node, listener, ending);
    try {
      if (request.pidFile !== undefined) writePid(request.pidFile);
      tellParent();
      await Promise.race([ending.wanted, server.ended]);
    } finally {
      await server.close();
    }
  } finally {
    await node.close();
  }
}

async function start(
  program: Program,
  request: NbdRequest,
  node: BlockNode,
  listener: Listener,
  { tls, end }: Ending,
): Promise<NbdServer> {
  const { readOnly, persistent, bitmaps } = request;
  const isProbedRaw = request.format === undefined && !request.imageOpts &&
    node.driver.name === "raw";
  const server: NbdServer = await serveNbd(
    new Image(node, { cache: request.cache }),
    listener,
    {
      name: request.exportName,
      description: request.description,
      writable: !readOnly,
      maxClients: request.shared,
      handshakeLimit: request.handshakeLimit,
      allocationDepth: request.allocationDepth,
      bitmaps: await findBitmaps(node, bitmaps, readOnly),
      // With a probed raw format, only whole sectors are written.
      ...(isProbedRaw && { blockSize: 512 }),
      tls,
      authorize: authorizationOf(program, request),
      onDisconnect(entered, why) {
        if (why !== undefined) program.error(why);
        if (entered && !persistent && server.clients === 0) end();
      },
    },
  );
  return server;
}

/** The rules of `--tls-authz`; `undefined` if not given. */
function authorizationOf(
  program: Program,
  { tlsAuthz }: NbdRequest,
): ((name: string) => boolean) | undefined {
  if (tlsAuthz === undefined) return undefined;
  const authorize = program.objects?.authorization(tlsAuthz);
  if (authorize) return authorize;
  throw new CommandError(`Cannot find QAuthZ object ID ${tlsAuthz}`);
}

function writePid(path: string): void {
  try {
    process.writeOwn(path, `${process.pid}\n`);
  } catch (error) {
    const { code, hint } = asBlockError(error);
    throw new CommandError(`Could not create '${path}': ${strerror(code)}`, {
      hint,
    });
  }
}
