/** `info`: describe an image. @module */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode, NodeInfo, Snapshot } from "../../core/node.ts";
import { nameOf, resolveFrom } from "../../core/node_names.ts";
import type { CacheMode } from "../../core/open_options.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type ImageSettings,
  type Invocation,
  OBJECT,
  OUTPUT,
  outputFormat,
} from "../command.ts";
import { cacheMode, openImageArgument, usingNodes } from "../images.ts";
import { detailLines, type Json, prettyJson } from "../json.ts";
import { humanSize, integerText } from "../numbers.ts";
import { CommandError, type Program } from "../program.ts";
import { inRelease, knownDetails } from "../qemu_releases.ts";

/** The description of one image. */
interface Description {
  filename: string;
  format: string;
  size: number;
  /** The resolved name of the backing file. */
  fullBackingFile?: string;
  info: NodeInfo;
  snapshots: Snapshot[];
  /** The snapshot list for people. */
  snapshotLines: readonly string[];
  /** The limits of its requests, if requested. */
  limits?: Record<string, number>;
  /** Its children, except for the backing file. */
  children: [role: string, child: Description][];
}

/** The command. */
export const command: Command = {
  summary: "Describe an image",
  operands: "FILE",
  options: [
    HELP,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    FORMAT,
    OUTPUT,
    {
      long: "backing-chain",
      help: "describe the whole backing chain",
    },
    {
      short: "t",
      long: "cache",
      argument: "CACHE",
      help: "cache mode: writeback, none, unsafe, \u2026",
    },
    {
      long: "limits",
      help: "show the limits of requests, such as an alignment",
    },
  ],

  async run(invocation) {
    const { program } = invocation;
    const { output, ...settings } = parse(invocation);
    const { chain } = settings;
    const { image } = invocation;
    const [file] = invocation.operands;
    const images = await describeChain(program, file, settings, image);
    if (output === "human") {
      const texts = images.map((image) =>
        humanLines(image).map((line) => `${line}\n`).join("")
      );
      program.print(texts.join("\n"));
    } else {
      const described = images.map(jsonOf);
      program.print(`${prettyJson(chain ? described : described[0])}\n`);
    }
    return 0;
  },
};

function parse(invocation: Invocation) {
  let output: string | undefined;
  let chain = false;
  let cache: CacheMode | undefined;
  let limits = false;
  for (const [option, argument] of invocation.options()) {
    if (option === "output") output = argument;
    else if (option === "backing-chain") chain = true;
    else if (option === "t") cache = cacheMode(argument, "cache option");
    else if (option === "limits") limits = true;
  }
  invocation.expectOneImage();
  return { output: outputFormat(output), chain, cache, limits };
}

/**
 * Describe an image and, on request, its backing chain, opening each image
 * separately.
 */
async function describeChain(
  program: Program,
  file: string,
  { chain, cache, limits }: Omit<ReturnType<typeof parse>, "output">,
  image: ImageSettings,
): Promise<Description[]> {
  const images: Description[] = [];
  const seen = new Set<string>();
  for (let name: string | undefined = file; name !== undefined;) {
    if (seen.has(name)) {
      throw new CommandError(
        `Backing file '${name}' creates an infinite loop.`,
      );
    }
    seen.add(name);
    const node = await openImageArgument(program, name, {
      ...image,
      purpose: "info",
      backing: false,
      cache,
    });
    const described = await usingNodes([node], () => describe(node, limits));
    // QEMU guards the first sector of what was probed.
    if (described.limits && isProbedRaw(described, name, image)) {
      described.limits["request-alignment"] = SECTOR_SIZE;
    }
    const { bitmapsFault } = described.info;
    if (bitmapsFault !== undefined) {
      program.warn(`'${name}': the bitmaps cannot be listed: ${bitmapsFault}`);
    }
    images.push(described);
    name = chain ? nextInChain(described) : undefined;
    const { forceShare } = image;
    image = { format: described.info.backingFormat, forceShare };
  }
  return images;
}

