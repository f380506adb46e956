/**
 * The process under Node.js and Bun.
 *
 * @module
 */
import type { ByteStream } from "./sockets.ts";
import { attempt, attemptLater } from "./system_calls.ts";
import { nodeModule } from "./node_modules.ts";
import type { NodeSocket } from "./node_sockets.ts";
import type {
  InputFile,
  OutputStream,
  PathStatus,
  Process,
} from "./process.ts";

interface NodeGlobal {
  readonly argv: readonly string[];
  readonly execArgv: readonly string[];
  readonly execPath: string;
  readonly pid: number;
  readonly env: { [name: string]: string | undefined };
  readonly stdin: NodeSocket & { setRawMode?(on: boolean): void };
  readonly stdout?: { readonly columns?: number };
  readonly stderr?: { readonly columns?: number };
  exit(code: number): never;
  kill(pid: number, signal: number): void;
  on(signal: string, listener: () => void): void;
  off(signal: string, listener: () => void): void;
  cwd(): string;
}

interface Stats {
  isFile(): boolean;
  isBlockDevice(): boolean;
  isDirectory(): boolean;
  isSocket(): boolean;
  isFIFO(): boolean;
  readonly size: number;
  readonly blocks: number;
  readonly mtimeMs: number;
  readonly ctimeMs: number;
  readonly dev: number;
  readonly ino: number;
  readonly rdev: number;
}

interface FileSystem {
  statSync(path: string): Stats;
  lstatSync(path: string): Stats;
  fstatSync(descriptor: number): Stats;
  read(
    descriptor: number,
    into: Uint8Array,
    offset: number,
    length: number,
    position: null,
    done: (error: Error | null, count: number) => void,
  ): void;
  readFileSync(path: string): Uint8Array;
  writeFileSync(
    path: string,
    content: string | Uint8Array,
    options?: { mode: number },
  ): void;
  writeSync(descriptor: number, bytes: Uint8Array): number;
  closeSync(descriptor: number): void;
  openSync(path: string, flags: string, mode: number): number;
  unlinkSync(path: string): void;
  realpathSync: { native(path: string): string };
  readonly promises: {
    open(path: string): Promise<{
      read(bytes: Uint8Array): Promise<{ bytesRead: number }>;
      close(): Promise<void>;
    }>;
  };
}

interface ChildProcesses {
  spawn(program: string, args: readonly string[], options: object): {
    unref(): void;
    readonly stderr: AsyncIterable<Uint8Array> & { unref(): void };
  };
}

/** Standard input, read through its descriptor. */
function readInput(fs: FileSystem): ByteStream {
  return {
    read: (into) =>
      new Promise((resolve, reject) =>
        fs.read(
          0,
          into,
          0,
          into.length,
          null,
          (error, count) => error ? reject(error) : resolve(count || null),
        )
      ),
    write: () => Promise.reject(new Error("Standard input is only read")),
    close: () => {},
  };
}

