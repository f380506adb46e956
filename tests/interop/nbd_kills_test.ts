/**
 * Servers and clients that are killed as processes, between any two bytes of
 * what they say: the disk must hold what was promised.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { openNode } from "../../core/open.ts";
import { FEW, MANY, UNIT, Work } from "../drivers/nbd/breaks.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";
import { ServerProcess, uriOf } from "./nbd_peers.ts";

const SIZE = 1 << 20;

/** Ends something after a number of bytes in one direction. */
interface Kill {
  readonly direction: "there" | "back";
  readonly after: number;
}

/** Passes bytes between clients and a server, and counts them. */
class Relay implements AsyncDisposable {
  readonly path: string;
  readonly #listener: Deno.UnixListener;
  readonly #connections = new Set<Deno.Conn>();
  readonly #server: () => Promise<string>;
  readonly #kills: Kill[];
  readonly #kill: () => void;
  readonly #ended: Promise<void>;
  #sent = { there: 0, back: 0 };

  /**
   * Relay to the socket that `server` returns once there is somebody; `kill` is
   * called after the bytes of each of `kills`, which count from the last one.
   */
  constructor(
    path: string,
    server: () => Promise<string>,
    kills: readonly Kill[],
    kill: () => void,
  ) {
    this.path = path;
    this.#server = server;
    this.#kills = [...kills];
    this.#kill = kill;
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#ended = this.#accept();
  }

  /** Kills that are to come. */
  get left(): number {
    return this.#kills.length;
  }

  async #accept(): Promise<void> {
    for await (const client of this.#listener) {
      this.#connections.add(client);
      this.#connect(client);
    }
  }

  async #connect(client: Deno.Conn): Promise<void> {
    try {
      const path = await this.#server();
      const server = await Deno.connect({ transport: "unix", path });
      this.#connections.add(server);
      this.#pass(client, server, "there");
      this.#pass(server, client, "back");
    } catch {
      this.#close(client);
    }
  }

  async #pass(
    from: Deno.Conn,
    to: Deno.Conn,
    direction: Kill["direction"],
  ): Promise<void> {
    const bytes = new Uint8Array(65536);
    try {
      for (let count; (count = await from.read(bytes)) !== null;) {
        const [next] = this.#kills;
        const left = next?.direction === direction
          ? next.after - this.#sent[direction]
          : Infinity;
        const part = bytes.subarray(0, Math.min(count, left));
        this.#sent[direction] += part.length;
        for (let at = 0; at < part.length;) {
          at += await to.write(part.subarray(at));
        }
        if (part.length < left) continue;
        this.#kills.shift();
        this.#sent = { there: 0, back: 0 };
        this.#kill();
        this.#closeAll();
      }
    } catch {
      // Either end has gone.
    }
    this.#close(from);
    this.#close(to);
  }

  #close(connection: Deno.Conn): void {
    if (this.#connections.delete(connection)) connection.close();
  }

  #closeAll(): void {
    for (const connection of this.#connections) this.#close(connection);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    this.#closeAll();
    await this.#ended.catch(() => {});
  }
}

/** Kills after some bytes more each time, in both directions. */
function kills(count: number, most: number): Kill[] {
  return Array.from({ length: count }, (_, i) => ({
    direction: i % 2 ? "back" : "there",
    after: 1 + Math.round(i * most / count),
  }));
}

interface Peer {
  /** The command that serves `file` on `socket`, to several clients. */
  command(file: string, socket: string): string[];
  readonly format: "raw" | "qcow2";
  /** Number of kills; some servers take their time to start. */
  readonly count: number;
}

const PEERS: { readonly [name: string]: Peer } = {
  "bdrv serve": {
    command: (file, socket) => [
      ...[...BDRV, "serve", "--writable", "-f", "qcow2", "-k", socket, file],
    ],
    format: "qcow2",
    count: 12,
  },
  "qemu-nbd": {
    command: (file, socket) => [
      ...["qemu-nbd", "-t", "-e", "0", "-f", "qcow2", "-k", socket, file],
    ],
    format: "qcow2",
    count: 30,
  },
  "nbdkit": {
    command: (file, socket) => ["nbdkit", "-f", "-U", socket, "file", file],
    format: "raw",
    count: 30,
  },
};

