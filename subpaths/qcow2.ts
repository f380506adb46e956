/**
 * The format qcow2: importing this registers its driver.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { qcow2Driver } from "../drivers/qcow2/driver.ts";

provideDriver(qcow2Driver);

export { qcow2Driver };
