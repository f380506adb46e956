/**
 * Servers in processes of their own, ours and foreign ones, for the duration of
 * a test.
 *
 * @module
 */
import type { TempDir } from "../qemu.ts";

/** A server that is killed at the end of an `await using` block. */
export class ServerProcess implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #errors: Promise<string>;

  private constructor(child: Deno.ChildProcess) {
    this.#child = child;
    this.#errors = new Response(child.stderr).text();
  }

  /** Start a server, and wait until it accepts connections. */
  static async start(
    command: readonly string[],
    socket: string,
  ): Promise<ServerProcess> {
    await Deno.remove(socket).catch(() => {});
    const [program, ...args] = command;
    const child = new Deno.Command(program, {
      args,
      env: { LC_ALL: "C" },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    const server = new ServerProcess(child);
    await server.#ready(socket);
    return server;
  }

  async #ready(socket: string): Promise<void> {
    for (let tries = 0; tries < 600; tries++) {
      try {
        // The socket may exist before the server listens on it.
        (await Deno.connect({ transport: "unix", path: socket })).close();
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    await this.end("SIGKILL");
    throw new Error(`No server at ${socket}: ${await this.#errors}`);
  }

  /**
   * Send a signal, and wait for the end; returns the exit code and the output.
   */
  async end(
    signal: Deno.Signal = "SIGTERM",
  ): Promise<{ code: number; errors: string }> {
    try {
      this.#child.kill(signal);
    } catch {
      // It has ended already.
    }
    const { code } = await this.#child.status;
    const lines = (await this.#errors).split("\n");
    // Our probing connection was closed at once, about which some complain.
    const errors = lines.filter((line) => !line.includes("read flags"));
    return { code, errors: errors.join("\n") };
  }

  /** Kills it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.end("SIGKILL");
  }
}

/** The address of a socket, for all programs. */
export function uriOf(socket: string, name = ""): string {
  return `nbd+unix:///${name}?socket=${socket}`;
}

/** Certificates of a server and a client, signed by the same authority. */
export async function makeCertificates(dir: TempDir): Promise<string> {
  const folder = dir.file("certificates");
  await Deno.mkdir(folder);
  const openssl = async (...args: string[]) => {
    const { success, stderr } = await new Deno.Command("openssl", {
      args,
      cwd: folder,
      stdout: "null",
      stderr: "piped",
    }).output();
    if (!success) throw new Error(new TextDecoder().decode(stderr));
  };
  const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
  await openssl(
    ...["req", "-x509", ...newKey, "-nodes", "-days", "2"],
    ...["-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=tests"],
  );
  await Deno.writeTextFile(
    `${folder}/extensions`,
    "subjectAltName=DNS:localhost,IP:127.0.0.1\n" +
      "extendedKeyUsage=serverAuth,clientAuth\n",
  );
  for (const end of ["server", "client"]) {
    await openssl(
      ...["req", ...newKey, "-nodes", "-keyout", `${end}-key.pem`],
      ...["-out", `${end}.csr`, "-subj", `/CN=${end}`],
    );
    await openssl(
      ...["x509", "-req", "-in", `${end}.csr`, "-CA", "ca-cert.pem"],
      ...["-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2"],
      ...["-out", `${end}-cert.pem`, "-extfile", "extensions"],
    );
  }
  return folder;
}
