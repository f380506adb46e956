/**
 * Limits that several disks share: importing this registers the driver
 * `throttle`, and it exports the groups that the driver is given.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { lazily, provideDriver } from "../core/registry.ts";

/** The driver of the filter `throttle`. */
const throttleDriver: BlockDriver = lazily(
  { name: "throttle", role: "filter" },
  async () => (await import("../drivers/throttle.ts")).throttleDriver,
);

provideDriver(throttleDriver);

export {
  ThrottleGroup,
  type ThrottleKind,
  type ThrottleLimit,
  type ThrottleLimits,
} from "../core/throttle_group.ts";
export { throttleDriver };
