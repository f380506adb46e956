/**
 * The process under Deno.
 *
 * @module
 */
import { attempt, attemptLater, hostError } from "./system_calls.ts";
import type { OutputStream, PathStatus, Process } from "./process.ts";

/** Deno's process; `null` in another runtime. */
export function denoProcess(): Process | null {
  if (!("Deno" in globalThis)) return null;
  return {
    args: Deno.args,
    pid: Deno.pid,
    get calledAs() {
      if (!Deno.build.standalone) return "";
      // On Linux, the path of the executable does not reveal the link it was
      // called by.
      return commandLine()?.[0] ?? Deno.execPath();
    },
    get command() {
      const known = commandLine();
      // The name of a link selects the program.
      if (known && Deno.build.standalone) return known;
      if (known) return [Deno.execPath(), ...known.slice(1)];
      const own = Deno.build.standalone ? [] : ["run", "-A", Deno.mainModule];
      return [Deno.execPath(), ...own, ...Deno.args];
    },
    noColor: Deno.noColor,
    columns() {
      try {
        return Deno.consoleSize().columns;
      } catch {
        return undefined;
      }
    },
    input: {
      isTerminal: () => Deno.stdin.isTerminal(),
      read: (into) => attemptLater(() => Deno.stdin.read(into)),
    },
    output: outputStream(Deno.stdout),
    error: outputStream(Deno.stderr),
    variable(name) {
      const { state } = Deno.permissions.querySync({
        name: "env",
        variable: name,
      });
      return state === "granted" ? Deno.env.get(name) : undefined;
    },
    unsetVariable: (name) => Deno.env.delete(name),
    exit: (code) => Deno.exit(code) as never,
    raise(signal) {
      // `Deno.kill` takes only signal names.
      const { process } = globalThis as unknown as {
        process: {
          readonly pid: number;
          kill(pid: number, signal: number): void;
        };
      };
      process.kill(process.pid, signal);
    },
    listen(signal, listener) {
      try {
        Deno.addSignalListener(signal as Deno.Signal, listener);
        return true;
      } catch {
        return false;
      }
    },
    unlisten(signal, listener) {
      try {
        Deno.removeSignalListener(signal as Deno.Signal, listener);
      } catch {
        // The system has no such signal.
      }
    },
    detach([program, ...args], variables) {
      const child = new Deno.Command(program, {
        args,
        env: variables,
        stdin: "null",
        stdout: "null",
        stderr: "piped",
        detached: true,
      }).spawn();
      child.unref();
      return child.stderr;
    },
    async askSecret(question) {
      const { promptSecret } = await import("@std/cli/prompt-secret");
      return promptSecret(question, { mask: "" });
    },
    status: (path) => statusOf(attempt(() => Deno.statSync(path))),
    linkStatus: (path) => statusOf(attempt(() => Deno.lstatSync(path))),
    readFile: (path) => attempt(() => Deno.readFileSync(path)),
    writeFile: (path, bytes) => attempt(() => Deno.writeFileSync(path, bytes)),
    writeOwn: (path, text) =>
      attempt(() => Deno.writeTextFileSync(path, text, { mode: 0o600 })),
    makeTemporary: (prefix, suffix) =>
      attempt(() => Deno.makeTempFileSync({ prefix, suffix })),
    remove: (path) => attempt(() => Deno.removeSync(path)),
    realPath: (path) => attempt(() => Deno.realPathSync(path)),
    workingFolder: () => attempt(() => Deno.cwd()),
    openInput: (path) => attemptLater(() => Deno.open(path)),
  };
}

/** The command line of this process, where the system reveals it. */
function commandLine(): string[] | undefined {
  try {
    return Deno.readTextFileSync("/proc/self/cmdline").split("\0").slice(0, -1);
  } catch {
    return undefined;
  }
}

function outputStream(stream: typeof Deno.stdout): OutputStream {
  return {
    isTerminal: () => stream.isTerminal(),
    write(bytes) {
      try {
        return stream.writeSync(bytes);
      } catch (error) {
        throw hostError(error);
      }
    },
  };
}

function statusOf(info: Deno.FileInfo): PathStatus {
  const { size, blocks, mtime, ctime, dev, ino, rdev } = info;
  const isBlockDevice = info.isBlockDevice === true;
  return {
    isFile: info.isFile,
    isBlockDevice,
    isSocket: info.isSocket === true,
    isFifo: info.isFifo === true,
    identity: isBlockDevice ? `device ${rdev}` : `file ${dev} ${ino}`,
    fingerprint: [size, blocks, mtime?.getTime(), ctime?.getTime()].join(),
  };
}
