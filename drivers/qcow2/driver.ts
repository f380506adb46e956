/**
 * The format driver `qcow2`: its options, and how an image is opened.
 *
 * @module
 */
import type { BlockDriver, OpenContext } from "../../core/driver.ts";
import { invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import type { OptionValues } from "../../core/options.ts";
import { openBacking } from "../../core/parents.ts";
import type { ParsedOptions } from "./behaviour.ts";
import { Autoclear, Crypt, Incompatible } from "./format.ts";
import { hasBitmaps, type Header, probe, readHeader } from "./header.ts";
import type { ImageEncryption } from "./luks.ts";
import { Qcow2Node } from "./node.ts";
import {
  behaviourOf,
  cacheSizes,
  CHILDREN,
  parseOpenOptions,
} from "./options.ts";
import { Qcow2State } from "./state.ts";

/**
 * QEMU's copy-on-write format, versions 2 and 3.
 *
 * Options to open: `cache-size`, `l2-cache-size`, `l2-cache-entry-size` and
 * `refcount-cache-size`, in bytes.
 */
export const qcow2Driver: BlockDriver = {
  name: "qcow2",
  role: "format",
  strongOptions: ["encrypt.key-secret"],
  childNames: CHILDREN,
  probe,
  open,
  // Loaded on demand, to keep the start fast.
  loadTables: async () => (await import("./option_tables.ts")).TABLES,
  create: async (options, context) =>
    (await import("./create.ts")).create(options, context),
  async *stream(options, source) {
    yield* (await import("./stream.ts")).streamImage(options, source);
  },
  measure: async (options, source, context) =>
    (await import("./measure.ts")).measure(options, source, context),
};

async function open(
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode> {
  let parsed = await parseOpenOptions(options);
  const file = await context.openChild("file");
  const { purpose } = context;
  const policy = {
    readOnly: context.readOnly,
    forCheck: purpose === "check",
    warn: (message: string) => context.warn(message),
  };
  const header = await readHeader(file, policy);
  const dataFile = purpose === "info"
    ? undefined
    : await openDataFile(header, context);
  const { readOnly } = context;
  const behaviour = behaviourOf(parsed, header, context);
  const sizes = (header: Header) => cacheSizes(parsed, header);
  const state = new Qcow2State(
    file,
    header,
    readOnly,
    sizes(header),
    behaviour,
    dataFile,
  );
  if (purpose !== "info") await state.openData();
  const encryption = await encryptionOf(file, header, parsed, context);
  state.encryption = encryption.data;
  state.luks = encryption.luks;
  const load = async () => {
    await state.load();
    if (purpose !== "check") await loadSnapshots(state);
  };
  await load();
  const { backingFile, backingFormat } = header;
  state.backing = await openBacking(
    backingFile,
    backingFormat,
    options,
    context,
  );
  const adopt = (header: Header) => state.adopt(header, sizes(header));
  const reread = async () => {
    adopt(await readHeader(file, policy));
    await state.luks?.volume.refresh();
    await load();
  };
  const change = async (options: OptionValues) => {
    const next = await parseOpenOptions(options);
    const behaviour = behaviourOf(next, state.header, context);
    // Invalid options are refused before anything is changed.
    cacheSizes(next, state.header);
    state.cleaner?.cleanEvery(cleanInterval(next));
    if (!readOnly) await state.flushCaches();
    if (!readOnly && !behaviour.lazyRefcounts) await state.markClean();
    state.behaviour = behaviour;
    parsed = next;
    adopt(state.header);
  };
  state.cleaner?.cleanEvery(cleanInterval(parsed));
  const hooks = { reread, adopt, change };
  const node = new Qcow2Node(
    qcow2Driver,
    context.filename,
    state,
    hooks,
  );
  if (!readOnly && purpose === "check" && hasBitmaps(header)) {
    // A check must be possible although bitmaps are damaged: load them when
    // needed.
    state.recorder = {
      mark: async (offset, length) =>
        await (await state.loadBitmaps()).mark(offset, length),
    };
  }
  if (!readOnly && purpose === "io") {
    await node.prepareForWriting();
    // Before writing: bitmaps that cannot be loaded could not be kept up to
    // date.
    if (hasBitmaps(state.header)) await node.beginBitmaps();
  }
  return node;
}

/** Read the snapshot table of an image that is being opened. */
async function loadSnapshots(state: Qcow2State): Promise<void> {
  const { file, header } = state;
  // Loaded where there is one to be read.
  const table = header.snapshotCount === 0
    ? { entries: [], byteLength: 0 }
    : await (await import("./snapshot_table.ts"))
      .readSnapshotTable(file, header);
  state.snapshots = table.entries;
  state.snapshotTableLength = table.byteLength;
}

/** The encryption of the image, if it has any. */
async function encryptionOf(
  file: BlockNode,
  header: Header,
  { values: options }: ParsedOptions,
  context: OpenContext,
): Promise<ImageEncryption> {
  const isPlain = header.cryptMethod === Crypt.NONE;
  if (isPlain && options["encrypt.format"] === undefined) return {};
  const { openEncryption } = await import("./encryption.ts");
  return await openEncryption(file, header, options, context);
}

/**
 * Open the data file that the options describe, or else the one in the header.
 */
async function openDataFile(
  { incompatible, autoclear, dataFile }: Header,
  context: OpenContext,
): Promise<BlockNode | undefined> {
  const child = "data-file";
  const isWanted = (incompatible.low & Incompatible.DATA_FILE) !== 0;
  if (context.describes(child)) {
    const node = await context.openChild(child);
    if (isWanted) return node;
    throw invalid(
      "'data-file' can only be set for images with an external data file",
    );
  }
  if (isWanted) {
    if (dataFile) return await context.openNamed(child, dataFile);
    throw invalid("'data-file' is required for this image");
  }
  if (autoclear.low & Autoclear.RAW_EXTERNAL_DATA) {
    throw invalid("data-file-raw requires a data file");
  }
}

/** Seconds after which unused tables are dropped. */
function cleanInterval({ values }: ParsedOptions): number {
  return values["cache-clean-interval"] as number | undefined ?? 600;
}
