/**
 * Descriptions of images in words.
 *
 * @module
 */
import type { NodeInfo } from "../core/node.ts";
import { bytesText } from "../core/picture/sheet.ts";
import type { Description, Target } from "./messages.ts";
import type { Opened } from "./opening.ts";
import type { Session } from "./session.ts";

/** What it can be converted to. */
const TARGETS: readonly Target[] = [
  { text: "qcow2", format: "qcow2" },
  { text: "qcow2, compact (zstd)", format: "qcow2", compression: "zstd" },
  {
    text: "qcow2, compact (zlib, for old programs)",
    format: "qcow2",
    compression: "zlib",
  },
  { text: "raw", format: "raw" },
];

/** Describe an image. */
export async function describe(
  { opened, overlay }: Session,
): Promise<Description> {
  const { image, chain, locked, inspection } = opened;
  const info = await image.node.info?.() ?? {};
  const snapshots = await image.node.snapshots?.list() ?? [];
  const edits = {
    name: "your edits, kept in this browser",
    format: "qcow2",
    size: image.size,
    isEdits: true,
  };
  return {
    name: chain[0].name,
    facts: factsOf(opened, info),
    findings: inspection.findings.map(({ severity, message }) =>
      `${severity}: ${message}`
    ),
    chain: overlay ? [edits, ...chain] : chain,
    ...(locked !== undefined && { locked }),
    snapshots: snapshots.map(({ id, name, dateSeconds, diskSize }) => ({
      id,
      name,
      date: dateSeconds * 1000,
      size: diskSize,
    })),
    bitmaps: overlay ? [] : info.bitmaps?.map(({ name }) => name) ?? [],
    targets: TARGETS,
  };
}

function factsOf(
  { image, chain, inspection, packing }: Opened,
  info: NodeInfo,
): (readonly [string, string])[] {
  const file = image.node.children.file;
  const facts: [string, string | undefined][] = [
    ["Image", chain[0].name],
    ["Format", image.format],
    ["Packed in", packing.join(", ") || undefined],
    ["Verdict of inspect", inspection.verdict],
    ["Disk", bytesText(image.size)],
    ["Partition table", inspection.partitionTable?.type],
    ["File system", inspection.fileSystem],
    ["File", file && bytesText(file.size)],
    ["Cluster", info.clusterSize && bytesText(info.clusterSize) || undefined],
    ["Encrypted", info.encrypted ? "yes" : undefined],
    [
      "Closed properly",
      info.dirty === undefined ? undefined : yes(!info.dirty),
    ],
    ["Backing file", info.backingFile],
    ["Bitmaps", info.bitmaps?.map(({ name }) => name).join(", ") || undefined],
  ];
  for (const [name, value] of Object.entries(info.specific?.data ?? {})) {
    if (typeof value === "object") continue;
    const text = typeof value === "boolean" ? yes(value) : String(value);
    facts.push([name.replaceAll("-", " "), text]);
  }
  return facts.filter((fact): fact is [string, string] =>
    fact[1] !== undefined
  );
}

function yes(value: boolean): string {
  return value ? "yes" : "no";
}
