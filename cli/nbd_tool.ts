/**
 * The program that exports an image to NBD clients: QEMU's `qemu-nbd`.
 *
 * @module
 */
import { CommandError, type Program } from "./program.ts";
import { activatedSocket } from "./nbd/activation.ts";
import { forkServer, isForked } from "./nbd/fork.ts";
import { nbdHelp, parseNbdArguments } from "./nbd/options.ts";
import { tlsCredentials } from "./nbd/tls.ts";
import { versionText } from "./version.ts";

/** Run the program; returns the exit code. */
export async function run(
  program: Program,
  args: readonly string[],
): Promise<number> {
  await program.prepareObjects(args);
  const request = parseNbdArguments(program, args);
  if (request.show === "help") {
    program.print(nbdHelp(program.name));
    return 0;
  }
  if (request.show === "object") return 0;
  if (request.show === "version") {
    // QEMU's own omits that word.
    program.print((await versionText(program)).replace(" version ", " "));
    return 0;
  }
  const { addressOf, serve } = await import("./nbd/serve.ts");
  const activated = await activatedSocket(request);
  if (request.list) {
    const { list } = await import("./nbd/list.ts");
    const { tlsCreds, tlsHostname, bind } = request;
    const address = addressOf(request);
    const hostname = tlsHostname ?? bind;
    const tls = tlsCredentials(tlsCreds, "client");
    if (tls?.hasCertificates && !hostname && "path" in address) {
      throw new CommandError("No hostname for certificate validation");
    }
    return await list(program, address, { tls, hostname });
  }
  if (request.fork && !isForked()) return await forkServer();
  return await serve(program, request, activated);
}