for (const [name, { command, format, count }] of Object.entries(PEERS)) {
  for (const connections of [1, 3]) {
    qemuTest(
      `${name} is killed at any time, ${connections} connections: nobody notices`,
      async () => {
        await using dir = new TempDir();
        const file = dir.file("disk");
        const socket = dir.file("server");
        await runOk(["qemu-img", "create", "-f", format, file, `${SIZE}`]);
        const start = () => ServerProcess.start(command(file, socket), socket);
        let server = start();
        const restart = () => {
          server = server.then(async (dead) => {
            await dead.end("SIGKILL");
            return await start();
          });
        };
        const reach = async () => {
          await server;
          return socket;
        };
        const most = connections > 1 ? 2500 : 1000;
        const planned = kills(count, most);
        await using relay = new Relay(
          dir.file("relay"),
          reach,
          planned,
          restart,
        );
        const node = await openNode({
          driver: "nbd",
          path: relay.path,
          "reconnect-delay": 100,
          "open-timeout": 100,
          "multi-conn": connections,
        });
        const work = new Work(node);
        const units = connections > 1 ? MANY : FEW;
        for (let round = 0; relay.left > 0; round++) {
          assert(round < count, "not all kills took place");
          await work.all(units);
        }
        assertEquals(work.failures, 0);
        await node.close();
        await (await server).end("SIGKILL");
        const args = ["convert", "-f", format, "-O", "raw", file, "raw"];
        await runOk(["qemu-img", ...args], { cwd: dir.path });
        const disk = await Deno.readFile(dir.file("raw"));
        work.promises.checkLast(disk, UNIT, name);
        if (format === "raw") return;
        const { stdout } = await run(["qemu-img", "check", file]);
        assert(!/error|corrupt/i.test(stdout.replace("No errors", "")), stdout);
      },
      name === "nbdkit" ? ["nbdkit"] : [],
    );
  }
}

/** Commands of `qemu-io`, and the unit and the value that each writes. */
const COMMANDS = Array.from({ length: 24 }, (_, i) => {
  const unit = i % 7;
  const value = i + 1;
  const fua = i % 3 === 0 ? "-f " : "";
  return { unit, value, fua, text: `write ${fua}-P ${value} ${unit}k 1k` };
});

for (const [name, peer] of Object.entries(PEERS)) {
  qemuTest(
    `${name}: a client that is killed has lost nothing that was promised to it`,
    async () => {
      await using dir = new TempDir();
      const file = dir.file("disk");
      const socket = dir.file("server");
      const { command, format } = peer;
      for (const [index, { after }] of kills(8, 12_000).entries()) {
        await runOk(["qemu-img", "create", "-f", format, file, `${SIZE}`]);
        const server = await ServerProcess.start(command(file, socket), socket);
        const path = dir.file(`relay${index}`);
        let kill = () => {};
        const relay = new Relay(
          path,
          () => Promise.resolve(socket),
          [{ direction: "there", after }],
          () => kill(),
        );
        const args = COMMANDS.flatMap(({ text }, i) => [
          ...["-c", text],
          ...(i % 8 === 7 ? ["-c", "flush"] : []),
        ]);
        const [program, ...rest] = [...BDRV, "qemu-io", "-f", "raw", ...args];
        const child = new Deno.Command(program, {
          args: [...rest, uriOf(path)],
          stdin: "null",
          stdout: "piped",
          stderr: "null",
        }).spawn();
        kill = () => child.kill("SIGKILL");
        const { stdout } = await child.output();
        const done = new TextDecoder().decode(stdout).match(/^wrote /gm) ?? [];
        await relay[Symbol.asyncDispose]();
        await server.end("SIGTERM");
        await runOk(
          ["qemu-img", "convert", "-f", format, "-O", "raw", file, "raw"],
          { cwd: dir.path },
        );
        const disk = await Deno.readFile(dir.file("raw"));
        checkWritten(disk, done.length, `${name}, ${after}`);
      }
    },
    name === "nbdkit" ? ["nbdkit"] : [],
  );
}

/** A unit has what was written to it last, or what was written later. */
function checkWritten(disk: Uint8Array, done: number, what: string): void {
  for (let unit = 0; unit < 7; unit++) {
    const bytes = disk.subarray(unit * 1024, (unit + 1) * 1024);
    const [found] = bytes;
    const isWhole = bytes.every((byte) => byte === found);
    assert(isWhole, `${what}: unit ${unit} is torn`);
    const of = COMMANDS.filter((one) => one.unit === unit);
    const last = COMMANDS.slice(0, done).findLast((one) => one.unit === unit);
    const permitted = of.filter(({ value }) => value >= (last?.value ?? 0));
    const values = permitted.map(({ value }) => value);
    if (!last) values.push(0);
    assert(
      values.includes(found),
      `${what}: unit ${unit} has ${found}, and not one of ${values}`,
    );
  }
}
