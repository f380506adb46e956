/**
 * Registers the drivers of the package. The command line imports this rather
 * than `mod.ts`, so that it need not load all jobs at every start.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { fileDriver } from "./file/driver.ts";
import { qcow2Driver } from "./qcow2/driver.ts";
import { rareDrivers } from "./rare.ts";

for (
  const driver of [
    fileDriver,
    qcow2Driver,
    ...rareDrivers,
  ]
) {
  provideDriver(driver);
}
