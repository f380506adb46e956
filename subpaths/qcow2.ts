/**
 * The format qcow2: importing this registers its driver, which is loaded when
 * the first image is opened or made.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { lazily, provideDriver } from "../core/registry.ts";

/** The driver of the format qcow2. */
const qcow2Driver: BlockDriver = lazily(
  { name: "qcow2", role: "format" },
  async () => (await import("../drivers/qcow2/driver.ts")).qcow2Driver,
);

provideDriver(qcow2Driver);

export { qcow2Driver };
