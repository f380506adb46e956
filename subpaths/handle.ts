/**
 * Open files: importing this registers the driver `handle`.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { handleDriver } from "../drivers/handle.ts";

provideDriver(handleDriver);

export { handleDriver };
