/**
 * The protocol driver `handle`: a file opened by the program, a `Deno.FsFile`
 * or a `FileHandle` of `node:fs/promises`. The program closes it after the
 * image.
 *
 * @module
 */
import { checkSignal } from "../core/abort.ts";
import type { IoVector } from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { invalid } from "../core/errors.ts";
import { dataExtent, heldKind } from "../core/held.ts";
import type {
  AccessMode,
  BlockNode,
  Extent,
  RequestFlags,
} from "../core/node.ts";
import { type OptionTable, parseOptions } from "../core/options.ts";
import type { AdoptedFile, HostFile } from "../core/platform/files.ts";
import { localFiles } from "../core/platform/mod.ts";
import { valueText } from "../core/values.ts";

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  preallocation: {
    type: "enum",
    values: ["off"],
    default: "off",
    help: "Preallocation mode (allowed values: off)",
  },
};

/** `{driver: "handle", handle}`: an open file. */
export const handleDriver: BlockDriver = {
  name: "handle",
  role: "protocol",
  createOptions: CREATE_OPTIONS,
  parseFilename() {
    throw invalid("Unknown protocol 'handle'");
  },

  async open(options, context) {
    const { handle } = parseOptions({}, options, ["handle"]);
    const { file, isWritable } = await fileOf(handle);
    const isReadOnly = context.readOnly || !isWritable;
    return new HandleNode(file, context.filename, isReadOnly);
  },

  async create(options) {
    const { handle, size = 0 } = parseOptions(CREATE_OPTIONS, options, [
      "handle",
    ]);
    const { file } = await fileOf(handle);
    file.truncate(0);
    file.truncate(size as number);
  },
};

async function fileOf(handle: unknown): Promise<AdoptedFile> {
  const file = heldKind(handle) === "handle"
    ? await localFiles().adopt(handle as object)
    : undefined;
  if (file) return file;
  throw invalid(
    `Parameter 'handle' expects an open file, not ${valueText(handle)}`,
  );
}

class HandleNode implements BlockNode {
  readonly driver = handleDriver;
  readonly children = {};
  readonly #file: HostFile;
  readonly writev?: BlockNode["writev"];

  constructor(
    file: HostFile,
    readonly filename: string,
    public readOnly: boolean,
  ) {
    this.#file = file;
    if (readOnly) return;
    // deno-lint-ignore require-await -- the interface is asynchronous
    this.writev = async (offset, iov) => this.#file.pwritev(offset, iov);
  }

  get size(): number {
    return this.#file.size();
  }

  // deno-lint-ignore require-await
  async readv(offset: number, iov: IoVector): Promise<void> {
    this.#file.preadv(offset, iov);
  }

  // deno-lint-ignore require-await
  async truncate(size: number): Promise<void> {
    this.#file.truncate(size);
  }

  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    if (!this.readOnly) await this.#file.syncLater();
  }

  // deno-lint-ignore require-await
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    return dataExtent(this, offset, length);
  }

  // deno-lint-ignore require-await
  async setMode({ readOnly }: AccessMode): Promise<void> {
    this.readOnly = readOnly || !this.writev;
  }

  async close(): Promise<void> {}
}
