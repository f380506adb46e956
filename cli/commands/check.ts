/** `check`: check the metadata of an image. @module */
import "../../drivers/reading.ts";
import { asBlockError, strerror } from "../../core/errors.ts";
import type { BlockNode, CheckResult } from "../../core/node.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  OUTPUT,
  outputFormat,
  QUIET,
  SOURCE_CACHE,
} from "../command.ts";
import { cacheMode, openImageArgument, usingNodes } from "../images.ts";
import { prettyJson } from "../json.ts";
import { fixed } from "../../core/values.ts";
import { CommandError, type Program, usageError } from "../program.ts";
import { inRelease } from "../qemu_releases.ts";

/** What to repair. */
interface Repair {
  leaks: boolean;
  corruptions: boolean;
}

/** The command. */
export const command: Command = {
  summary: "Check the metadata of an image",
  operands: "FILE",
  options: [
    HELP,
    QUIET,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    FORMAT,
    OUTPUT,
    {
      short: "r",
      long: "repair",
      argument: "leaks|all",
      help: "repair the errors found",
    },
    SOURCE_CACHE,
  ],
  notes:
    "Exit code: 0 good, 1 could not be checked, 2 corrupt, 3 leaks only,\n" +
    "63 the format does not support checks.",

  async run(invocation) {
    const { program } = invocation;
    const { output, repair, cache } = parse(invocation);
    const [file] = invocation.operands;
    const node = await openImageArgument(program, file, {
      ...invocation.image,
      cache,
      writable: repair !== undefined,
      purpose: "check",
    });
    return await usingNodes([node], async () => {
      if (!node.image?.check) {
        throw noChecks();
      }
      const print = (text: string) => invocation.quiet || program.print(text);
      const result = await checkTwice(program, node, repair, (first) => {
        if (output === "human") print(repairText(first));
      });
      print(
        output === "human"
          ? humanText(result)
          : `${jsonText(result, file, node.driver.name)}\n`,
      );
      if (result.checkErrors > 0) throw new CommandError("Check failed");
      return result.corruptions > 0 ? 2 : result.leaks > 0 ? 3 : 0;
    });
  },
};

function noChecks(): CommandError {
  return new CommandError("This image format does not support checks", {
    code: 63,
  });
}

function parse(invocation: Invocation) {
  let output: string | undefined;
  let repair: Repair | undefined;
  let cache = "writeback";
  for (const [option, argument] of invocation.options()) {
    if (option === "r") repair = parseRepair(argument);
    else if (option === "output") output = argument;
    else if (option === "T") cache = argument;
  }
  invocation.expectOneImage();
  return {
    output: outputFormat(output),
    cache: cacheMode(cache, "source cache option"),
    repair,
  };
}

function parseRepair(text: string): Repair {
  if (text === "leaks") return { leaks: true, corruptions: false };
  if (text === "all") return { leaks: true, corruptions: true };
  const comma = inRelease("quotedChoice");
  if (comma !== undefined) {
    throw usageError(
      `--repair (-r) expects 'leaks' or 'all'${comma} not '${text}'`,
    );
  }
  throw usageError(
    `Unknown option value for -r (expecting 'leaks' or 'all'): ${text}`,
  );
}

/** Check and, if anything was repaired, check again. */
async function checkTwice(
  program: Program,
  node: BlockNode,
  repair: Repair | undefined,
  repaired: (first: CheckResult) => void,
): Promise<CheckResult> {
  const report = (line: string, named = false) =>
    program.printOneOfMany(`${named ? `${program.name}: ` : ""}${line}\n`);
  try {
    const first = await node.image!.check!({ repair, report });
    const { corruptionsFixed, leaksFixed } = first;
    if (corruptionsFixed === 0 && leaksFixed === 0) return first;
    repaired(first);
    const second = await node.image!.check!({ report });
    return { ...second, corruptionsFixed, leaksFixed };
  } catch (thrown) {
    const { code, message } = asBlockError(thrown);
    if (code === "ENOTSUP" && repair) throw noChecks();
    const why = message === strerror(code) ? "" : ` (${message})`;
    throw new CommandError(`Check failed: ${strerror(code)}${why}`);
  }
}

function repairText(result: CheckResult): string {
  return "The following inconsistencies were found and repaired:\n\n" +
    `    ${result.leaksFixed} leaked clusters\n` +
    `    ${result.corruptionsFixed} corruptions\n\n` +
    "Double checking the fixed image now...\n";
}

function humanText(result: CheckResult): string {
  let text = "";
  if (result.corruptions > 0) {
    text += `\n${result.corruptions} errors were found on the image.\n` +
      "Data may be corrupted, or further writes to the image may corrupt " +
      "it.\n";
  }
  if (result.leaks > 0) {
    text += `\n${result.leaks} leaked clusters were found on the image.\n` +
      "This means waste of disk space, but no harm to data.\n";
  }
  if (result.checkErrors > 0) {
    text += `\n${result.checkErrors} internal errors have occurred during ` +
      "the check.\n";
  }
  if (text === "") text = "No errors were found on the image.\n";
  if (result.totalClusters > 0 && result.allocatedClusters > 0) {
    text += allocationText(result);
  }
  if (result.imageEndOffset > 0) {
    text += `Image end offset: ${result.imageEndOffset}\n`;
  }
  return text;
}

function allocationText(result: CheckResult): string {
  const { totalClusters: total, allocatedClusters: allocated } = result;
  const share = (part: number, whole: number) =>
    `${fixed(part * 100 / whole, 2)}%`;
  return `${allocated}/${total} = ${share(allocated, total)} allocated, ` +
    `${share(result.fragmentedClusters, allocated)} fragmented, ` +
    `${share(result.compressedClusters, allocated)} compressed clusters\n`;
}

function jsonText(
  result: CheckResult,
  filename: string,
  format: string,
): string {
  const unlessZero = (count: number) => count === 0 ? undefined : count;
  return prettyJson({
    "filename": filename,
    "format": format,
    "check-errors": result.checkErrors,
    "image-end-offset": unlessZero(result.imageEndOffset),
    "corruptions": unlessZero(result.corruptions),
    "leaks": unlessZero(result.leaks),
    "corruptions-fixed": unlessZero(result.corruptionsFixed),
    "leaks-fixed": unlessZero(result.leaksFixed),
    "total-clusters": unlessZero(result.totalClusters),
    "allocated-clusters": unlessZero(result.allocatedClusters),
    "fragmented-clusters": unlessZero(result.fragmentedClusters),
    "compressed-clusters": unlessZero(result.compressedClusters),
  });
}
