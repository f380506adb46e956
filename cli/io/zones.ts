/**
 * `zone_report` and its like, which are for zoned devices: no driver has any.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { type IoCommand, Refusal } from "./command.ts";
import { byteCount } from "./numbers.ts";

/** A command about zones. */
function zoneCommand(
  verb: string,
  summary: string,
  { usage = "offset len", min = 2, max = 2 } = {},
): IoCommand {
  return {
    name: `zone_${verb}`,
    usage,
    summary,
    min,
    max,
    run({ words }) {
      for (const word of words) byteCount(word);
      const { message } = new BlockError("ENOTSUP");
      throw new Refusal(`zone ${verb} failed: ${message}`);
    },
  };
}

/** All of them. */
export const ZONE_COMMANDS: readonly IoCommand[] = [
  zoneCommand(
    "append",
    "append write a number of bytes at a specified offset",
    { usage: "offset len [len..]", min: 3, max: 4 },
  ),
  zoneCommand("close", "close a range of zones in zone block device"),
  zoneCommand("finish", "finish a range of zones in zone block device"),
  zoneCommand("open", "explicit open a range of zones in zone block device"),
  zoneCommand("report", "report zone information", { usage: "offset number" }),
  zoneCommand("reset", "reset a zone write pointer in zone block device"),
];
