/**
 * Creating images.
 *
 * @module
 */
import type { CreateOptionsOf } from "./create_options.ts";
import type { BlockDriver, CreateContext } from "./driver.ts";
import { checkOptions, checkStoredName, driverError } from "./checks.ts";
import { asBlockError, BlockError, invalid } from "./errors.ts";
import {
  canonicalName,
  describeSource,
  protocolStack,
  standsForProtocol,
  withoutScheme,
} from "./sources.ts";
import { asPath, resolveName, schemeOf } from "./names.ts";
import type { BlockNode, Preallocation } from "./node.ts";
import { openNode, openProtocol, secretOf } from "./open.ts";
import {
  defaultOptions,
  newImageOptions,
  type OptionValues,
  parseOptions,
} from "./options.ts";
import { findDriver, getDriver, loadDriver, loadFormat } from "./registry.ts";
import type { SecretSource } from "./secrets.ts";
import type { Source, StackObject } from "./spec.ts";

/**
 * Options of creating an image, besides those of the format.
 *
 * @category Images
 */
export interface CreateOptions {
  /** Where the keys of encrypted images come from. */
  secrets?: SecretSource;
  /**
   * Called if a file cannot be locked, before anything in it is lost; `why` is
   * a sentence. Default: ignored; the image is created all the same.
   */
  onUnlocked?(why: string): void;
  /**
   * Whether further files, such as a data file, are made as plain files even if
   * their names begin with the name of a protocol. Default: false.
   */
  plainNames?: boolean;
  /** Called with each warning. Default: ignored. */
  warn?(message: string): void;
  /**
   * Called with the name of each further file of the image before it is
   * created, emptied or reused; may throw to prevent that.
   */
  onPart?(filename: string): void;
}

/**
 * Create an image. `target` names its file, or describes the protocol node.
 * Existing content is lost, but only once all options have been validated.
 *
 * @param format A registered format, such as `qcow2` or `raw`.
 * @param target A file name, or the description of a protocol node.
 * @param options The format's create options; `size` in bytes. Those of the
 * drivers here are typed; for other formats, any are accepted here.
 * @throws {BlockError} EINVAL for invalid options, and the protocol's errors
 * for the target.
 *
 * @example
 * ```ts
 * import { createImage, MemoryStore } from "@bdrv/bdrv";
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 10 * 1024 ** 3, cluster_size: 4096 });
 * ```
 *
 * @category Images
 */
export async function createImage<Format extends string>(
  format: Format,
  target: Source,
  options?: CreateOptionsOf<Format>,
  settings: CreateOptions = {},
): Promise<void> {
  try {
    await create(
      format,
      target,
      (options === undefined ? {} : options) as OptionValues,
      settings,
    );
  } catch (error) {
    throw asBlockError(error);
  }
}

async function create(
  format: string,
  target: Source,
  options: OptionValues,
  settings: CreateOptions,
): Promise<void> {
  const driver = await loadFormat(format);
  checkOptions("create an image", settings, {});
  if (!driver.create || !driver.createOptions) {
    throw new BlockError(
      "ENOTSUP",
      `Format driver '${format}' does not support image creation`,
    );
  }
  const table = driver.createOptions;
  const parsed = parseOptions(
    newImageOptions(driver, await protocolOf(target)),
    options,
  );
  checkStoredName(parsed.backing_file);
  checkOtherBacking(target, parsed.backing_file);
  if (driver.role === "protocol") {
    // A file without a format driver is opened as it is.
    const stack = { ...protocolStack(target), driver: format };
    const file = await createFile(stack, parsed, settings);
    return await file.close();
  }
  const fileOptions: OptionValues = {};
  for (const name of Object.keys(parsed)) {
    if (Object.hasOwn(table, name)) continue;
    fileOptions[name] = parsed[name];
    delete parsed[name];
  }
  const filename = describeSource(target);
  const files: BlockNode[] = [];
  const make = async (
    target: Source,
    size: number,
    preallocation?: Preallocation,
  ) => {
    const options = {
      ...fileOptions,
      size,
      ...(preallocation && { preallocation }),
    };
    const file = await createFile(target, options, settings);
    files.push(file);
    return file;
  };
  const context: CreateContext = {
    filename,
    createFile: (size, preallocation) => make(target, size, preallocation),
    createNamed: async (name, { keep = false } = {}) => {
      const path = settings.plainNames && !keep && withoutScheme(name);
      if (typeof path === "string") {
        settings.onPart?.(asPath(path));
        const file = await make({ driver: "file", filename: path }, 0);
        // Its name has to lead to it, also when the image is opened.
        if (path !== name || schemeOf(name) === undefined) return file;
      } else {
        settings.onPart?.(name);
        if (!keep) return await make(await protocolOfName(name), 0);
      }
      await checkProtocol(name);
      const { onUnlocked } = settings;
      const file = await openProtocol(name, { resize: true, onUnlocked });
      files.push(file);
      return file;
    },
    createPart: async (name, size, preallocation, fill) => {
      const beside = besides(target, name);
      settings.onPart?.(describeSource(beside));
      const part = await createFile(beside, {
        ...fileOptions,
        size,
        ...(preallocation && { preallocation }),
      }, settings);
      try {
        await fill(part);
        await part.flush?.();
      } finally {
        await part.close();
      }
    },
    openBeside: (name) =>
      openNode(resolveName(namedBase(target), name), {
        purpose: "info",
        readOnly: true,
        forceShare: true,
        backing: false,
        gate: "allow",
      }),
    unlocked: (why) => settings.onUnlocked?.(why),
    warn: (message) => settings.warn?.(message),
    secret: (id) => secretOf(settings.secrets, id, filename),
  };
  try {
    await driver.create({ ...defaultOptions(table), ...parsed }, context);
    for (const file of files) await file.flush?.();
  } catch (error) {
    throw driverError(driver, error);
  } finally {
    for (const file of files) await file.close();
  }
}