/** The process of Node.js or Bun. */
export function nodeProcess(): Process {
  const { process } = globalThis as unknown as { process: NodeGlobal };
  const fs = () => nodeModule<FileSystem>("node:fs")!;
  const isTerminal = (descriptor: number) =>
    nodeModule<{ isatty(descriptor: number): boolean }>("node:tty")!
      .isatty(descriptor);
  const outputStream = (descriptor: number): OutputStream => ({
    isTerminal: () => isTerminal(descriptor),
    write: (bytes) => attempt(() => fs().writeSync(descriptor, bytes)),
  });
  let input: Promise<ByteStream> | undefined;
  const openInput = () => input ??= inputStream();
  const inputStream = async (): Promise<ByteStream> => {
    const status = fs().fstatSync(0);
    // Node.js reads nothing from these.
    if (status.isBlockDevice() || status.isDirectory()) return readInput(fs());
    const { nodeStream } = await import("./node_sockets.ts");
    return nodeStream(process.stdin);
  };
  const commandLine = (): string[] | undefined => {
    try {
      const bytes = fs().readFileSync("/proc/self/cmdline");
      return new TextDecoder().decode(bytes).split("\0").slice(0, -1);
    } catch {
      return undefined;
    }
  };
  /** Whether Bun has compiled the program into an executable. */
  const isStandalone = /^(\/\$bunfs|[A-Z]:[\\/]~BUN)[\\/]/
    .test(process.argv[1] ?? "");
  return {
    args: process.argv.slice(2),
    pid: process.pid,
    get calledAs() {
      if (!isStandalone) return process.argv[1] ?? "";
      return commandLine()?.[0] ?? process.execPath;
    },
    get command() {
      const { execPath, execArgv, argv } = process;
      const known = commandLine();
      // The name of a link selects the program.
      if (known && isStandalone) return known;
      if (known) return [execPath, ...known.slice(1)];
      const own = isStandalone ? [] : [...execArgv, argv[1]];
      return [execPath, ...own, ...argv.slice(2)];
    },
    noColor: (process.env.NO_COLOR ?? "") !== "",
    columns: () => process.stdout?.columns ?? process.stderr?.columns,
    input: {
      isTerminal: () => isTerminal(0),
      read: async (into) => await (await openInput()).read(into),
    },
    output: outputStream(1),
    error: outputStream(2),
    variable: (name) => process.env[name],
    unsetVariable(name) {
      delete process.env[name];
    },
    exit: (code) => process.exit(code),
    raise: (signal) => process.kill(process.pid, signal),
    listen(signal, listener) {
      try {
        process.on(signal, listener);
        return true;
      } catch {
        return false; // The system has no such signal.
      }
    },
    unlisten: (signal, listener) => process.off(signal, listener),
    detach([program, ...args], variables) {
      const { spawn } = nodeModule<ChildProcesses>("node:child_process")!;
      const child = spawn(program, args, {
        env: { ...process.env, ...variables },
        stdio: ["ignore", "ignore", "pipe"],
        detached: true,
      });
      child.unref();
      return child.stderr;
    },
    async askSecret(question) {
      const { stdin } = process;
      if (!isTerminal(0) || !isTerminal(1) || !stdin.setRawMode) return null;
      const print = (text: string) =>
        fs().writeSync(1, new TextEncoder().encode(text));
      stdin.setRawMode(true);
      print(`${question} `);
      try {
        return await typedLine(
          await openInput(),
          () => process.kill(process.pid, SIGINT),
        );
      } finally {
        stdin.setRawMode(false);
        print("\n");
      }
    },
    status: (path) => statusOf(attempt(() => fs().statSync(path))),
    linkStatus: (path) => statusOf(attempt(() => fs().lstatSync(path))),
    readFile: (path) => attempt(() => fs().readFileSync(path)),
    writeFile: (path, bytes) => attempt(() => fs().writeFileSync(path, bytes)),
    writeOwn: (path, text) =>
      attempt(() => fs().writeFileSync(path, text, { mode: 0o600 })),
    makeTemporary(prefix, suffix) {
      const { tmpdir } = nodeModule<{ tmpdir(): string }>("node:os")!;
      const name = globalThis.crypto.randomUUID();
      const path = `${tmpdir()}/${prefix}${name}${suffix}`;
      attempt(() => fs().closeSync(fs().openSync(path, "wx", 0o600)));
      return path;
    },
    remove: (path) => attempt(() => fs().unlinkSync(path)),
    realPath: (path) => attempt(() => fs().realpathSync.native(path)),
    workingFolder: () => attempt(() => process.cwd()),
    async openInput(path): Promise<InputFile> {
      const file = await attemptLater(() => fs().promises.open(path));
      return {
        read: async (into) =>
          (await attemptLater(() => file.read(into))).bytesRead,
        [Symbol.dispose]: () => void file.close(),
      };
    },
  };
}

const SIGINT = 2;
const [CTRL_C, CTRL_D, BACKSPACE, LF, CR, DELETE] = [3, 4, 8, 10, 13, 127];

/** A line typed on a terminal. */
async function typedLine(
  input: ByteStream,
  interrupt: () => void,
): Promise<string> {
  let typed: number[] = [];
  const byte = new Uint8Array(1);
  while (await input.read(byte)) {
    const [code] = byte;
    if (code === CTRL_C) interrupt();
    if ([LF, CR, CTRL_C, CTRL_D].includes(code)) break;
    if (code === BACKSPACE || code === DELETE) {
      // A character may consist of several bytes of UTF-8.
      while (typed.length > 0 && (typed.at(-1)! & 0xc0) === 0x80) typed.pop();
      typed = typed.slice(0, -1);
    } else typed.push(code);
  }
  return new TextDecoder().decode(new Uint8Array(typed));
}

function statusOf(stats: Stats): PathStatus {
  const { size, blocks, mtimeMs, ctimeMs, dev, ino, rdev } = stats;
  const isBlockDevice = stats.isBlockDevice();
  return {
    isFile: stats.isFile(),
    isBlockDevice,
    isSocket: stats.isSocket(),
    isFifo: stats.isFIFO(),
    identity: isBlockDevice ? `device ${rdev}` : `file ${dev} ${ino}`,
    fingerprint: [size, blocks, mtimeMs, ctimeMs].join(),
  };
}
