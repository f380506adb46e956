/**
 * The filter `throttle`: delays requests to keep a group of disks within its
 * limits.
 *
 * @module
 */
import { vectorLength } from "../core/bytes.ts";
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { childSlot, filterNode } from "../core/filter.ts";
import type { BlockNode } from "../core/node.ts";
import { parseOptions } from "../core/options.ts";
import { valueText } from "../core/values.ts";
import { findThrottleGroup, ThrottleGroup } from "../core/throttle_group.ts";

/** A filter on `file`. The option `throttle-group` is a group or its name. */
export const throttleDriver: BlockDriver = {
  name: "throttle",
  role: "filter",

  async open(options, context) {
    const parsed = parseOptions({}, options, ["file", "throttle-group"]);
    const group = groupOf(parsed["throttle-group"]);
    return throttledNode(childSlot(await context.openChild("file")), group);
  },
};

function groupOf(value: unknown): ThrottleGroup {
  if (value instanceof ThrottleGroup) return value;
  if (value === undefined) {
    throw new BlockError("EINVAL", "Please specify a throttle group");
  }
  const group = typeof value === "string" && findThrottleGroup(value);
  if (group) return group;
  throw new BlockError(
    "EINVAL",
    `Throttle group ${valueText(value)} does not exist`,
  );
}

function throttledNode(file: BlockNode, group: ThrottleGroup): BlockNode {
  return filterNode(throttleDriver, file, {
    async readv(offset, iov, flags) {
      await group.admit("read", vectorLength(iov), flags?.signal);
      await file.readv(offset, iov, flags);
    },
    async writev(offset, iov, flags) {
      await group.admit("write", vectorLength(iov), flags?.signal);
      await file.writev!(offset, iov, flags);
    },
    async writeZeroes(offset, length, flags) {
      await group.admit("write", length, flags?.signal);
      await file.writeZeroes!(offset, length, flags);
    },
    async discard(offset, length, flags) {
      await group.admit("write", length, flags?.signal);
      await file.discard!(offset, length, flags);
    },
    async writeCompressed(offset, iov, options) {
      await group.admit("write", vectorLength(iov), options?.signal);
      await file.writeCompressed!(offset, iov, options);
    },
  });
}