/**
 * Refuse an image that would be its own backing file, under whatever name: its
 * content would be lost.
 */
function checkOtherBacking(target: Source, backing: unknown): void {
  const { filename } = protocolStack(target);
  if (!backing || typeof backing !== "string") return;
  if (typeof filename !== "string" || backing.startsWith("json:")) return;
  const name = canonicalName(resolveName(filename, backing));
  if (name !== canonicalName(filename)) return;
  throw invalid(
    "Trying to create an image with the same filename as the backing file",
  );
}

/**
 * The protocol of a further file, which can create it.
 *
 * @throws {BlockError} EINVAL if it is none, ENOTSUP if it cannot create files.
 */
async function protocolOfName(name: string): Promise<StackObject> {
  // A description is not the name of a file.
  if (name.startsWith("json:")) throw invalid("Unknown protocol 'json'");
  const { stack, driver } = await checkProtocol(name);
  if (driver.role === "protocol" && driver.create) return stack;
  throw new BlockError(
    "ENOTSUP",
    `Driver '${driver.name}' does not support image creation`,
  );
}

/** @throws {BlockError} EINVAL if the name begins with that of a format. */
async function checkProtocol(name: string) {
  const stack = protocolStack(name);
  const driver = await loadDriver(getDriver(String(stack.driver)));
  if (standsForProtocol(driver)) return { stack, driver };
  throw invalid(`Unknown protocol '${driver.name}'`);
}

/** The driver that creates the file of a new image, if there is one. */
async function protocolOf(target: Source): Promise<BlockDriver | undefined> {
  const found = findDriver(String(protocolStack(target).driver));
  return found && await loadDriver(found);
}

/** Describe the file called `name` in the folder of `target`. */
function besides(target: Source, name: string): StackObject {
  const stack = protocolStack(target);
  return { ...stack, filename: resolveName(namedBase(target), name) };
}

/** @throws {BlockError} EINVAL if it has no folder. */
function namedBase(target: Source): string {
  const { driver, filename } = protocolStack(target);
  if (typeof filename === "string") return filename;
  throw invalid(`Cannot generate a base directory for ${driver} nodes`);
}

function noFile(): never {
  throw new BlockError("EINVAL", "A protocol has no file below it");
}

/**
 * Create or empty the file at the bottom of a stack, and open it.
 *
 * @param wanted Options of the new file; those that its protocol does not know
 * are ignored.
 */
async function createFile(
  target: Source,
  wanted: OptionValues,
  { onUnlocked, warn, secrets }: CreateOptions,
): Promise<BlockNode> {
  const stack = protocolStack(target);
  const name = String(stack.driver);
  const protocol = await loadDriver(getDriver(name));
  if (protocol.role !== "protocol" || !protocol.create) {
    throw new BlockError(
      "ENOTSUP",
      `Protocol driver '${name}' does not support image creation`,
    );
  }
  const { driver: _, ...options } = stack;
  const known = protocol.createOptions ?? { size: 0, preallocation: "off" };
  const values: OptionValues = {};
  for (const [name, value] of Object.entries(wanted)) {
    if (Object.hasOwn(known, name)) values[name] = value;
  }
  const { size = 0, preallocation = "off" } = wanted;
  if (preallocation === "metadata") {
    throw new BlockError("ENOTSUP", "Unsupported preallocation mode: metadata");
  }
  const filename = describeSource(stack);
  await protocol.create({ ...options, ...values, size, preallocation }, {
    filename,
    createFile: noFile,
    createNamed: noFile,
    createPart: noFile,
    openBeside: noFile,
    unlocked: (why) => onUnlocked?.(why),
    warn: (message) => warn?.(message),
    secret: (id) => secretOf(secrets, id, filename),
  });
  return await openProtocol(stack, { resize: true, onUnlocked, secrets });
}
