/**
 * Registers the drivers of what a program holds rather than names: bytes and
 * open files. The command line has no use for them.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { blobDriver } from "./blob/driver.ts";
import { opfsDriver } from "./blob/opfs.ts";
import { handleDriver } from "./handle.ts";

for (const driver of [blobDriver, opfsDriver, handleDriver]) {
  provideDriver(driver);
}
