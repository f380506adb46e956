/**
 * What a command line needs of a runtime: arguments, standard streams, signals
 * and exit. Libraries do not need these, so they are not part of
 * {@linkcode Platform}.
 *
 * @module
 */
/** A stream to write to. */
export interface OutputStream {
  /** Whether it is a terminal. */
  isTerminal(): boolean;
  /**
   * Write some of the bytes at once; returns how many.
   *
   * @throws {BlockError} EAGAIN if a nonblocking pipe is full, EPIPE if nobody
   * reads it.
   */
  write(bytes: Uint8Array): number;
}

/** Standard input. */
export interface InputStream {
  /** Whether it is a terminal. */
  isTerminal(): boolean;
  /** Read available bytes, at least one; `null` at the end. */
  read(into: Uint8Array): Promise<number | null>;
}

/** The status of a path. */
export interface PathStatus {
  readonly isFile: boolean;
  readonly isBlockDevice: boolean;
  readonly isSocket: boolean;
  readonly isFifo: boolean;
  /** Equal for two names of the same file or device. */
  readonly identity: string;
  /** Changes when it is written to. */
  readonly fingerprint: string;
}

/**
 * A process. All functions on paths throw {@linkcode BlockError}, as the file
 * driver's do.
 */
export interface Process {
  /** The arguments, without the program's name. */
  readonly args: readonly string[];
  /** The process ID. */
  readonly pid: number;
  /**
   * The path under which the program was called, with links unresolved; empty
   * if only the runtime was called.
   */
  readonly calledAs: string;
  /** The command that started this process, the runtime included. */
  readonly command: readonly string[];
  /** Whether the user wants no colours. */
  readonly noColor: boolean;
  /** The width of the terminal in columns, if known. */
  columns(): number | undefined;
  readonly input: InputStream;
  readonly output: OutputStream;
  readonly error: OutputStream;
  /** An environment variable, read without prompting for a permission. */
  variable(name: string): string | undefined;
  /** Remove a variable from the environment. */
  unsetVariable(name: string): void;
  /** End the process. */
  exit(code: number): never;
  /** Send this process a signal. */
  raise(signal: number): void;
  /**
   * Call `listener` upon a signal, which then does not end the process.
   *
   * @returns whether the system has that signal.
   */
  listen(signal: string, listener: () => void): boolean;
  /** Undo {@linkcode Process.listen}. */
  unlisten(signal: string, listener: () => void): void;
  /**
   * Start a process that outlives this one.
   *
   * @returns what it writes to standard error.
   */
  detach(
    command: readonly string[],
    variables: { readonly [name: string]: string },
  ): AsyncIterable<Uint8Array>;
  /** Ask for a secret on the terminal; `null` where there is none. */
  askSecret(question: string): Promise<string | null>;
  /** The status of a path, following links. */
  status(path: string): PathStatus;
  /** The status of a path, without following a link. */
  linkStatus(path: string): PathStatus;
  /** The content of a file. */
  readFile(path: string): Uint8Array;
  /** Write a file, replacing an existing one. */
  writeFile(path: string, bytes: Uint8Array): void;
  /** Write a file that only its owner may read. */
  writeOwn(path: string, text: string): void;
  /** Create an empty file in the system's folder for temporary files. */
  makeTemporary(prefix: string, suffix: string): string;
  /** Remove a file or a link. */
  remove(path: string): void;
  /** The absolute path of a file, all links followed. */
  realPath(path: string): string;
  /** The current folder. */
  workingFolder(): string;
  /**
   * Open a file, device or pipe for reading from front to back. Opening a pipe
   * waits for its writer.
   */
  openInput(path: string): Promise<InputFile>;
}

/** An open file, read from front to back. */
export interface InputFile extends Disposable {
  /** Read some bytes; `null` or 0 at the end. */
  read(into: Uint8Array): Promise<number | null>;
}
