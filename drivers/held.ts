/**
 * Registers the drivers for objects held by the program: bytes and open files.
 * The command line does not use them.
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
