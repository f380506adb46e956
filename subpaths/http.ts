/**
 * Images on web servers: importing this registers the drivers `http` and
 * `https`, which are loaded when the first one is opened.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { webFacts } from "../core/names.ts";
import { lazily, provideDriver } from "../core/registry.ts";

/** The driver of URLs that begin with `http:`. */
const httpDriver: BlockDriver = lazily(
  webFacts("http"),
  async () => (await import("../drivers/http/driver.ts")).httpDriver,
);

/** The driver of URLs that begin with `https:`. */
const httpsDriver: BlockDriver = lazily(
  webFacts("https"),
  async () => (await import("../drivers/http/driver.ts")).httpsDriver,
);

provideDriver(httpDriver);
provideDriver(httpsDriver);

export { httpDriver, httpsDriver };