/** Whether a raw image's format was guessed. */
function isProbedRaw(
  { format }: Description,
  name: string,
  image: ImageSettings,
): boolean {
  const isDescribed = (image.imageOpts || name.startsWith("json:")) &&
    /(^|[{,])\s*["']?driver\b/.test(name.replace(/^json:/, ""));
  return format === "raw" && image.format === undefined && !isDescribed;
}

function nextInChain({ info, fullBackingFile }: Description) {
  if (info.backingFile === undefined || fullBackingFile !== undefined) {
    return fullBackingFile;
  }
  throw new CommandError(
    "Could not determine absolute backing filename, but backing filename " +
      `'${info.backingFile}' present`,
  );
}

async function describe(
  node: BlockNode,
  limits: boolean,
): Promise<Description> {
  const snapshots = await node.snapshots?.list() ?? [];
  const info = await ownInfo(node);
  const { backingFile } = info;
  return {
    filename: nameOf(node),
    format: node.driver.name,
    size: roundUp(node.size, SECTOR_SIZE),
    fullBackingFile: backingFile === undefined
      ? undefined
      : fullName(node, backingFile),
    info: { ...info, actualSize: await actualSizeOf(node) },
    snapshots,
    snapshotLines: snapshots.length > 0
      ? (await import("../snapshots.ts")).snapshotList(snapshots)
      : [],
    ...(limits && {
      limits: (await import("../limits.ts")).limitsOf(node),
    }),
    children: inRelease("childInfo")
      ? await describeChildren(node, limits)
      : [],
  };
}

/** Describe the children of a node, in QEMU's order: the latest first. */
async function describeChildren(
  node: BlockNode,
  limits: boolean,
): Promise<Description["children"]> {
  const children: Description["children"] = [];
  for (const [role, child] of Object.entries(node.children).reverse()) {
    if (child && role !== "backing") {
      children.push([role, await describe(child, limits)]);
    }
  }
  return children;
}

/** A filter's info is mostly that of its file. */
async function ownInfo(node: BlockNode): Promise<NodeInfo> {
  const info = await node.info?.() ?? {};
  if (inRelease("fileSpecific").includes(node.driver.name)) {
    return { ...info, specific: { type: "file", data: {} } };
  }
  if (node.driver.role !== "filter") return info;
  const { clusterSize, dirty } = info;
  return { clusterSize, dirty };
}

/** The resolved name of a backing file, if it can be determined. */
function fullName(node: BlockNode, backingFile: string): string | undefined {
  try {
    return resolveFrom(node, backingFile);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return undefined;
  }
}

/** Bytes of storage that an image takes up, without backing files. */
async function actualSizeOf(node: BlockNode): Promise<number | undefined> {
  const { role, schemes } = node.driver;
  if (role === "protocol") return (await node.info?.())?.actualSize;
  // For QEMU, a filter that stands in for a protocol has no size.
  if (schemes) return undefined;
  let sum: number | undefined;
  for (const [role, child] of Object.entries(node.children)) {
    if (role === "backing" || !child) continue;
    const size = await actualSizeOf(child);
    if (size === undefined) return undefined;
    sum = (sum ?? 0) + size;
  }
  return sum;
}

function jsonOf({ info, ...image }: Description): Json {
  return {
    "limits": image.limits,
    "filename": image.filename,
    "format": image.format,
    "dirty-flag": info.dirty,
    "actual-size": info.actualSize,
    "virtual-size": info.sizeUnknown ? undefined : image.size,
    "cluster-size": info.clusterSize,
    "encrypted": info.encrypted || undefined,
    "backing-filename": info.backingFile,
    "full-backing-filename": image.fullBackingFile,
    "backing-filename-format": info.backingFile === undefined
      ? undefined
      : info.backingFormat,
    "snapshots": image.snapshots.length
      ? image.snapshots.map(jsonOfSnapshot)
      : undefined,
    "format-specific": knownDetails(info.specific as Json),
    "children": inRelease("childInfo")
      ? image.children.map(([name, child]) => ({ name, info: jsonOf(child) }))
      : undefined,
  };
}

function jsonOfSnapshot(snapshot: Snapshot): Json {
  return {
    "id": snapshot.id,
    "name": snapshot.name,
    "vm-state-size": snapshot.vmStateSize,
    "date-sec": snapshot.dateSeconds,
    "date-nsec": snapshot.dateNanoseconds,
    "vm-clock-sec": Number(snapshot.vmClockNanoseconds / 1_000_000_000n),
    "vm-clock-nsec": Number(snapshot.vmClockNanoseconds % 1_000_000_000n),
    "icount": snapshot.icount,
  };
}

/** `path` leads to a child from the top. */
function humanLines({ info, ...image }: Description, path = ""): string[] {
  // QEMU takes a child without children for a protocol.
  const isFile = path !== "" && image.children.length === 0;
  const lines = [
    `${isFile ? "filename" : "image"}: ${image.filename}`,
    `${isFile ? "protocol type" : "file format"}: ${image.format}`,
    `${isFile ? "file length" : "virtual size"}: ${
      info.sizeUnknown
        ? "unavailable"
        : `${humanSize(image.size)} (${integerText(image.size)} bytes)`
    }`,
    `disk size: ${
      info.actualSize === undefined ? "unavailable" : humanSize(info.actualSize)
    }`,
  ];
  if (info.encrypted) lines.push("encrypted: yes");
  if (info.clusterSize) lines.push(`cluster_size: ${info.clusterSize}`);
  if (info.dirty) lines.push("cleanly shut down: no");
  if (info.backingFile !== undefined) {
    const { fullBackingFile: full } = image;
    const place = full === undefined
      ? " (cannot determine actual path)"
      : full === info.backingFile
      ? ""
      : ` (actual path: ${full})`;
    lines.push(`backing file: ${info.backingFile}${place}`);
    if (info.backingFormat !== undefined) {
      lines.push(`backing file format: ${info.backingFormat}`);
    }
  }
  if (image.limits) {
    lines.push("Block limits:");
    for (const [name, value] of Object.entries(image.limits)) {
      lines.push(`    ${name.replaceAll("-", " ")}: ${value}`);
    }
  }
  if (image.snapshots.length) {
    lines.push("Snapshot list:", ...image.snapshotLines);
  }
  const details = detailLines(
    knownDetails(info.specific?.data as Json) ?? {},
    "    ",
  );
  if (details.length > 0 || (info.specific && inRelease("emptyDetails"))) {
    lines.push("Format specific information:", ...details);
  }
  for (const [role, child] of image.children) {
    const place = `${path}/${role}`;
    lines.push(`Child node '${place}':`);
    lines.push(...humanLines(child, place).map((line) => `    ${line}`));
  }
  return lines;
}
