/**
 * The format raw: importing this registers its driver.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { rawDriver } from "../drivers/raw.ts";

provideDriver(rawDriver);

export { rawDriver };
