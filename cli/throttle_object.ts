/**
 * `--object throttle-group`: limits shared by disks.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import {
  defineThrottleGroup,
  THROTTLE_LIMITS,
  ThrottleGroup,
  type ThrottleLimit,
  type ThrottleLimits,
} from "../core/throttle_group.ts";

/** The text of `--object throttle-group,help`. */
export const THROTTLE_HELP = "throttle-group options:\n" +
  THROTTLE_LIMITS.map((limit) => `  limits.${limit}=<int>\n`).sort().join("");

/** Create a group from properties; each limit has two names. */
export function defineThrottleObject(
  id: string,
  properties: ReadonlyMap<string, string>,
): void {
  const limits: ThrottleLimits = {};
  for (const [name, value] of properties) {
    if (name === "id" || name === "qom-type") continue;
    const limit = name.replace(/^(limits\.|x-)/, "") as ThrottleLimit;
    if (limit === name || !THROTTLE_LIMITS.includes(limit)) {
      throw new BlockError("EINVAL", `Parameter '${name}' is unexpected`);
    }
    if (!/^(\d+|0x[0-9a-f]+)$/i.test(value)) {
      throw new BlockError("EINVAL", `Parameter '${name}' expects integer`);
    }
    limits[limit] = Number(value);
  }
  defineThrottleGroup(id, new ThrottleGroup(limits));
}
