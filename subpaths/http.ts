/**
 * Images on web servers: importing this registers the drivers `http` and
 * `https`, which are loaded when the first one is opened.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { webTraits } from "../core/names.ts";
import { lazily, provideDriver } from "../core/registry.ts";

/** The driver of URLs that begin with `http:`. */
const httpDriver: BlockDriver = lazily(
  webTraits("http"),
  async () => (await import("../drivers/http/driver.ts")).httpDriver,
);

/** The driver of URLs that begin with `https:`. */
const httpsDriver: BlockDriver = lazily(
  webTraits("https"),
  async () => (await import("../drivers/http/driver.ts")).httpsDriver,
);

provideDriver(httpDriver);
provideDriver(httpsDriver);

export { httpDriver, httpsDriver };
