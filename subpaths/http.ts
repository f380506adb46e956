/**
 * Images on web servers: importing this registers the drivers `http` and
 * `https`.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { httpDriver, httpsDriver } from "../drivers/http/driver.ts";

provideDriver(httpDriver);
provideDriver(httpsDriver);

export { httpDriver, httpsDriver };
