/** `inspect`: examine an image before opening it. @module */
import { asBlockError } from "../../core/errors.ts";
import {
  inspect,
  type Inspection,
  type InspectOptions,
} from "../../core/jobs/inspect.ts";
import { process } from "../../core/platform/this_process.ts";
import { parseStack } from "../../core/spec.ts";
// Registers the drivers.
import "../../drivers/all.ts";
import {
  type Command,
  FORCE_SHARE,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  OUTPUT,
  outputFormat,
} from "../command.ts";
import { type Json, prettyJson } from "../json.ts";
import { humanSize, integerText } from "../numbers.ts";
import { CommandError } from "../program.ts";
import { inputChunks, inputFile } from "../standard_streams.ts";

/** Exit codes by verdict; 1 is for images that cannot be read. */
const EXIT_CODES = { safe: 0, unsafe: 2, suspect: 3 } as const;

/** The command. */
export const command: Command = {
  summary: "Inspect an image, and report risks, before opening it",
  operands: "FILE",
  options: [
    HELP,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    OUTPUT,
    {
      long: "whole",
      help: "read a pipe to its end, where footers are",
    },
  ],
  notes:
    "FILE may be a pipe, and is '-' for standard input. At most 1 MiB is " +
    "read, and\nno file that the image names is opened. The exit code is 0 " +
    "without findings\nother than notes, 3 after warnings, 2 if there is a " +
    "danger, and 1 if the image\ncannot be read.",

  async run(invocation) {
    let output: string | undefined;
    let whole = false;
    for (const [option, argument] of invocation.options()) {
      if (option === "output") output = argument;
      else if (option === "whole") whole = true;
    }
    const format = outputFormat(output);
    invocation.expectOneImage();
    const [filename] = invocation.operands;
    const inspection = await inspectArgument(invocation, filename, { whole });
    invocation.program.print(
      format === "json"
        ? `${prettyJson(jsonOf(filename, inspection))}\n`
        : humanLines(filename, inspection).map((line) => `${line}\n`).join(""),
    );
    return EXIT_CODES[inspection.verdict];
  },
};

async function inspectArgument(
  { program, image }: Invocation,
  text: string,
  given: InspectOptions,
): Promise<Inspection> {
  const { forceShare, imageOpts } = image;
  const options = { ...given, forceShare };
  try {
    if (text === "-" && !imageOpts) {
      if (process.input.isTerminal()) {
        throw new CommandError("Standard input is a terminal, not an image");
      }
      return await inspect(inputFile() ?? inputChunks(), options);
    }
    if (!imageOpts && isPipe(text)) {
      const { openInTime } = await import("../io/source_file.ts");
      using pipe = await openInTime(text);
      return await inspect(inputChunks(pipe), options);
    }
    const source = imageOpts
      ? parseStack(text, (message) => program.warn(message))
      : text;
    return await inspect(source, options);
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw asBlockError(error).prefixed(`Could not inspect '${text}': `);
  }
}

/** Whether it is the name of a pipe, as of `<(…)` in a shell. */
function isPipe(text: string): boolean {
  try {
    return process.status(text).isFifo;
  } catch {
    return false;
  }
}

/** As `docs/inspect.schema.json` describes it. */
function jsonOf(filename: string, inspection: Inspection): Json {
  const { partitionTable, files, findings } = inspection;
  return {
    "filename": filename,
    "format": inspection.format,
    "matches": [...inspection.matches],
    "verdict": inspection.verdict,
    "file-size": inspection.fileSize,
    "virtual-size": inspection.virtualSize,
    "bytes-read": inspection.bytesRead,
    "encrypted": inspection.encrypted,
    "snapshots": inspection.snapshots,
    "partition-table": partitionTable && { ...partitionTable },
    "file-system": inspection.fileSystem,
    "files": files.map((file) => ({ ...file })),
    "findings": findings.map((finding) => ({ ...finding })),
  };
}

function humanLines(filename: string, inspection: Inspection): string[] {
  const { format, matches, fileSize, virtualSize } = inspection;
  const { partitionTable, fileSystem, files, findings } = inspection;
  const sizeText = (size: number | bigint) =>
    `${humanSize(Number(size))} (${integerText(size)} bytes)`;
  const lines = [
    `image: ${printable(filename)}`,
    `file format: ${format ?? `ambiguous (${matches.join(", ")})`}`,
  ];
  if (fileSize !== undefined) lines.push(`file length: ${sizeText(fileSize)}`);
  if (virtualSize !== undefined) {
    lines.push(`virtual size: ${sizeText(virtualSize)}`);
  }
  if (partitionTable) {
    const { type, partitions } = partitionTable;
    lines.push(`partition table: ${type}, partitions: ${partitions}`);
  }
  if (fileSystem) lines.push(`file system: ${fileSystem}`);
  if (files.length > 0) lines.push("Files that it names:");
  for (const { role, filename, format, gate } of files) {
    const type = format ? `, ${format}` : "";
    lines.push(
      `    ${role}: ${printable(filename)}${printable(type)} (${gate})`,
    );
  }
  if (findings.length > 0) lines.push("Findings:");
  for (const { severity, check, message } of findings) {
    lines.push(`    ${severity}: ${check}: ${printable(message)}`);
  }
  lines.push(`verdict: ${inspection.verdict}`);
  return lines;
}

/** Text on one line, without control characters of terminals. */
function printable(text: string): string {
  return text.replaceAll(
    /\p{Cc}/gu,
    (character) =>
      `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
}
